"""From what was measured with neurons kept alone to faithfulness, its areas and their intervals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np

from moescope.stats import bootstrap_sums, expanded_percentiles, wilson
from moescope.studies.circuits.keep import ORDERS, KeptCircuit, KeptScores, areas, share_that_keeps
from moescope.studies.circuits.spread import between
from moescope.study.paired import interval_p, joined
from moescope.study.verdicts import beyond_draws

RANDOM = "random"
_BOOT = 1000


@dataclass(frozen=True)
class _Curve:
    """Faithfulness (K,) of an order, ``drawn`` (B, K) on groups drawn anew; ``sets`` (R, K) if it is the mean of R orders."""

    name: str
    value: np.ndarray
    drawn: np.ndarray
    sets: np.ndarray | None = None


def kept_rows(
    task: str, circuit: KeptCircuit, target: str, scores: KeptScores, groups: np.ndarray, *, seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of the tables ``kept``, one for each order and size, and ``kept_area``, one for each order.

    Intervals are over groups (N,); those of random orders are what 95 % of the orders give.
    """
    units, n_groups = circuit.units, len(np.unique(groups))
    curves = _curves(scores, groups, seed)
    known = between(scores.everything, scores.none, groups)
    about = {
        "units": units.n,
        "neurons": units.columns.n,
        "everything": float(scores.everything.mean()),
        "none": float(scores.none.mean()),
        **{"known": known.value, "known_low": known.low, "known_high": known.high},
        "n_random": len(circuit.random),
        "n": len(groups),
    }
    figures: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "cpr": lambda f: areas(f, circuit.sizes, units.n)[0],
        "cmd": lambda f: areas(f, circuit.sizes, units.n)[1],
        "keeps": lambda f: share_that_keeps(f, circuit.sizes, units.n),
    }
    sizes, areas_of = [], []
    for i, curve in enumerate(curves):
        head = {"task": task, "mode": circuit.mode, "target": target, "order": curve.name}
        kept = scores.kept[i] if curve.sets is None else scores.kept[len(ORDERS) :].mean(0)
        for j, size in enumerate(circuit.sizes):
            own: dict[str, Any] = {"k": size, "share": size / units.n, "value": float(kept[j].mean())}
            at = itemgetter((..., j))
            own |= _figure("faithfulness", curve.value[j], _spread(curve, at), n_groups, curve)
            sizes.append(head | own | _gap(curves[0], curve, at, n_groups))
        row: dict[str, Any] = {}
        for name, figure in figures.items():
            many = _spread(curve, figure)
            value = np.median(many) if name == "keeps" and curve.sets is not None else figure(curve.value)
            row |= _figure(name, value, many, n_groups, curve)
        areas_of.append(head | row | _gap(curves[0], curve, figures["cpr"], n_groups) | about)
    return sizes, areas_of


def _spread(curve: _Curve, figure: Any) -> np.ndarray:
    return np.asarray(figure(curve.drawn if curve.sets is None else curve.sets))


def _figure(name: str, value: Any, many: np.ndarray, n_groups: int, curve: _Curve) -> dict[str, float]:
    low, high = expanded_percentiles(many, n_groups) if curve.sets is None else np.quantile(many, [0.025, 0.975])
    if name == "faithfulness" and curve.sets is None and low == high:  # resampling what does not vary claims certainty
        low, high = low - wilson(0, n_groups)[1], high + wilson(0, n_groups)[1]
    short = "" if name == "faithfulness" else f"{name}_"
    return {name: float(value), f"{short}low": float(low), f"{short}high": float(high)}


def _gap(circuit: _Curve, other: _Curve, figure: Any, n_groups: int) -> dict[str, float]:
    """By how much a figure of the circuit's curve is more than another's on the same texts; NaN for the circuit itself.

    Beside random orders, which were drawn widens the interval, and p is the larger of that over texts and that over orders.
    """
    if other is circuit:
        return dict.fromkeys(("gap", "gap_low", "gap_high", "p"), math.nan)
    more = float(figure(circuit.value) - figure(other.value))
    low, high = expanded_percentiles(figure(circuit.drawn) - figure(other.drawn), n_groups)
    p = interval_p(more, low, high)
    if other.sets is not None:
        sets = beyond_draws(float(figure(circuit.value)), figure(other.sets), "", 0.0)
        low, high = joined(more, (low, high), (sets.low, sets.high))
        p = max(p, sets.p or 0.0)
    return {"gap": more, "gap_low": low, "gap_high": high, "p": p}


def _curves(scores: KeptScores, groups: np.ndarray, seed: int) -> list[_Curve]:
    """The orders by name, and all random ones."""
    first = _faithfulness(scores.kept.mean(-1), scores.none.mean(), scores.everything.mean())  # (O, K)
    random = first[len(ORDERS) :]
    kept = np.concatenate([scores.kept[: len(ORDERS)], scores.kept[len(ORDERS) :].mean(0, keepdims=True)])
    columns = np.concatenate([[scores.none, scores.everything], kept.reshape(-1, kept.shape[-1]), [np.ones(len(groups))]])
    _, code = np.unique(groups, return_inverse=True)
    sums = np.zeros((int(code.max()) + 1, len(columns)))
    np.add.at(sums, code, columns.T)
    drawn = bootstrap_sums(sums, n_boot=_BOOT, seed=seed)
    means = drawn[:, :-1] / drawn[:, -1:]
    f = _faithfulness(means[:, 2:], means[:, :1], means[:, 1:2]).reshape(len(drawn), *kept.shape[:2])
    named = [_Curve(name, first[i], f[:, i]) for i, name in enumerate(ORDERS)]
    return [*named, _Curve(RANDOM, random.mean(0), f[:, -1], random)]


def _faithfulness(kept: np.ndarray, none: Any, everything: Any) -> np.ndarray:
    """NaN where all neurons give what none give."""
    known = np.asarray(everything - none)
    return np.asarray((kept - none) / np.where(known == 0, np.nan, known))
