"""Parameters, forward tokens, FLOPs, peak memory, disk and time of a command, before it is started."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import torch

from moescope.files.memory import available_memory, gib
from moescope.models.blueprint import Blueprint, blueprint
from moescope.models.fit import DTYPES, plan_of
from moescope.models.fit import Plan as Loading
from moescope.planning.beside import held_beside
from moescope.planning.readings import Reading, Work, work_of
from moescope.study.run import Run

PROBE = 2.0
"""seconds in which this machine shows how fast it multiplies"""
_EXTRAS = {"eval_task": ("lm_eval", "eval"), "finetune": ("peft", "finetune")}
_BODY_ALONE = ("circuits", "choice", "exit", "route", "signatures", "trace", "dynamics", "scaling")
"""commands that load no head, unless they write"""
_BEHIND = 0.6
"""share of the probe's speed that a model's pass comes to: what is not a product of matrices takes the rest"""


@dataclass(frozen=True)
class Plan:
    """What ``command`` would take; bytes, seconds and FLOPs (two for a product that is added up)."""

    command: str
    model: str
    parameters: int
    active_parameters: int
    coordinates: dict[str, int]
    layers: int
    dtype: str
    weight_bytes: int
    forward_tokens: dict[str, int]
    flops: float
    flops_a_token: float
    """at the texts' mean length"""
    peak_bytes: int
    memory: dict[str, int]
    """what the peak is made of"""
    free_bytes: int
    disk_bytes: int
    flop_s: float
    """of this machine as measured, or as given"""
    seconds: float
    """of the model's passes; statistics come on top"""
    missing: tuple[str, ...] = ()
    """extras that the command needs and that are not installed"""
    advice: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def json(self) -> dict[str, Any]:
        return asdict(self)


