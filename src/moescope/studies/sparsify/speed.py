"""Tokens per second of what has a kernel: the model as it was loaded, plain weights of eight and four bits, and the choice at
every share, end to end and of their MLPs alone.

All are the same model but for its MLPs, as in what is measured of quality: attention and head stay as they were loaded, in one
copy, for where a copy lies in memory is seconds too. Plain weights run on the loops of :mod:`moescope.kernels.planes` (on a GPU
:mod:`moescope.kernels.triton_planes`), whose codes nest; they are as many bytes as the frontier's, and no time depends on their
values. Held-out text is read, a token at a time, caches cold, contenders in turns (:mod:`moescope.study.clock`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from moescope.errors import InputError
from moescope.intervene.held_out import Windows
from moescope.intervene.quality import EIGHT
from moescope.models import LoadedModel
from moescope.models.gated import GatedMLP
from moescope.models.sparse import reference, sparse_mlps
from moescope.runtime.planes import activation_name, dense_mlp, execute, no_dense_kernel, no_kernel
from moescope.studies.sparsify.frontier import FOUR, ORIGINAL, of_way
from moescope.studies.sparsify.methods import PLANES
from moescope.studies.sparsify.settings import Format
from moescope.study.clock import Cold, Workload, decoding, in_turns, ratio, seconds_of

BATCHES = (1, 2, 4, 8)
TURNS = 12
NO_KERNEL = "no kernel"
_PROMPT, _STEPS, _PASSES = 8, 6, 3
_MOST = 0.02  # of the norm, by which loops that round a token's numbers to 16 bits may differ, in half precision too
Rows = list[dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Runner:
    """One line of the frontier that can be timed.

    ``mlps`` are its MLPs layer by layer, x (T, d) to (T, d); ``nbytes`` of their weights are read for one token; both count
    while ``enter`` is open.
    """

    method: str
    share: float
    kernel: str
    model: Any
    mlps: Sequence[Callable[[Tensor], Tensor]]
    nbytes: float
    enter: Callable[[], AbstractContextManager[None]] = nullcontext

    @property
    def name(self) -> str:
        return of_way(self.method, self.share)


def missing_kernels(model: LoadedModel, mlps: Sequence[GatedMLP], form: Format) -> dict[str, str]:
    """Why there is no kernel, for ``planes`` and for the plain formats (``8-bit``), where there is none."""
    at, name = mlps[0], activation_name(model.config)
    place = at.gate.device
    plain = no_dense_kernel(at.width, name, place) or no_dense_kernel(at.neurons, name, place)
    chosen = no_kernel(form.choose, form.bits, at.width, name, place)
    return {method: why for method, why in ((EIGHT, plain), (PLANES, chosen)) if why is not None}


@torch.no_grad()
def measure(
    model: LoadedModel,
    mlps: Sequence[GatedMLP],
    written: Any,
    counts: Mapping[float, Sequence[int]],
    form: Format,
    windows: Windows,
    seconds: float = math.inf,
    report: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """``rows`` of the table ``speed``, and ``difference``, between what the loops give and what was written.

    Args:
        written: the sparse model, which is as it was afterwards.
        counts: share -> neurons of each layer.
        seconds: that it may take, about.

    Raises:
        InputError: the loops give something else than what was written.
    """
    missing = missing_kernels(model, mlps, form)
    cold, rows, difference = Cold(mlps[0].gate.device), [], None
    total = len(BATCHES) * 2 * (TURNS + 1)
    with _executed(written) if PLANES not in missing else nullcontext():
        runners = _runners(model, mlps, written, counts if PLANES not in missing else {}, form)
        for number, batch in enumerate(BATCHES):
            text, work = _text(windows, batch)
            inputs = _inputs(model, mlps, text[:, : work.prompt])
            if number == 0 and PLANES not in missing:
                difference = _checked(sparse_mlps(written), inputs)

            def told(done: int, number: int = number, part: int = 0) -> None:
                if report is not None:
                    report((2 * number + part) * (TURNS + 1) + done, total)

            limit: Any = {"seconds": seconds / (2 * len(BATCHES))}
            whole = in_turns({r.name: partial(_decode, r, work, text, cold) for r in runners}, TURNS, told=told, **limit)
            told = partial(told, part=1)
            alone = in_turns({r.name: partial(_pass, r, inputs, cold) for r in runners}, TURNS, told=told, **limit)
            rows += _rows(runners, batch, whole, alone)
    return {"rows": rows, "difference": difference}


def _runners(
    model: LoadedModel, mlps: Sequence[GatedMLP], written: Any, counts: Mapping[float, Sequence[int]], form: Format
) -> list[Runner]:
    name, modules = activation_name(model.config), [mlp.module for mlp in mlps]
    chosen = sparse_mlps(written)
    own = sum(t.numel() * t.element_size() for mlp in mlps for t in (mlp.gate, mlp.up, mlp.down))
    kind = f"torch, {str(model.dtype).removeprefix('torch.')}"
    found = [Runner(ORIGINAL, 1.0, kind, written, modules, own, partial(_in_place, chosen, modules))]
    for method, bits in ((EIGHT, 8), (FOUR, 4)):
        made = [dense_mlp(mlp.gate, mlp.up, mlp.down, bits, name) for mlp in mlps]
        nbytes = sum(mlp.rows.bytes_read() for mlp in made)
        found.append(Runner(method, 1.0, f"{bits} bits", written, made, nbytes, partial(_in_place, chosen, made)))
    for share, each in sorted(counts.items(), reverse=True):
        nbytes = sum(mlp.execute.planes.bytes_read(count) for mlp, count in zip(chosen, each, strict=True))  # type: ignore[attr-defined]
        enter = partial(_with_neurons, chosen, each)
        found.append(Runner(PLANES, share, f"{form.choose} of {form.bits} bits", written, chosen, nbytes, enter))
    return found


@contextmanager
def _executed(written: Any) -> Iterator[None]:
    """For a time, the sparse MLPs run on the loops."""
    execute(written)
    try:
        yield
    finally:
        for mlp in sparse_mlps(written):
            mlp.execute = reference


@contextmanager
def _in_place(modules: Sequence[Any], others: Sequence[Any]) -> Iterator[None]:
    """For a time, what others give is given by these modules."""
    try:
        for module, other in zip(modules, others, strict=True):
            module.forward = other.forward
        yield
    finally:
        for module in modules:
            vars(module).pop("forward", None)


@contextmanager
def _with_neurons(mlps: Sequence[Any], counts: Sequence[int]) -> Iterator[None]:
    kept = [mlp.neurons for mlp in mlps]
    try:
        for mlp, count in zip(mlps, counts, strict=True):
            mlp.neurons = count
        yield
    finally:
        for mlp, count in zip(mlps, kept, strict=True):
            mlp.neurons = count


def _text(windows: Windows, batch: int) -> tuple[Tensor, Workload]:
    """(batch, prompt + steps) ids, each row of another window, and how many of them are read at once and one by one."""
    length = windows.ids.shape[1]
    steps = min(_STEPS, length // 2)
    prompt = min(_PROMPT, length - steps)
    return windows.ids[torch.arange(batch) % len(windows), : prompt + steps], Workload(f"batch {batch}", batch, prompt, steps)


def _inputs(model: LoadedModel, mlps: Sequence[GatedMLP], text: Tensor) -> list[Tensor]:
    """What each layer's MLP reads at the last of these tokens, (batch, d)."""
    found: list[Tensor] = []
    handles = [mlp.module.register_forward_pre_hook(lambda _, args: found.append(args[0][:, -1].clone())) for mlp in mlps]
    try:
        model.module(input_ids=text.to(model.device), use_cache=False, logits_to_keep=1)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _checked(mlps: Sequence[Any], inputs: Sequence[Tensor]) -> float:
    """Norm of the difference between what the loops give and what the MLPs are, over theirs."""
    pairs = [(mlp(x).float(), reference(mlp, x).float()) for mlp, x in zip(mlps, inputs, strict=True)]
    difference = float(torch.cat([a - b for a, b in pairs]).norm() / torch.cat([b for _, b in pairs]).norm().clamp_min(1e-30))
    if not difference <= _MOST:
        raise InputError(
            f"the loops give something else than the sparse MLPs: {difference:.3g} of their norm, where rounding explains "
            f"{_MOST:g}; please report it, and give speed=False (--no-speed) meanwhile",
            "speed",
        )
    return difference


