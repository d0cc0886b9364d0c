"""What each policy loads on requests that it was not fitted on, beside a uniform router and the fewest loads possible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from moescope.routing.cache import Loads, Policy, Served, ranking, served, simulate, uniform_trace
from moescope.routing.trace import Part, RoutingTrace
from moescope.studies.residency.rows import LEAST, Halves, groups_of, laid_out, of_category, split
from moescope.studies.residency.settings import ResidencySettings
from moescope.study.paired import interval_over

UNIFORM = "uniform router"
POPULAR = "least recently used, with a guess by other requests"
NAMES = {
    "lru": "least recently used",
    "lfu": "least often used",
    "static": "pinned by other requests",
    "lookahead": "least recently used, with lookahead",
    "belady": "fewest possible",
}


@dataclass(frozen=True, eq=False)
class Outcome:
    """One policy at one capacity, by unit (U,) of requests, in the steps that do not read prompts, summed over layers."""

    needed: np.ndarray
    loaded: np.ndarray
    late: np.ndarray
    tokens: np.ndarray
    groups: np.ndarray
    by_layer: np.ndarray
    """(L,) share of the needed experts that are there"""

    @property
    def hits(self) -> np.ndarray:
        """(U,) whose mean is the share of needed experts that are there, and whose spread is that of its error."""
        return linear(self.needed - self.late, self.needed)

    @property
    def loads(self) -> np.ndarray:
        """(U,) whose mean is the experts loaded a token, all layers together."""
        return linear(self.loaded, self.tokens)


def linear(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """(U,) whose mean is sum(top) / sum(bottom); a unit's value is what it adds to that ratio, to first order."""
    ratio = top.sum() / bottom.sum()
    return np.asarray(ratio + (top - ratio * bottom) / bottom.mean())


def outcome(found: Loads, steps: Served, groups: np.ndarray) -> Outcome:
    """Of units that have such steps; ``groups``: of the trace's sequences."""
    needed, loaded, late = (part[:, ::2] for part in (found.needed, found.loaded, found.late))
    some = needed.sum(0) > 0
    first = np.unique(steps.unit, return_index=True)[1]
    # a unit of one request belongs to the request's group; one of several is its own
    names = groups[first] if len(first) == len(groups) else np.arange(steps.n_units).astype(str)
    by_layer = 1 - late.sum(1) / np.maximum(needed.sum(1), 1)
    needed, loaded, late = (part.sum(0)[some].astype(float) for part in (needed, loaded, late))
    return Outcome(needed, loaded, late, steps.tokens[::2][some].astype(float), names[some], by_layer)


@dataclass(frozen=True, eq=False)
class Cached:
    """All that is measured of caches; ``found`` by policy and capacity."""

    capacity: int
    found: dict[tuple[str, int], Outcome]
    best: Policy
    """of those an engine could run, the one that loads least on the requests that fit"""
    own: list[Outcome]
    """by category, pinned by the use of that category's requests that fit"""
    others: list[Outcome]
    """the same pinned by those of all other categories"""
    categories: list[str]
    pinned: np.ndarray
    """(L, E) rank of each expert by its use in the requests that fit"""


def measure(halves: Halves, settings: ResidencySettings, capacity: int, capacities: Sequence[int], seed: int,
            guessed: np.ndarray | None) -> Cached:  # fmt: skip
    """Simulate every policy on the requests that judge."""
    part = part_of(halves.judge, settings)
    pinned = ranking(laid_out(halves.fit.counts(part=part), halves.fit))
    found = _run(halves.judge, halves.groups, settings, capacities, pinned=pinned, guessed=guessed)
    if guessed is not None:
        ids, often = halves.judge.ids, np.argsort(pinned, axis=1)[:, : halves.judge.top_k].astype(halves.judge.ids.dtype)
        often = np.where(ids == halves.judge.empty, ids, often)
        run = _run(halves.judge, halves.groups, settings, (capacity,), ("lookahead",), guessed=often)
        found[POPULAR, capacity] = run["lookahead", capacity]
    drawn = uniform_trace(halves.judge, seed)
    for (policy, c), one in _run(drawn, halves.groups, settings, capacities, ("lru", "belady")).items():
        found[f"{UNIFORM}, {NAMES[policy]}", c] = one
    own: list[Outcome] = []
    others: list[Outcome] = []
    names: list[str] = []
    for category in np.unique(halves.categories):
        judge, fits = of_category(halves.judge, category), of_category(halves.fit, category)
        rest = of_category(halves.fit, category, others=True)
        groups = halves.groups[halves.categories == category]
        if not (len(fits) and len(rest) and len(judge)) or (part == "generated" and not judge.generated.any()):
            continue
        names.append(str(category))
        for of, kept in ((fits, own), (rest, others)):
            rank = ranking(laid_out(of.counts(part=part), of))
            kept.append(_run(judge, groups, settings, (capacity,), ("static",), pinned=rank)["static", capacity])
    return Cached(capacity, found, _best(halves.fit, settings, capacity, seed), own, others, names, pinned)


