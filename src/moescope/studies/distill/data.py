"""Inputs and outputs of one MLP layer, split into train, validation and test.

A source has units (texts, or single vectors), each of one document, and loads the vectors of any units; :func:`batches`
shuffles units, then vectors within a bounded buffer. The order is a function of seed and epoch alone, so a run that was cut off
goes on exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from moescope.errors import InputError
from moescope.studies.distill.students import Scaling

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
_BLOCKS = 100  # of rows, where there are no documents


class Block(NamedTuple):
    """Vectors of some units."""

    x: Tensor
    """float32 (n, d_in)"""
    y: Tensor
    """float32 (n, d_out)"""
    tokens: Tensor | None
    """int64 (n,): the token that each vector stands at, where known"""
    documents: Tensor | None = None
    """int64 (n,): the document that each vector is of: what is independent of the others; None while it does not matter"""


class Pairs(Protocol):
    """A source of teacher inputs and outputs."""

    name: str
    buffer: int
    """vectors held at once"""

    def lengths(self, split: Split) -> np.ndarray:
        """int64 (units,): vectors of each unit of the split"""
        ...

    def load(self, split: Split, units: np.ndarray) -> Block:
        """The vectors of these units, unit after unit."""
        ...


class ArrayPairs:
    """Pairs held in memory; a unit is one vector.

    Blocks without documents are of vectors drawn one by one: each hundredth part of the rows then stands for a document.

    Raises:
        InputError: a value is not finite, sizes differ, or a split is empty.
    """

    def __init__(self, name: str, blocks: dict[Split, Block], *, buffer: int = 65536) -> None:
        self.name, self.buffer, self.blocks = name, buffer, dict(blocks)
        for split, block in blocks.items():
            x, y, _, documents = block
            if documents is None:
                self.blocks[split] = block._replace(documents=torch.arange(len(x)) * min(_BLOCKS, len(x)) // max(len(x), 1))
            if len(x) != len(y) or not len(x):
                raise InputError(f"{name}, {split}: {len(x)} inputs and {len(y)} outputs; give as many of both, at least one")
            for side, values in (("input", x), ("output", y)):
                bad = ~torch.isfinite(values).all(1)
                if bool(bad.any()):
                    raise InputError(f"{name}, {split}: {side} row {int(bad.nonzero()[0])} is not finite; remove it")

    def lengths(self, split: Split) -> np.ndarray:
        return np.ones(len(self.blocks[split].x), np.int64)

    def load(self, split: Split, units: np.ndarray) -> Block:
        where = torch.from_numpy(units)
        return Block(*(None if part is None else part[where] for part in self.blocks[split]))  # type: ignore[arg-type]


def count(pairs: Pairs, split: Split) -> int:
    """Vectors in a split."""
    return int(pairs.lengths(split).sum())


def blocks(pairs: Pairs, split: Split) -> Iterator[Block]:
    """Every vector of a split once, in order, at most ``pairs.buffer`` (or one unit) at a time."""
    for units in _cut(pairs, split, np.arange(len(pairs.lengths(split)))):
        yield pairs.load(split, units)


def whole(pairs: Pairs, split: Split, limit: int | None = None) -> Block:
    """The first ``limit`` vectors of a split (all: None), in one block."""
    parts: list[Block] = []
    held = 0
    for block in blocks(pairs, split):
        parts.append(block)
        held += len(block.x)
        if limit is not None and held >= limit:
            break
    x, y, tokens, documents = (None if s[0] is None else torch.cat(s)[:limit] for s in zip(*parts, strict=True))
    assert x is not None
    assert y is not None
    return Block(x, y, tokens, documents)


def batches(pairs: Pairs, size: int, *, seed: int, epoch: int, skip: int = 0) -> Iterator[Block]:
    """Shuffled training batches of exactly ``size`` vectors, one epoch.

    Units are shuffled, loaded up to the buffer, and the vectors in it shuffled again; what does not fill a batch at the end
    of a buffer is left out (another epoch leaves out others).

    Args:
        skip: leave out this many batches, without loading what lies wholly among them.
    """
    for units, mixed in _mixed(pairs, size, seed, epoch):
        if skip >= len(mixed):
            skip -= len(mixed)
            continue
        block = pairs.load("train", units)
        for rows in torch.from_numpy(mixed[skip:]):
            yield Block(block.x[rows], block.y[rows], None if block.tokens is None else block.tokens[rows])
        skip = 0


def batch_rows(pairs: ArrayPairs, size: int, *, seed: int, epoch: int) -> np.ndarray:
    """int64 (batches, size): the rows of the training block that :func:`batches` takes, in its order."""
    parts = [units[mixed] for units, mixed in _mixed(pairs, size, seed, epoch)]
    return np.concatenate([np.zeros((0, size), np.int64), *parts])


def _mixed(pairs: Pairs, size: int, seed: int, epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The units of each buffer, and the places in it of its batches, int64 (batches, size)."""
    lengths = pairs.lengths("train")
    order = np.random.default_rng([seed, epoch]).permutation(len(lengths))
    for number, units in enumerate(_cut(pairs, "train", order)):
        mixed = np.random.default_rng([seed, epoch, number]).permutation(int(lengths[units].sum()))
        yield units, mixed[: len(mixed) // size * size].reshape(-1, size)


def batches_per_epoch(pairs: Pairs, size: int, *, seed: int, epoch: int) -> int:
    """How many :func:`batches` gives; none where no buffer holds one."""
    lengths = pairs.lengths("train")
    order = np.random.default_rng([seed, epoch]).permutation(len(lengths))
    return sum(int(lengths[units].sum()) // size for units in _cut(pairs, "train", order))


def _cut(pairs: Pairs, split: Split, order: np.ndarray) -> Iterator[np.ndarray]:
    """Runs of units that fill the buffer."""
    lengths = pairs.lengths(split)
    ends = np.cumsum(lengths[order])
    start = 0
    while start < len(order):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + pairs.buffer, side="right")))
        yield order[start:stop]
        start = stop


