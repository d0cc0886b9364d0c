"""What a cache of experts loads: policies over the steps in which a trace is served, all layers at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from moescope.kernels.loops import for_each
from moescope.routing.cache import kernels
from moescope.routing.cache.served import Served
from moescope.routing.drawn import uniform_ids
from moescope.routing.trace import RoutingTrace

Policy = Literal["lru", "lfu", "static", "lookahead", "belady"]
POLICIES: tuple[Policy, ...] = ("lru", "lfu", "static", "lookahead", "belady")


@dataclass(frozen=True, eq=False)
class Loads:
    """Of one policy at one capacity, by layer and cell (L, 2 U) int64: see :attr:`Served.cell`."""

    needed: np.ndarray
    """experts that the steps need: distinct ones of each"""
    loaded: np.ndarray
    """experts that are loaded"""
    late: np.ndarray
    """of those needed, the ones that are not there when their step begins; ``loaded`` but for a lookahead"""


def ranking(counts: np.ndarray) -> np.ndarray:
    """int64 (L, E): each expert's place by falling count; of equals the lower number first."""
    return np.argsort(np.argsort(-counts, axis=1, kind="stable"), axis=1)


def simulate(
    trace: RoutingTrace,
    steps: Served,
    capacities: Sequence[int],
    policies: Sequence[Policy] = ("lru",),
    *,
    pinned: np.ndarray | None = None,
    guessed: np.ndarray | None = None,
) -> dict[tuple[Policy, int], Loads]:
    """Serve a trace with room for C experts a layer between two steps, for each C and policy.

    Every layer begins empty. What a step needs and is not there is loaded, once, into a buffer that all layers share; which C
    experts of those held and those needed stay is the policy's choice:

    - ``lru``, ``lfu``: those used last; those used most since the beginning. What the step needs stays before all else.
    - ``static``: of each layer the C that ``pinned`` ranks first, once they have been needed.
    - ``lookahead``: as ``lru``, with the experts that were ``guessed`` loaded before the step.
    - ``belady``: those that are needed again soonest, which no engine knows: the fewest loads that are possible.

    Args:
        pinned: (L, max E) rank of each expert, see :func:`ranking`; for ``static``.
        guessed: (T, L, K) experts as in ``trace.ids``; for ``lookahead``.
    """
    shape = (len(trace.layers), 2 * steps.n_units)
    needed = np.zeros(shape, np.int64)
    keys: list[tuple[Policy, int]] = [(policy, c) for policy in policies for c in capacities]
    late = {key: np.zeros(shape, np.int64) for key in keys}
    early = {c: np.zeros(shape, np.int64) for c in capacities}

    def layer(i: int) -> None:
        n = trace.n_experts[i]
        flat, starts = _gathered(trace.ids[:, i], steps, n)
        kernels.lookups(starts, steps.cell, needed[i])
        for policy in policies:
            if policy in ("lru", "static"):
                hits = np.zeros((shape[1], n), np.int64)
                if policy == "lru":
                    kernels.lru_hits(flat, starts, steps.cell, n, hits)
                else:
                    assert pinned is not None
                    kernels.static_hits(flat, starts, steps.cell, pinned[i, :n], hits)
                for c in capacities:
                    late[policy, c][i] = needed[i] - hits[:, :c].sum(1)
            elif policy == "belady":
                following = np.empty(len(flat), np.int32)
                kernels.next_uses(flat, starts, n, following)
                for c in capacities:
                    kernels.belady_misses(flat, starts, steps.cell, following, n, c, late[policy, c][i])
            elif policy == "lfu":
                for c in capacities:
                    kernels.lfu_misses(flat, starts, steps.cell, n, c, late[policy, c][i])
            else:
                assert guessed is not None
                told = _gathered(guessed[:, i], steps, n)
                for c in capacities:
                    kernels.lookahead_counts(flat, starts, *told, steps.cell, n, c, late[policy, c][i], early[c][i])

    for_each(layer, range(len(trace.layers)))
    return {
        (policy, c): Loads(needed, late[policy, c] + early[c] if policy == "lookahead" else late[policy, c], late[policy, c])
        for policy, c in keys
    }


def _gathered(ids: np.ndarray, steps: Served, n: int) -> tuple[np.ndarray, np.ndarray]:
    flat = np.empty(ids.size, ids.dtype)
    starts = np.empty(len(steps.bounds), np.int64)
    used = kernels.gather(ids, steps.order, steps.bounds, n, flat, starts)
    return flat[:used], starts


def uniform_trace(trace: RoutingTrace, seed: int) -> RoutingTrace:
    """The same tokens under a router that takes as many distinct experts of each layer, any set as likely as any other."""
    ids = np.full(trace.ids.shape, trace.empty, trace.ids.dtype)
    seeds = np.random.default_rng(seed).integers(2**62, size=len(trace.layers))

    def layer(i: int) -> None:
        drawn = np.full((len(trace), trace.top_k), trace.empty, trace.ids.dtype)
        used = (trace.ids[:, i] != trace.empty).sum(1)
        uniform_ids(used, trace.n_experts[i], int(seeds[i]), drawn)
        ids[:, i] = drawn

    for_each(layer, range(len(trace.layers)))
    return replace(trace, ids=ids, weights=None, scores=None)
