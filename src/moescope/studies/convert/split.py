"""Which neurons of an MLP become which expert."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from moescope.errors import InputError
from moescope.studies.convert.balanced import FREE, balanced_kmeans
from moescope.studies.convert.calibration import contributions
from moescope.studies.convert.settings import Method

_SKETCH = 512  # dimensions to which a neuron's record of working tokens is projected
_WORKS = 0.1  # of a token's neurons, at most: by more of them clusters lost more (docs/convert.md)


@dataclass(frozen=True, eq=False)
class Split:
    """The neurons of one MLP in their new places; every neuron in exactly one."""

    shared: np.ndarray
    """int64 (shared · w,): work on every token"""
    routed: np.ndarray
    """int64 (routed experts, w)"""


class Coactivation:
    """How much each neuron writes, and with which others it works; fed with activations piece by piece, in flat memory.

    A neuron works on a token when its contribution is among the ``share`` largest of the token's, a tenth at most. Two neurons
    are alike when they work on the same tokens (cosine of their 0/1 records over all tokens). The records themselves would be
    tokens × neurons; a random projection keeps their inner products (Johnson & Lindenstrauss 1984) in ``_SKETCH`` numbers each.
    """

    def __init__(self, down: Tensor, share: float, seed: int = 0) -> None:
        self._down = down
        self._count = max(1, round(min(share, _WORKS) * down.shape[1]))
        self._draw = torch.Generator().manual_seed(seed)
        self._squares = torch.zeros(down.shape[1])
        self.sketch = torch.zeros(down.shape[1], _SKETCH)
        self.tokens = 0

    def add(self, h: Tensor) -> None:
        """h (T, I): the neurons' activations on T more tokens."""
        written = contributions(h, self._down)
        works = torch.zeros_like(written).scatter_(1, written.topk(self._count, 1).indices, 1.0)
        self._squares += written.square().sum(0)
        self.sketch += works.T @ torch.randn(len(h), _SKETCH, generator=self._draw)
        self.tokens += len(h)

    @property
    def importance(self) -> Tensor:
        """(I,): mean squared contribution."""
        return self._squares / max(1, self.tokens)


def split_neurons(
    found: Coactivation,
    *,
    experts: int,
    shared: int,
    method: Method,
    circuits: Sequence[Iterable[int]] = (),
    seed: int = 0,
) -> Split:
    """Cut the I neurons into ``experts`` equal slices, ``shared`` of them always on.

    The shared ones are those that contribute most on average, except under ``random``. The neurons of
    a circuit are seated together, in as few experts as hold them, before the others are clustered around them.
    """
    n = len(found.importance)
    width = n // experts
    rng = np.random.default_rng(seed)
    if method == "random":
        order = rng.permutation(n)
        return Split(np.sort(order[: shared * width]), np.sort(order[shared * width :].reshape(-1, width), axis=1))
    together = [np.fromiter(dict.fromkeys(c), np.int64) for c in circuits]
    kept = np.concatenate([*together, np.empty(0, np.int64)]).astype(np.int64)
    worth = found.importance.numpy().copy()
    worth[kept] = -1  # a circuit's neurons are routed together, whatever they contribute
    always = np.sort(np.argsort(-worth, kind="stable")[: shared * width])
    if np.isin(always, kept).any():
        raise InputError(f"{len(np.unique(kept))} neurons of one layer leave too few for {shared} shared experts", "circuits")
    rest = np.setdiff1d(np.arange(n), always)
    fixed = np.full(len(rest), FREE)
    seat = 0
    for neurons in together:
        places = np.searchsorted(rest, neurons)
        places = places[fixed[places] == FREE]  # a neuron of two circuits stays with the first
        for start in range(0, len(places), width):
            if seat >= experts - shared:
                raise InputError(f"those of one layer need more than the {experts - shared} routed experts", "circuits")
            fixed[places[start : start + width]] = seat
            seat += 1
    labels = balanced_kmeans(found.sketch.numpy()[rest], experts - shared, width, fixed=fixed, seed=seed)
    return Split(always, np.stack([rest[labels == e] for e in range(experts - shared)]))
