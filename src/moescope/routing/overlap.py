"""Which experts the same tokens have in two recordings of one layer."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Overlap(NamedTuple):
    """Of T tokens, in one layer."""

    shared: np.ndarray
    """(T,) float64: share of a token's experts in the first recording that it has in the second too"""
    same: np.ndarray
    """(T,) bool: the very same set"""
    chance: float
    """the mean of ``shared`` if the layer's choices were dealt out anew among the tokens"""


def overlap(left: np.ndarray, right: np.ndarray, n_experts: int) -> Overlap:
    """Compare the experts (T, K) that the same tokens were sent to; a slot without one holds a number beyond the layer's."""
    used, other = left < n_experts, right < n_experts
    sizes = used.sum(1)
    common = ((left[:, :, None] == right[:, None, :]).any(2) & used).sum(1)
    usage = [np.bincount(ids[one], minlength=n_experts) / len(ids) for ids, one in ((left, used), (right, other))]
    # expected where tokens are reshuffled: summed over experts, usage in one times usage in the other
    chance = float((usage[0] * usage[1]).sum() / np.maximum(sizes, 1).mean())
    return Overlap(common / np.maximum(sizes, 1), (common == sizes) & (other.sum(1) == sizes), chance)
