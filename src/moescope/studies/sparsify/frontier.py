"""Quality over bytes: every way of choosing at every share, beside plain weights of few bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import torch

from moescope.intervene.held_out import Windows
from moescope.intervene.quality import Contender, Each, Quality, compare, few_bits
from moescope.models import LoadedModel
from moescope.models.sparse import sparse_mlps
from moescope.studies.sparsify import cost
from moescope.studies.sparsify.calibration import Calibrated, even
from moescope.studies.sparsify.methods import (
    ANOTHER,
    CHANCE,
    PLANES,
    ByInput,
    ByNeuron,
    Layer,
    Rotated,
    Scores,
    Way,
    beyond_thresholds,
    by_another_token,
    by_average,
    by_chance,
    by_column_norms,
    by_gate,
    by_gate_alone,
    by_oracle,
    by_planes,
    by_up_alone,
    replaced,
    turned,
)
from moescope.studies.sparsify.settings import PLAIN, Format, SparsifySettings

FILE, FOUR, ORIGINAL = "file", "4-bit", "original"


@dataclass(frozen=True, eq=False)
class Entrant:
    """One line of the frontier: a way at a share, or a plain format, and how its bytes are counted once it has run."""

    method: str
    share: float
    contender: Contender
    nbytes: Callable[[], float]
    used: Callable[[], float] = lambda: 1.0

    @property
    def name(self) -> str:
        return self.contender.name


def plain_name(bits: int, down: int) -> str:
    return f"{bits}-bit" if bits == down else f"{bits}/{down}-bit"


def of_way(method: str, share: float) -> str:
    """The name of a way at a share, as the table has it."""
    return f"{method} {share:g}"


def entrants(
    model: LoadedModel,
    layers: Sequence[Layer],
    found: Calibrated,
    written: Any,
    form: Format,
    settings: SparsifySettings,
    seed: int,
) -> list[Entrant]:
    """All lines of the frontier.

    Args:
        written: the sparse model that was written and read again, which stands for its own setting.
    """
    shape, bits = layers[0].shape, form.bits
    module: Any = model.module
    mlps = [layer.mlp.module for layer in layers]
    lines: list[Entrant] = []
    counts = [mlp.neurons for mlp in sparse_mlps(written)]
    for b, down in PLAIN:
        contender = Contender(plain_name(b, down), module, partial(few_bits, mlps, b, down))
        lines.append(Entrant(contender.name, 1.0, contender, _fixed(cost.plain(shape, b, down))))
    if model.mlp_bits is not None:
        own = Contender(FILE, module, nullcontext)
        lines.append(Entrant(FILE, 1.0, own, _fixed(model.mlp_bits / 16)))
    turned_layers = turned(layers, [seen.axes for seen in found.layers], bits) if "rotated" in settings.rivals else []
    for share in sorted({*settings.shares, form.share}, reverse=True):
        headline = share == form.share
        for method in (PLANES, *settings.rivals, *((CHANCE, ANOTHER) if headline else ())):
            name = of_way(method, share)
            if method == PLANES and headline:
                contender = Contender(name, written, nullcontext)
                used = sum(counts) / sum(layer.mlp.neurons for layer in layers)
                reads = cost.by_planes(shape, used, bits, form.choose)
                lines.append(Entrant(method, share, contender, _fixed(reads), _fixed(used)))
                continue
            neurons = counts if headline else even(layers, share)
            way = _way(method, share, neurons, layers, turned_layers, found, form.choose, seed)
            contender = Contender(name, module, partial(replaced, way), way)
            lines.append(Entrant(method, share, contender, *_counted(method, way, shape, form)))
    return lines


def _way(
    method: str,
    share: float,
    neurons: Sequence[int],
    layers: Sequence[Layer],
    rotated: Sequence[Layer],
    found: Calibrated,
    choose: int,
    seed: int,
) -> Way:
    of = found.layers
    if method == "teal":
        return ByInput(layers, beyond_thresholds([s.threshold("x", share) for s in of], [s.threshold("h", share) for s in of]))
    if method == "wina":
        return ByInput(layers, by_column_norms(layers, share))
    if method == "rotated":
        return Rotated(layers, [seen.axes.to(layers[0].mlp.gate.device) for seen in of], rotated, share)
    if method == "cats":
        return ByNeuron(layers, by_gate_alone, [s.threshold("gate", share) for s in of])
    if method == "up-first":
        return ByNeuron(layers, by_up_alone, [s.threshold("up", share) for s in of])
    drawing = torch.Generator().manual_seed(seed)
    scores: dict[str, Scores] = {
        PLANES: by_planes(choose),
        ANOTHER: by_another_token(choose, drawing),
        CHANCE: by_chance(drawing),
        "oracle": by_oracle,
        "gate-first": by_gate,
        "static": by_average([i.float().to(layers[0].mlp.gate.device) for i in found.importance()]),
    }
    return ByNeuron(layers, scores[method], neurons, drawing if method in (ANOTHER, CHANCE) else None)


def _counted(method: str, way: Way, shape: cost.Shape, form: Format) -> tuple[Callable[[], float], Callable[[], float]]:
    """Bytes, and the share of what it leaves out that it used, by what it counted while it ran."""
    bits = form.bits

    def nbytes() -> float:
        neurons = way.share("neurons")
        if method in ("teal", "wina", "rotated"):
            return cost.by_inputs(shape, way.share("inputs"), neurons, bits)
        if method in (PLANES, ANOTHER):
            return cost.by_planes(shape, neurons, bits, form.choose)
        if method in ("gate-first", "cats", "up-first"):
            return cost.by_first(shape, neurons, bits, norms=method == "gate-first")
        return cost.by_oracle(shape, neurons, bits)

    return (
        nbytes,
        lambda: (
            (2 * way.share("inputs") + way.share("neurons")) / 3 if isinstance(way, ByInput | Rotated) else way.share("neurons")
        ),
    )


def measure_frontier(
    model: LoadedModel,
    lines: Sequence[Entrant],
    windows: Windows,
    *,
    seed: int,
    report: Callable[[int, int], None] | None = None,
    each: Each | None = None,
) -> tuple[pd.DataFrame, dict[str, Quality]]:
    """Table ``frontier``, the model as it was loaded first, and the quality of each line by its name; ``each`` keeps what is
    finished of a run."""
    found = compare(model.module, [line.contender for line in lines], windows, seed=seed, report=report, each=each)
    rows = [{"method": ORIGINAL, "share": 1.0, "used": 1.0, "bytes": model.dtype.itemsize / 2, **found[0].row}]
    for line, q in zip(lines, found[1:], strict=True):
        rows.append({"method": line.method, "share": line.share, "used": line.used(), "bytes": line.nbytes(), **q.row})
    return pd.DataFrame(rows), {q.name: q for q in found}


def _fixed(value: float) -> Callable[[], float]:
    return lambda: value
