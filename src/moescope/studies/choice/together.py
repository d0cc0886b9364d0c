"""Which neurons of a layer are chosen together on one half of the texts, and whether they are on the other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from moescope.routing.nulls import recurring
from moescope.routing.together import Halves, Together, halves_of
from moescope.routing.trace import RoutingTrace
from moescope.studies.choice.settings import ChoiceSettings
from moescope.study.protocol import Context

RATES, TOKENS = "rates", "tokens"
FEWEST = 48  # tokens of each half that recur, below which a draw among equal ones says little


@dataclass(frozen=True)
class Evidence:
    """What the claims on what is chosen together follow from, means over layers.

    Attributes:
        measured, draws: on all tokens looked at, and where choices are dealt out anew.
        recurring: the same two on tokens that recur, dealt out among equal ones; None where too few do.
        share: of the tokens looked at, those that recur.
        layers: that have neurons enough whose choice varies.
    """

    measured: Together
    draws: list[Together]
    recurring: tuple[Together, list[Together]] | None
    share: float
    layers: int


def together_table(
    trace: RoutingTrace, second: np.ndarray, settings: ChoiceSettings, context: Context
) -> tuple[pd.DataFrame, Evidence | None]:
    """Table ``together``; the evidence is None where no layer has neurons enough whose choice varies.

    Args:
        second: bool (sequences,): those of the second half.
    """
    seed = context.run.seed
    rows = halves_of(trace, second, settings.tokens, seed)
    assert trace.tokens is not None
    labels = [trace.tokens[half] for half in rows]
    moved = [recurring(label) for label in labels]
    enough = min(int(m.sum()) for m in moved) >= FEWEST
    again = tuple(half[m] for half, m in zip(rows, moved, strict=True))
    strata = tuple(label[m] for label, m in zip(labels, moved, strict=True))
    table, found, among, changed = [], [], [], []
    for at, layer in enumerate(context.steps("what is chosen together", trace.layers)):
        ids, n_experts = trace.ids[:, at], trace.n_experts[at]
        options = {"n_groups": settings.groups, "most": settings.neurons, "seed": seed}
        halves = Halves(ids, n_experts, rows, **options)
        row = {"layer": layer, "neurons": n_experts, "looked_at": len(halves.experts), "left_out": halves.left_out}
        if halves.usable:
            measured, groups = halves.measured()
            draws = halves.drawn(groups, None, settings.n_draws, seed)
            found.append((measured, draws))
            changed += [drawn.pairs != measured.pairs for drawn in draws]
            row |= {"pairs": measured.pairs, "groups": measured.groups, **_span(RATES, draws)}
        few = Halves(ids, n_experts, again, **options) if enough else None
        if few is not None and halves.usable and few.usable:
            measured, groups = few.measured()
            draws = few.drawn(groups, strata, settings.n_draws, seed)
            among.append((measured, draws))
            row |= {"recurring_pairs": measured.pairs, "recurring_groups": measured.groups, **_span(TOKENS, draws)}
        table.append(row)
    if not found:
        return pd.DataFrame(table), None
    evidence = f"{sum(changed)} of {len(changed)} draws differ"
    context.control("choices dealt out anew", differs=any(changed), evidence=evidence)
    share = float(np.concatenate(moved).mean())
    every = _mean(found), _draws(found)
    equal = (_mean(among), _draws(among)) if among else None
    return pd.DataFrame(table), Evidence(*every, equal, share, len(found))


def _span(name: str, draws: list[Together]) -> dict[str, float]:
    return {
        f"{name}_pairs": float(np.mean([d.pairs for d in draws])),
        f"{name}_groups": float(np.mean([d.groups for d in draws])),
    }


def _mean(found: list[tuple[Together, list[Together]]]) -> Together:
    return _average([measured for measured, _ in found])


def _draws(found: list[tuple[Together, list[Together]]]) -> list[Together]:
    """A draw of all layers each."""
    return [_average(list(parts)) for parts in zip(*(draws for _, draws in found), strict=True)]


def _average(parts: list[Together]) -> Together:
    return Together(float(np.mean([p.pairs for p in parts])), float(np.mean([p.groups for p in parts])))
