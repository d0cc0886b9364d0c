"""Which neurons of a layer are chosen together on one half of the texts, and whether they are on the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from moescope.routing.nulls import recurring
from moescope.routing.together import Halves, Together, halves_of
from moescope.routing.trace import RoutingTrace
from moescope.studies.choice.halvings import FEW, Beside
from moescope.studies.choice.settings import ChoiceSettings
from moescope.study.protocol import Context

FEWEST = 48  # tokens of each half that recur, below which a draw among equal ones says little
Seen = tuple[Together, list[Together]]
"""A layer's figures, and the draws of their null."""
Pair = tuple[np.ndarray, np.ndarray]
Halving = tuple[Pair, Pair | None]
"""Rows of two halves; and the token ids among equal ones of which alone choices are traded."""


@dataclass(frozen=True)
class Evidence:
    """What the claims on what is chosen together follow from, means over layers, by name of the figure.

    Attributes:
        rates: beside choices dealt out anew.
        tokens: on tokens that recur, beside choices dealt out among equal ones; None where too few recur.
        share: of the tokens looked at, those that recur.
        layers: that have neurons enough whose choice varies.
    """

    rates: dict[str, Beside]
    tokens: dict[str, Beside] | None
    share: float
    layers: int


@dataclass(frozen=True)
class Looked:
    """The tokens of two halves that are looked at, and those among them that recur in their half."""

    rows: Pair
    again: Pair
    strata: Pair
    """token ids of the latter"""

    @property
    def enough(self) -> bool:
        return min(map(len, self.again)) >= FEWEST

    @property
    def share(self) -> float:
        return sum(map(len, self.again)) / sum(map(len, self.rows))


def looked_at(trace: RoutingTrace, second: np.ndarray, tokens: int, seed: int) -> Looked:
    assert trace.tokens is not None
    rows = halves_of(trace, second, tokens, seed)
    again = [half[recurring(trace.tokens[half])] for half in rows]
    strata = [trace.tokens[half] for half in again]
    return Looked(rows, (again[0], again[1]), (strata[0], strata[1]))


def together_table(
    trace: RoutingTrace, seconds: Sequence[np.ndarray], settings: ChoiceSettings, context: Context
) -> tuple[pd.DataFrame, Evidence | None]:
    """Table ``together``, of the first halving; the evidence is None where no layer has neurons enough whose choice varies.

    Args:
        seconds: of each halving bool (sequences,): those of the second half.
    """
    seed = context.run.seed
    looked = [looked_at(trace, second, settings.tokens, seed + i) for i, second in enumerate(seconds)]
    everything: list[Halving] = [(each.rows, None) for each in looked]
    among: list[Halving] = [(each.again, each.strata) for each in looked] if all(each.enough for each in looked) else []
    table: list[dict[str, float]] = []
    rates: list[list[Seen]] = []
    tokens: list[list[Seen]] = []
    for at, layer in enumerate(context.steps("what is chosen together", trace.layers)):
        first = _halves(trace, at, looked[0].rows, settings, seed)
        row = {"layer": layer, "neurons": trace.n_experts[at], "looked_at": len(first.experts), "left_out": first.left_out}
        found = _seen(trace, at, everything, settings, seed)
        if found:
            rates.append(found)
            row |= _columns("", "rates", found[0])
            few = _seen(trace, at, among, settings, seed)
            if few:
                tokens.append(few)
                row |= _columns("recurring_", "tokens", few[0])
        table.append(row)
    if not rates:
        return pd.DataFrame(table), None
    changed = [drawn.pairs != found[0][0].pairs for found in rates for drawn in found[0][1]]
    context.control("choices dealt out anew", differs=any(changed), evidence=f"{sum(changed)} of {len(changed)} draws differ")
    share = float(np.mean([each.share for each in looked]))
    return pd.DataFrame(table), Evidence(_beside(rates), _beside(tokens) if tokens else None, share, len(rates))


def _halves(trace: RoutingTrace, at: int, rows: Pair, settings: ChoiceSettings, seed: int) -> Halves:
    return Halves(trace.ids[:, at], trace.n_experts[at], rows, n_groups=settings.groups, most=settings.neurons, seed=seed)


def _seen(trace: RoutingTrace, at: int, halvings: Sequence[Halving], settings: ChoiceSettings, seed: int) -> list[Seen]:
    """One layer on every halving; nothing where on one of them too few neurons' choices vary."""
    found = []
    for turn, (rows, strata) in enumerate(halvings):
        halves = _halves(trace, at, rows, settings, seed)
        if not halves.usable:
            return []
        measured, groups = halves.measured()
        found.append((measured, halves.drawn(groups, strata, FEW if turn else settings.n_draws, seed)))
    return found


def _columns(own: str, null: str, seen: Seen) -> dict[str, float]:
    names = ("pairs", "groups")
    return {f"{own}{name}": getattr(seen[0], name) for name in names} | {
        f"{null}_{name}": float(np.mean([getattr(d, name) for d in seen[1]])) for name in names
    }


def _beside(layers: list[list[Seen]]) -> dict[str, Beside]:
    """Means over layers, a draw of all layers each."""

    def of(name: str) -> Beside:
        measured = np.array([[getattr(found[0], name) for found in layer] for layer in layers])  # (L, H)
        draws = [np.array([[getattr(d, name) for d in layer[h][1]] for layer in layers]).mean(0) for h in range(len(layers[0]))]
        return Beside(measured.mean(0), np.array([drawn.mean() for drawn in draws]), draws[0])

    return {name: of(name) for name in ("pairs", "groups")}
