"""Quality over activated share: one conversion with ever fewer experts, beside its controls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pandas as pd

from moescope.intervene.held_out import Windows
from moescope.intervene.quality import BYTES, EIGHT, Contender, Each, Quality, compare, few_bits, neurons_off
from moescope.kernels.experts import STEADY
from moescope.models import LoadedModel
from moescope.studies.convert.layers import Converted, kept_neurons
from moescope.studies.convert.settings import Counts
from moescope.studies.convert.speed import active_share
from moescope.studies.convert.target import set_active

_SHARES = (1.0, 0.75, 0.5, 0.375, 0.25, 0.125)


def measure_frontier(
    model: LoadedModel,
    made: Mapping[str, Any],
    pruned: Mapping[str, Any],
    bounds: Mapping[str, Callable[[], AbstractContextManager[None]]],
    found: Converted,
    counts: Counts,
    windows: Windows,
    *,
    seed: int,
    report: Callable[[int, int], None] | None = None,
    each: Each | None = None,
) -> tuple[pd.DataFrame, list[Quality]]:
    """Table ``frontier``, and the qualities that it comes from.

    ``kind`` is ``converted``, ``random`` (a random split, its router fitted alike) or ``static`` (the neurons that
    contribute most on average kept for every token, no router): what clustering adds, and what routing adds; each with
    `` refit`` or `` tuned`` behind it (the conversion: ``refit``, ``tuned``) where that was done to it, the controls at the
    chosen number only. Beside them stands the dense model with its MLPs' weights in 8 bits, its share that of the bytes, and,
    at the chosen number, what no router and no grouping would lose (:data:`~moescope.studies.convert.bounds.BOUNDS`).

    Args:
        made: kind -> mixture of experts. pruned: kind -> dense model whose neurons are switched off.
        bounds: kind -> puts the dense model in a state.
        each: keeps what is finished of a run that is cut off.
    """
    for mixture in made.values():
        mixture.set_experts_implementation(STEADY)  # grouped_mm holds (tokens, k, d), which is most of its time here
    steps = {max(counts.shared + 1, round(share * counts.experts)) for share in _SHARES} | {counts.active}
    contenders: list[Contender] = []
    places: list[tuple[str, int, float]] = []
    for active in sorted(steps, reverse=True):
        with _active(made["converted"], active, counts):
            share = active_share(model.module, made["converted"])
        for kind, mixture in made.items():
            if not kind.startswith("random ") or active == counts.active:
                contenders.append(Contender(f"{kind} {active}", mixture, _entering(mixture, active, counts)))
                places.append((kind, active, share))
        for kind, dense in pruned.items():
            if active < counts.experts and (kind == "static" or active == counts.active):
                contenders.append(Contender(f"{kind} {active}", dense, _pruning(dense, found, active / counts.experts)))
                places.append((kind, active, active / counts.experts))
    if pruned:
        body: Any = model.module
        contenders.append(Contender(EIGHT, body, lambda: few_bits([layer.mlp for layer in body.model.layers])))
        places.append((EIGHT, counts.experts, BYTES))
    for kind, entering in bounds.items():
        contenders.append(Contender(kind, model.module, entering))
        places.append((kind, counts.active, counts.active / counts.experts))
    qualities = compare(model.module, contenders, windows, seed=seed, report=report, each=each)
    rows = [
        {
            "kind": kind,
            "active": active,
            "share": share,
            "contender": q.name,
            **q.row,
        }
        for (kind, active, share), q in zip(places, qualities[1:], strict=True)
    ]
    return pd.DataFrame(rows), qualities


def _entering(made: Any, active: int, counts: Counts) -> Callable[[], AbstractContextManager[None]]:
    return lambda: _active(made, active, counts)


def _pruning(module: Any, found: Converted, share: float) -> Callable[[], AbstractContextManager[None]]:
    keep = kept_neurons(found.importance, share)
    return lambda: neurons_off(list(module.model.layers), keep)


@contextmanager
def _active(made: Any, active: int, counts: Counts) -> Iterator[None]:
    set_active(made, active)
    try:
        yield
    finally:
        set_active(made, counts.active)
