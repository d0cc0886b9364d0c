"""Two checkpoints, or two precisions, of one model: do the same experts still do the same?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from moescope.routing.overlap import overlap
from moescope.routing.trace import RoutingTrace


@dataclass(frozen=True, eq=False)
class Counterparts:
    """What two traces of the same token ids say, layer by layer; arrays of shape (L,)."""

    same_set: np.ndarray
    """share of tokens whose set of experts is the same"""
    overlap: np.ndarray
    """mean share of a token's experts that it has in both"""
    chance: np.ndarray
    """the same if each layer's choices were dealt out anew among the tokens"""
    own_match: np.ndarray
    """share of experts that are their own best counterpart, by the tokens they receive (an optimal assignment)"""
    cosine: np.ndarray
    """mean over prompts of the cosine of their two signatures"""
    permuted_cosine: np.ndarray
    """the same with B's experts renumbered at random: what aligned numbers are worth"""
    kept: np.ndarray
    """share of experts that this renumbering leaves their number"""


def same_shape(a: RoutingTrace, b: RoutingTrace) -> bool:
    """Whether expert numbers of the two could mean the same: equal layers, numbers of experts, and token ids."""
    if a.layers != b.layers or a.n_experts != b.n_experts or a.tokens is None or b.tokens is None:
        return False
    return np.array_equal(a.tokens, b.tokens) and np.array_equal(a.sequence, b.sequence)


def counterparts(a: RoutingTrace, b: RoutingTrace, *, n_permutations: int = 20, seed: int = 0) -> Counterparts:
    """Compare the routing of every token in two models for which :func:`same_shape` holds."""
    rng = np.random.default_rng(seed)
    shares_a, shares_b = a.counts(), b.counts()  # (N, L, E)
    found: dict[str, list[float]] = {name: [] for name in Counterparts.__dataclass_fields__}
    for layer, n in enumerate(a.n_experts):
        left, right = _chosen(a.ids[:, layer], n), _chosen(b.ids[:, layer], n)  # (T, E) bool
        shared, same, chance = overlap(a.ids[:, layer], b.ids[:, layer], n)
        found["same_set"].append(float(same.mean()))
        found["overlap"].append(float(shared.mean()))
        found["chance"].append(chance)
        together = left.T.astype(np.float64) @ right  # (E, E) tokens that A sends to i and B to j
        joint = together / np.maximum(np.sqrt(np.outer(left.sum(0), right.sum(0))), 1)
        rows, columns = linear_sum_assignment(-joint)
        found["own_match"].append(float((rows == columns).mean()))
        found["cosine"].append(float(_cosine(shares_a[:, layer, :n], shares_b[:, layer, :n]).mean()))
        orders = [rng.permutation(n) for _ in range(n_permutations)]
        permuted = [_cosine(shares_a[:, layer, :n], shares_b[:, layer, order]).mean() for order in orders]
        found["permuted_cosine"].append(float(np.mean(permuted)))
        found["kept"].append(float(np.mean([order == np.arange(n) for order in orders])))
    return Counterparts(**{name: np.array(values) for name, values in found.items()})


def _chosen(ids: np.ndarray, n: int) -> np.ndarray:
    """bool (T, E) of ids (T, K)."""
    table = np.zeros((len(ids), n), dtype=bool)
    used = ids < n
    table[np.nonzero(used)[0], ids[used]] = True
    return table


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N,) of rows (N, E)."""
    length = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray((a * b).sum(1) / np.maximum(length, 1e-300))
