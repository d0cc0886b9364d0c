"""Down projections refitted by least squares, layer after layer, to what the dense model has at the same place.

What the experts left out would have added is partly a linear function of what the others do. So each layer's down projection
W becomes W + D, with D the ridge solution for

    what the dense model's stream is after the layer - the converted model's before its MLP - W h,

h (T, I) the activations of the neurons that were chosen, on the converted model's own inputs: the layers below have been
converted and refitted already, and their errors are part of what is mended (as ThiNet, Luo et al. 2017, arXiv:1707.06342, and
SparseGPT, Frantar & Alistarh 2023, arXiv:2301.00774, reconstruct layers in turn). Experts and routers stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from moescope.intervene.held_out import Windows
from moescope.models import LoadedModel
from moescope.models.stubs import Call, called, entered
from moescope.studies.convert.calibration import activation_of
from moescope.studies.convert.student import twin_of
from moescope.studies.convert.target import Target, layer_tensors
from moescope.study.protocol import Context

_RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # of the activations' mean square
_BLOCK = 4096  # neurons that are solved for together: normal equations of 128 MiB

REFIT = "refit"  # kind of the frontier; the controls' are random refit and static refit

Downs = dict[str, Tensor]
"""Kind -> one layer's down projection (d, I)."""


@dataclass(frozen=True, eq=False)
class Refitted:
    """``models`` by kind: the dense form of each, its down projections refitted, over the original's other weights."""

    models: dict[str, Any]
    rows: list[dict[str, Any]]

    @property
    def table(self) -> pd.DataFrame:
        """Table ``refit``."""
        return pd.DataFrame(self.rows)


def refit_all(
    model: LoadedModel,
    target: Target,
    students: Mapping[str, Sequence[nn.Module]],
    fit: Windows,
    select: Windows,
    context: Context,
) -> Refitted:
    """Refit every student, all alike; a layer is a stage, for the next one begins from it.

    Args:
        students: kind -> for each layer, which of its neurons work on a token (:mod:`moescope.studies.convert.student`).
        fit, select: windows of one length that give the normal equations, and that choose the penalty.
    """
    sweep = _Sweep(model, target, students, fit, select)
    told = context.counter("refitting the down projections")
    rows: list[dict[str, Any]] = []
    for number in range(model.n_layers):
        downs, added = context.stage(f"refitting layer {number}", partial(sweep.fitted, number))
        sweep.known.append(downs)
        rows += added
        told(number + 1, model.n_layers)
    models = {}
    for kind in students:
        twin = models[kind] = twin_of(model.module)
        for layer, downs in zip(twin.model.layers, sweep.known, strict=True):
            weight = layer.mlp.down_proj.weight
            layer.mlp.down_proj.weight = nn.Parameter(downs[kind].to(weight.device, weight.dtype), requires_grad=False)
    return Refitted(models, rows)