def part_of(trace: RoutingTrace, settings: ResidencySettings) -> Part:
    """The tokens whose steps are judged."""
    return "generated" if settings.prefill == "one step" and trace.generated.any() else "all"


def _run(
    trace: RoutingTrace,
    groups: np.ndarray,
    settings: ResidencySettings,
    capacities: Sequence[int],
    policies: Sequence[Policy] | None = None,
    *,
    pinned: np.ndarray | None = None,
    guessed: np.ndarray | None = None,
) -> dict[tuple[str, int], Outcome]:
    steps = served(trace, settings.batch, settings.prefill)
    every: list[Policy] = ["lru", "lfu", "static", *(["lookahead"] if guessed is not None else []), "belady"]  # type: ignore[list-item]
    loads = simulate(trace, steps, capacities, policies or every, pinned=pinned, guessed=guessed)
    return {key: outcome(one, steps, groups) for key, one in loads.items()}


def _best(fit: RoutingTrace, settings: ResidencySettings, capacity: int, seed: int) -> Policy:
    """Chosen among the requests that fit: half of their groups pin, the other half is served."""
    if len(np.unique(groups_of(fit))) < LEAST:
        return "lru"
    inner = split(fit, seed)
    rank = ranking(laid_out(inner.fit.counts(part=part_of(fit, settings)), fit))
    candidates: tuple[Policy, ...] = ("lru", "lfu", "static")
    found = _run(inner.judge, inner.groups, settings, (capacity,), candidates, pinned=rank)
    return min(candidates, key=lambda policy: float(found[policy, capacity].loaded.sum()))


def policy_table(found: Cached, settings: ResidencySettings, expert_bytes: int | None, steps: float, seed: int) -> pd.DataFrame:
    """Table ``policies``.

    Args:
        steps: a token; less than 1 where requests are served together.
    """
    rows = []
    for (policy, c), one in sorted(found.found.items(), key=lambda item: item[0][1]):
        low, high = interval_over(one.hits, one.groups, seed)
        least = found.found[f"{UNIFORM}, {NAMES['belady']}" if policy.startswith(UNIFORM) else "belady", c]
        row = {
            "policy": NAMES.get(policy, policy),
            "capacity": c,
            "hit_rate": float(one.hits.mean()),
            "low": low,
            "high": high,
            "loaded": float(one.loads.mean()),
            "over_fewest": float(one.loads.mean() / least.loads.mean()) if least.loaded.sum() else None,
        }
        if expert_bytes is not None:
            row |= {"mib": float(row["loaded"]) * expert_bytes / 2**20}  # type: ignore[arg-type]
            if settings.bandwidth is not None:
                seconds = float(row["loaded"]) * expert_bytes / (settings.bandwidth * 1e9)  # type: ignore[arg-type]
                slowest = max(seconds, settings.compute / 1e3 * steps)
                row |= {"tokens_per_second": 1 / slowest if slowest > 0 else None}
        rows.append(row)
    return pd.DataFrame(rows)


def layer_table(found: Cached, layers: tuple[int, ...]) -> pd.DataFrame:
    """Table ``layers``: hit rates at the judged capacity."""
    wanted = {"lru": "lru", "static": "static", "belady": "fewest", f"{UNIFORM}, {NAMES['lru']}": "uniform"}
    columns = {name: found.found[key, found.capacity].by_layer for key, name in wanted.items()}
    return pd.DataFrame({"layer": layers, **columns})


def domain_table(found: Cached, seed: int) -> pd.DataFrame:
    """Table ``domains``."""
    rows = []
    for pinned, outcomes in (("its own", found.own), ("the others", found.others)):
        for category, one in zip(found.categories, outcomes, strict=True):
            low, high = interval_over(one.hits, one.groups, seed)
            rows.append(
                {
                    "category": category,
                    "pinned_by": pinned,
                    "hit_rate": float(one.hits.mean()),
                    "low": low,
                    "high": high,
                    "loaded": float(one.loads.mean()),
                }
            )
    return pd.DataFrame(rows)


def pinned_table(trace: RoutingTrace, pinned: np.ndarray, capacity: int) -> pd.DataFrame:
    """Table ``pinned``: which experts to hold, of each layer the most used first."""
    order = np.argsort(pinned, axis=1)[:, :capacity]
    rows = [
        {"layer": layer, "rank": rank, "expert": int(expert)}
        for layer, n, experts in zip(trace.layers, trace.n_experts, order, strict=True)
        for rank, expert in enumerate(experts[: min(capacity, n)])
    ]
    return pd.DataFrame(rows)