def scaling_of(pairs: Pairs) -> Scaling:
    """Centre and scale of the training split, in one pass (float64 sums).

    Raises:
        InputError: inputs or outputs do not vary.
    """
    n = 0
    sums = [torch.zeros(()), torch.zeros(())]
    squares = [0.0, 0.0]
    for block in blocks(pairs, "train"):
        n += len(block.x)
        for i, values in enumerate((block.x, block.y)):
            wide = values.double()
            sums[i] = sums[i] + wide.sum(0)
            squares[i] += float(wide.square().sum())
    means = [total / n for total in sums]
    variance = [s / n - float(mean.square().sum()) for s, mean in zip(squares, means, strict=True)]
    for name, value, square in zip(("inputs", "outputs"), variance, squares, strict=True):
        if not value > 1e-12 * square / n:
            raise InputError(f"{pairs.name}: the {name} do not vary, so there is nothing to distil; use other text or layer")
    scale = [(value / len(mean)) ** 0.5 for value, mean in zip(variance, means, strict=True)]
    return Scaling(means[0].float(), scale[0], means[1].float(), scale[1])


def split_units(
    lengths: Sequence[int] | np.ndarray, shares: tuple[float, float, float], seed: int, documents: np.ndarray | None = None
) -> dict[Split, np.ndarray]:
    """Whole documents to each split so that vectors, not documents, have the given shares as nearly as can be.

    Documents are taken in random order; each goes to the split that lacks most of its share.

    Args:
        lengths: vectors of each unit.
        documents: of each unit; None: each is its own.

    Returns:
        The numbers of each split's units.

    Raises:
        InputError: there are too few documents for every split to get one.
    """
    if documents is not None:
        names, of = np.unique(documents, return_inverse=True)
        whole_ones = split_units(np.bincount(of, weights=lengths, minlength=len(names)), shares, seed)
        return {split: np.flatnonzero(np.isin(of, chosen)) for split, chosen in whole_ones.items()}
    lengths = np.asarray(lengths)
    target = np.asarray(shares) / sum(shares) * lengths.sum()
    filled = np.zeros(3)
    chosen: dict[Split, list[int]] = {split: [] for split in SPLITS}
    for unit in np.random.default_rng(seed).permutation(len(lengths)):
        at = int(np.argmax((target - filled) / target))
        chosen[SPLITS[at]].append(int(unit))
        filled[at] += lengths[unit]
    if any(not units for units in chosen.values()):
        raise InputError(
            f"{len(lengths)} documents cannot be split into train, validation and test; give more, parted by blank lines",
            "texts",
        )
    return {split: np.sort(np.asarray(units, np.int64)) for split, units in chosen.items()}
