"""From a trace to tables: how far its text reaches, and what carries each category."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binom

from moescope.routing.domains import Carriers, CellShares, HeldOut, carriers, cell_shares, held_out
from moescope.routing.reach import Needed, Rates, even_needed, expert_rates, tokens_needed
from moescope.routing.subject import Subject
from moescope.routing.trace import RoutingTrace
from moescope.studies.targets.settings import TargetSettings
from moescope.study.verdicts import significant

ALL = "all"
_DRAWS = 200


@dataclass(frozen=True, eq=False)
class Reached:
    """One layer, or all together."""

    rates: Rates
    needed: Needed
    even: float
    """tokens that an even router needs"""
    even_share: float
    """of the experts, that an even router reaches with as many tokens"""
    row: dict[str, Any]


def documents(trace: RoutingTrace) -> np.ndarray:
    """(sequences,) what is independent: the sequence's group, or the sequence."""
    names = [s.group or s.id for s in trace.sequences]
    return np.asarray(np.unique(names, return_inverse=True)[1])


def reach(trace: RoutingTrace, settings: TargetSettings, seed: int) -> list[Reached]:
    """Each layer, then all layers together."""
    unit = documents(trace)
    tokens = np.bincount(unit, trace.lengths).astype(np.int64)
    counts = np.zeros((len(tokens), len(trace.layers), max(trace.n_experts)))
    np.add.at(counts, unit, trace.counts())
    parts = [counts[:, at, :n] for at, n in enumerate(trace.n_experts)]
    chosen = [float(part.sum() / max(tokens.sum(), 1)) for part in parts]
    found = [
        _reached(str(layer), [part], [k], tokens, settings, seed)
        for layer, part, k in zip(trace.layers, parts, chosen, strict=True)
    ]
    return [*found, _reached(ALL, parts, chosen, tokens, settings, seed)]


def _reached(
    name: str, parts: list[np.ndarray], chosen: list[float], tokens: np.ndarray, settings: TargetSettings, seed: int
) -> Reached:
    counts = np.concatenate(parts, axis=1)
    n_experts, total = counts.shape[1], int(tokens.sum())
    spare = int((1 - settings.share) * n_experts + 1e-9)
    rates = expert_rates(counts, tokens)
    needed = tokens_needed(counts, tokens, rates, settings.least, settings.sure, spare=spare, seed=seed)
    # an even router's layers are alike and independent: as many experts as all have, by the most selective one
    share = min(k / part.shape[1] for k, part in zip(chosen, parts, strict=True))
    even = even_needed(n_experts, share * n_experts, settings.least, settings.sure, spare)
    rng = np.random.default_rng(seed)
    even_fewest = np.median(rng.binomial(total, share, (_DRAWS, n_experts)).min(1))
    row = {
        "layer": name,
        "experts": n_experts,
        "reached": int((rates.reached >= settings.least).sum()),
        "unseen": rates.unseen,
        "fewest": int(rates.reached.min()),
        "even_fewest": float(even_fewest),
        "spread": float(np.median(rates.spread)),
        "needed": _finite(needed.tokens),
        "needed_low": _finite(needed.low),
        "needed_high": _finite(needed.high),
        "even_needed": even,
        "new": rates.new,
    }
    return Reached(rates, needed, even, float(binom.sf(settings.least - 1, total, share)), row)


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


@dataclass(frozen=True, eq=False)
class Carried:
    """What the categories' texts are carried by."""

    categories: tuple[str, ...]
    cells: tuple[int, ...]
    """of each category"""
    unit: str
    shares: CellShares
    found: Carriers
    held: HeldOut | None

    def carries(self, alpha: float) -> np.ndarray:
        """(C, M) bool: experts that carry a category, family-wise."""
        return np.asarray(np.vectorize(lambda p: significant(float(p), alpha))(self.found.p))


def carried(subject: Subject, settings: TargetSettings, seed: int) -> Carried:
    """The experts of each category."""
    cells = subject.cells()
    labels = cells.labels(settings.n_permutations, seed)
    shares = cell_shares(subject.trace, cells)
    return Carried(
        tuple(subject.categories),
        tuple(int((cells.y == c).sum()) for c in range(len(subject.categories))),
        cells.unit,
        shares,
        carriers(shares, labels),
        held_out(shares, labels, settings.per_layer, seed),
    )


def expert_table(trace: RoutingTrace, everywhere: Rates) -> pd.DataFrame:
    """Table ``experts``, in the order of the rates of all layers together."""
    return _names(trace).assign(
        tokens=everywhere.reached.astype(np.int64),
        documents=everywhere.seen_in,
        rate=everywhere.rate,
        low=everywhere.low,
        high=everywhere.high,
    )


def _names(trace: RoutingTrace) -> pd.DataFrame:
    layer, number = trace.experts
    return pd.DataFrame({"layer": layer, "expert": number})


def carrier_table(trace: RoutingTrace, found: Carried, alpha: float) -> pd.DataFrame:
    """Table ``carriers``: each expert with the category that it receives most beyond the others."""
    p, lift, beyond = found.found.p, found.found.lift, found.found.p_beyond
    # permutations bound p, and of equal ones the larger lift says more
    best = np.where(p <= p.min(0) + 1e-12, lift, -1).argmax(0)
    at = best, np.arange(len(best))
    return _names(trace).assign(
        category=[found.categories[c] for c in best],
        lift=np.where(np.isfinite(lift[at]), lift[at], np.nan),
        p_family=p[at],
        p_tokens=np.nan if beyond is None else beyond[at],
        carries=found.carries(alpha)[at],
    )


def domain_table(found: Carried, alpha: float) -> pd.DataFrame:
    """Table ``domains``."""
    carries, rows = found.carries(alpha), []
    beyond, held = found.found.p_beyond, found.held
    for c, category in enumerate(found.categories):
        past = None if beyond is None else int((carries[c] & (beyond[c] <= alpha)).sum())
        row = {"category": category, "cells": found.cells[c], "carriers": int(carries[c].sum()), "beyond_tokens": past}
        gap, null = (None, None) if held is None else (held.gap[c], held.null[:, c])
        token = None if held is None or held.beyond is None else held.beyond[c]
        row |= {
            "gap": None if gap is None else float(gap),
            "null_mean": None if null is None else float(null.mean()),
            "null_high": None if null is None else float(np.quantile(null, 0.975)),
            "token_gap": None if token is None else token.value,
            "token_low": None if token is None else token.low,
            "token_high": None if token is None else token.high,
        }
        rows.append(row)
    return pd.DataFrame(rows)