def _decode(runner: Runner, work: Workload, text: Tensor, cold: Cold) -> float:
    """Seconds of a step, the middle one of some."""
    with runner.enter():
        return float(np.median(decoding(runner.model, work, text=text, before=cold)))


def _pass(runner: Runner, inputs: Sequence[Tensor], cold: Cold) -> float:
    """Seconds of all MLPs, the middle of some passes."""

    def run() -> None:
        for mlp, x in zip(runner.mlps, inputs, strict=True):
            mlp(x)

    def once() -> float:
        cold()
        return seconds_of(run, inputs[0].device)

    with runner.enter() if runner.method == PLANES else nullcontext():  # the others' are run themselves
        return float(np.median([once() for _ in range(_PASSES)]))


def _rows(runners: Sequence[Runner], batch: int, whole: Mapping[str, np.ndarray], alone: Mapping[str, np.ndarray]) -> Rows:
    eight = of_way(EIGHT, 1.0)
    rows = []
    for runner in runners:
        faster, mlp = (ratio(of[eight], of[runner.name]) for of in (whole, alone))
        # of what several tokens choose nobody has counted the union
        known = batch == 1 or runner.method != PLANES
        seconds = float(np.median(alone[runner.name]))
        rows.append(
            {
                "method": runner.method,
                "share": runner.share,
                "kernel": runner.kernel,
                "batch": batch,
                "turns": len(whole[runner.name]),
                "tokens_per_second": batch / float(np.median(whole[runner.name])),
                "over_8_bits": faster[0],
                "low": faster[1],
                "high": faster[2],
                "mlp_milliseconds": 1e3 * seconds,
                "mlp_over_8_bits": mlp[0],
                "mlp_low": mlp[1],
                "mlp_high": mlp[2],
                "mlp_gb_per_second": runner.nbytes / seconds / 1e9 if known else float("nan"),
            }
        )
    return rows


CLOCKED = {
    "tokens_per_second": "tokens_per_second",
    "over_8_bits": "over_8_bits",
    "low": "over_8_bits_low",
    "high": "over_8_bits_high",
    "mlp_over_8_bits": "mlp_over_8_bits",
}
"""columns of the table ``speed``, and as the frontier has them"""


def beside(frontier: pd.DataFrame, speed: pd.DataFrame) -> pd.DataFrame:
    """The frontier with the kernel of each line, and its clock for one token at a time; of a line without a kernel nothing."""
    one = speed[speed["batch"] == 1][["method", "share", "kernel", *CLOCKED]].rename(columns=CLOCKED)
    found = frontier.merge(one, how="left", on=["method", "share"], validate="one_to_one")
    found["kernel"] = found["kernel"].fillna(NO_KERNEL)
    return found