def plan(
    command: str, model: str | Path, inputs: dict[str, Any], settings: Any, run: Run, *, flop_s: float | None = None
) -> Plan:
    """Of ``moescope COMMAND MODEL …``, from the model's config and the texts; no weight is read.

    Args:
        inputs: what the command takes beside its settings, by name (``tasks``, ``prompts``).
        flop_s: of the machine that is meant; None: this one's, measured in :data:`PROBE` seconds.

    Raises:
        InputError: no such model or config, a task or prompts that cannot be read.
    """
    writes = getattr(settings, "new_tokens", 0) > 0
    head = writes or getattr(settings, "leave_out", None) is not None or command not in _BODY_ALONE
    made = blueprint(model)
    loading = plan_of(run.dtype, made.held, made.config, made.model.name)
    weights = loading.nbytes
    if loading.name in DTYPES:  # files may hold a head that is not loaded
        weights = made.resident(head) * (4 if loading.dtype == torch.float32 else 2)
    work = work_of(command, inputs, settings, run, made.model)
    flops = sum(reading.share * made.flops(*shape) for reading in work.readings for shape in reading.shapes(run.batch_tokens))
    flops += sum(len(r.lengths) * _written(made, r) for r in work.readings if r.new_tokens)
    tokens = {r.purpose: sum(o.tokens for o in work.readings if o.purpose == r.purpose) for r in work.readings}
    base = psutil.Process().memory_info().rss  # with torch, the study's modules, the texts and the tokenizer
    held = max(weights * n // made.parameters for n in made.by_layer) if command == "prune" else weights  # one layer at a time
    memory = _memory(made, loading, work, settings, run, held, base)
    memory |= held_beside(command, made, settings, 4 if loading.dtype == torch.float32 else 2)
    speed = flop_s or probe(loading.dtype)
    mean = sum(tokens.values()) / max(1, sum(len(r.lengths) for r in work.readings))
    free = available_memory()
    peak = sum(memory.values())
    return Plan(
        command=command,
        model=made.model.name,
        parameters=made.parameters,
        active_parameters=made.active,
        coordinates=made.coordinates,
        layers=made.model.n_layers,
        dtype=loading.name,
        weight_bytes=weights,
        forward_tokens=tokens,
        flops=flops,
        flops_a_token=made.flops(1, max(1, round(mean))) / max(1, round(mean)),
        peak_bytes=peak,
        memory=memory,
        free_bytes=free,
        disk_bytes=_disk(command, made, settings, weights),
        flop_s=speed,
        seconds=flops / (speed if flop_s else speed * _BEHIND),
        missing=_missing(settings),
        advice=tuple(_advice(made, memory, weights, free, flops / speed, run)),
        notes=work.notes + (() if made.weighed else ("from a config alone: weights of its own precision are assumed",)),
    )


@dataclass(frozen=True)
class SeriesPlan:
    """What ``command`` would take over several models, one after the other: of each, and of all."""

    command: str
    models: tuple[Plan, ...]

    def json(self) -> dict[str, Any]:
        return {"command": self.command, "together": self.together(), "models": [one.json() for one in self.models]}

    def together(self) -> dict[str, Any]:
        """Sums, and of the memory the largest: one model goes before the next comes."""
        every = self.models
        purposes = dict.fromkeys(purpose for one in every for purpose in one.forward_tokens)
        return {
            "forward_tokens": {p: sum(one.forward_tokens.get(p, 0) for one in every) for p in purposes},
            "flops": sum(one.flops for one in every),
            "peak_bytes": max(one.peak_bytes for one in every),
            "free_bytes": min(one.free_bytes for one in every),
            "disk_bytes": max(one.disk_bytes for one in every),
            "seconds": sum(one.seconds for one in every),
        }


def plan_series(
    command: str, models: Sequence[str | Path], inputs: dict[str, Any], settings: Any, run: Run, *, flop_s: float | None = None
) -> SeriesPlan:
    """:func:`plan` of each of ``models``, of several revisions of one as often as it is read.

    Raises:
        InputError: as :func:`plan`.
    """
    each = {model: plan(command, model, inputs, settings, run, flop_s=flop_s) for model in dict.fromkeys(models)}
    return SeriesPlan(command, tuple(each[model] for model in models))


def _written(made: Blueprint, reading: Reading) -> float:
    """FLOPs of the tokens written after one text, each of which reads the cache of those before it."""
    passes = reading.new_tokens - 1
    seen = round(float(reading.lengths.mean()) + passes / 2)
    return passes * (made.flops(1, seen) / seen) + reading.new_tokens * made.head_flops


def _memory(made: Blueprint, loading: Loading, work: Work, settings: Any, run: Run, weights: int, base: int) -> dict[str, int]:
    config = made.model.config.get_text_config()
    wide = max(getattr(config, "intermediate_size", 0) or 4 * made.model.d_model, made.model.d_model)
    size = 4 if loading.dtype == torch.float32 else 2
    batch = max((rows * tokens for r in work.readings for rows, tokens in r.shapes(run.batch_tokens)), default=0)
    columns = made.neurons(settings.site) if getattr(settings, "site", None) is not None else 0
    # of weights that are codes a twin has none: its own are numbers
    twin = weights if loading.name in DTYPES else made.parameters * (4 if loading.dtype == torch.float32 else 2)
    return {
        "program": base,
        "weights": weights,
        "twin": twin if getattr(settings, "twin", False) else 0,
        "batch": int(batch * (3 * wide + 6 * made.model.d_model) * size),
        "activations": int(4 * columns * work.rows * 2),
    }


def _disk(command: str, made: Blueprint, settings: Any, weights: int) -> int:
    figures = 4 * 2**20
    return figures + (weights if command in ("convert", "prune", "sparsify") else 0)


def _missing(settings: Any) -> tuple[str, ...]:
    wanted = [(package, extra) for name, (package, extra) in _EXTRAS.items() if getattr(settings, name, None)]
    return tuple(f"pip install 'moescope[{extra}]'" for package, extra in wanted if find_spec(package) is None)


def _advice(made: Blueprint, memory: dict[str, int], weights: int, free: int, seconds: float, run: Run) -> list[str]:
    said, peak = [], sum(memory.values())
    if peak > free:
        if memory["twin"]:
            said.append(f"--no-twin: the random twin takes {gib(memory['twin'])} of memory and its share of the time")
        smaller = [(d, n) for d, n in (("bf16", 2.0), ("int8", 1.1), ("int4", 0.65)) if made.parameters * n < 0.8 * free]
        if run.dtype in ("auto", "fp32") and smaller and weights > made.parameters * smaller[0][1]:
            said.append(f"--dtype {smaller[0][0]}: the peak of {gib(peak)} is more than the {gib(free)} that are free")
        else:
            gpus = -(-weights // int(0.85 * 80 * 2**30))
            said.append(f"--device-map auto on a machine with more memory: {gpus} GPUs of 80 GiB hold the weights")
    if run.limit is None and seconds > 3600:
        said.append("--limit 300 first: reading takes more than an hour")
    return said


@cache
def probe(dtype: torch.dtype = torch.float32, seconds: float = PROBE) -> float:
    """FLOP a second of this machine, in products of matrices such as a model's; measured once."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    a, b = torch.randn(512, 1024, dtype=dtype, device=device), torch.randn(1024, 1024, dtype=dtype, device=device)
    best, end = 0.0, time.perf_counter() + seconds
    with torch.no_grad():
        while time.perf_counter() < end:
            start = time.perf_counter()
            for _ in range(4):
                a @ b
            if device.type == "cuda":
                torch.cuda.synchronize()
            best = max(best, 4 * 2 * 512 * 1024 * 1024 / (time.perf_counter() - start))
    return best