def refit_windows(windows: Windows, seed: int) -> tuple[Windows, Windows]:
    """Four fifths of the calibration windows, which give the normal equations, and the others, which choose the penalty."""
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))
    held = max(1, len(windows) // 5)
    return windows.chosen(order[held:].sort().values), windows.chosen(order[:held].sort().values)


class _Sweep:
    """The dense model and every student on their way through the layers, on the same windows."""

    def __init__(
        self, model: LoadedModel, target: Target, students: Mapping[str, Sequence[nn.Module]], fit: Windows, select: Windows
    ) -> None:
        self.model, self.target, self.students = model, target, students
        self.known: list[Downs] = []
        """what was fitted, layer by layer, here or by an earlier process"""
        self._texts = [fit, select]
        self._layer = 0
        self._dense: list[Tensor] = []
        self._calls: list[list[Call]] = []
        self._fits: list[bool] = []  # of each batch: it gives the normal equations
        self._states: dict[str, list[Tensor]] = {}

    def fitted(self, number: int) -> tuple[Downs, list[dict[str, Any]]]:
        """The down projections of one layer, all those below being known."""
        if not self._dense:
            self._begin()
        while self._layer < number:
            self._pass(self.known[self._layer])
        return self._pass(None)

    @torch.no_grad()
    def _begin(self) -> None:
        for windows, fits in zip(self._texts, (True, False), strict=True):
            for ids in windows.batches(2048):
                state, calls = entered(self.model, ids)
                self._dense.append(state)
                self._calls.append(calls)
                self._fits.append(fits)
        self._states = {kind: list(self._dense) for kind in self.students}

    @torch.no_grad()
    def _pass(self, known: Downs | None) -> tuple[Downs, list[dict[str, Any]]]:
        """Through one layer; what is not ``known`` of it is fitted."""
        number = self._layer
        layer: Any = self.model.structure.layers[number]
        mlp = layer.mlp
        gate, up, down = (t.float() for t in layer_tensors(self.target, mlp))
        activate = activation_of(mlp, self.target.activation)
        calls = [call[number] for call in self._calls]
        # Olmo 2 adds a norm of what its MLP gives: there the MLP's own output is what is to be met
        norm = layer.post_feedforward_layernorm if self.target.source == "olmo2" else None
        outputs: list[Tensor] = []
        seen = mlp.register_forward_hook(lambda _mlp, _args, out: outputs.append(out) if norm is not None else None)
        wanted = [called(layer, state, call) for state, call in zip(self._dense, calls, strict=True)]
        seen.remove()
        downs: Downs = {}
        rows = []
        for kind, choices in self.students.items():
            choice = choices[number]
            inputs: list[Tensor] = []
            with _silent(mlp, inputs):
                before = [called(layer, state, call) for state, call in zip(self._states[kind], calls, strict=True)]

            def active(x: Tensor, choice: nn.Module = choice) -> Tensor:
                x = x.flatten(0, 1).float()
                found: Tensor = activate(x @ gate.T) * (x @ up.T) * choice(x)
                return found

            if known is None:
                missing = outputs or [w - b for w, b in zip(wanted, before, strict=True)]
                pieces = list(zip(inputs, missing, self._fits, strict=True))
                downs[kind], row = _solve(down, pieces, active)
                rows.append({"layer": number, "kind": kind} | row)
            else:
                downs[kind] = known[kind]
            weight = downs[kind].to(down).T
            written = [(active(x) @ weight).view_as(b).to(b.dtype) for b, x in zip(before, inputs, strict=True)]
            self._states[kind] = [b + (w if norm is None else norm(w)) for b, w in zip(before, written, strict=True)]
        self._dense = wanted
        self._layer += 1
        return downs, rows


@contextmanager
def _silent(mlp: nn.Module, inputs: list[Tensor]) -> Iterator[None]:
    """For a time, ``mlp`` notes what it reads and adds nothing."""

    def forward(x: Tensor) -> Tensor:
        inputs.append(x)
        return torch.zeros_like(x)

    mlp.__dict__["forward"] = forward
    try:
        yield
    finally:
        del mlp.__dict__["forward"]


def _solve(
    down: Tensor, pieces: Sequence[tuple[Tensor, Tensor, bool]], active: Callable[[Tensor], Tensor]
) -> tuple[Tensor, dict[str, Any]]:
    """The refitted projection (d, I), and what it did to the squared error over the target's on the tokens that choose.

    Args:
        pieces: of some tokens each what the MLP reads (…, d), what it should write (…, d), and whether they give the normal
            equations; the others choose the penalty.
    """
    weight, penalty = down.clone(), 0.0
    errors: list[float] = []
    target = sum(float(wanted.double().square().sum()) for _, wanted, fits in pieces if not fits) or 1.0
    for columns in torch.arange(down.shape[1]).split(_BLOCK):
        sums = {fits: _Sums(len(columns), down.shape[0]) for fits in (True, False)}
        for x, wanted, fits in pieces:
            h = active(x)
            sums[fits].add(h[:, columns], wanted.flatten(0, 1).float() - h @ weight.T)
        fitted, held = sums[True], sums[False]
        tried = {ridge: held.after(fitted.solved(ridge)) for ridge in _RIDGES}
        best = min(tried, key=lambda ridge: tried[ridge])
        errors += [held.square, min(held.square, tried[best])]
        if tried[best] < held.square:
            # the penalty is chosen: the tokens that chose it count too
            penalty = best
            fitted.join(held)
            weight[:, columns] += fitted.solved(best).T.to(weight)
    return weight.cpu(), {"before": errors[0] / target, "after": errors[-1] / target, "penalty": penalty}


class _Sums:
    """Normal equations of tokens with activations h and errors e that they should take away, summed in float64."""

    def __init__(self, neurons: int, width: int) -> None:
        self.gram = torch.zeros(neurons, neurons, dtype=torch.float64)
        self.cross = torch.zeros(neurons, width, dtype=torch.float64)
        self.square = 0.0

    def add(self, h: Tensor, e: Tensor) -> None:
        """h (T, neurons) and e (T, width) of T more tokens."""
        self.gram += (h.T @ h).double().cpu()
        self.cross += (h.T @ e).double().cpu()
        self.square += float(e.double().square().sum())

    def join(self, other: _Sums) -> None:
        """Count the tokens of ``other`` too."""
        self.gram += other.gram
        self.cross += other.cross
        self.square += other.square

    def solved(self, ridge: float) -> Tensor:
        """(neurons, width): the change of the projection; the penalty in units of the activations' mean square."""
        gram = self.gram.clone()
        gram.diagonal().add_((ridge * gram.diagonal().mean()).clamp_min(1e-30))
        found: Tensor = torch.cholesky_solve(self.cross, torch.linalg.cholesky(gram))
        return found

    def after(self, change: Tensor) -> float:
        """The squared error when ``change`` is added to the projection."""
        return self.square - 2 * float((change * self.cross).sum()) + float((change * (self.gram @ change)).sum())
