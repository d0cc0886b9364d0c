"""Predictors that need no neuron: what a student must beat before its size means anything."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from moescope.studies.distill.data import SPLITS, Block, Pairs, Split, blocks
from moescope.studies.distill.evaluate import ResidualSums

_RIDGES = (1e-6, 1e-4, 1e-2, 1.0)


def baseline_fvu(pairs: Pairs, embedding: Tensor | None = None) -> dict[str, float]:
    """FVU on the test split of: the closed-form linear map, the mean output of the token, a linear map from the token's
    embedding (vocabulary, width). The last two only where token ids are known."""
    found = {"linear": linear_fvu(pairs, lambda block: block.x)}
    first = next(blocks(pairs, "train"))
    if first.tokens is not None:
        found["token mean"] = token_mean_fvu(pairs)
        if embedding is not None:
            found["token embedding, linear"] = linear_fvu(pairs, lambda block: embedding[_tokens(block)])
    return found


def linear_fvu(pairs: Pairs, inputs: Callable[[Block], Tensor]) -> float:
    """FVU on test of ridge regression in closed form; the penalty (relative to the mean variance) is chosen on validation."""
    gram = cross = torch.zeros((), dtype=torch.float64)
    for block in blocks(pairs, "train"):
        x, y = _one(inputs(block)).double(), block.y.double()
        gram, cross = gram + x.T @ x, cross + x.T @ y
    penalty = torch.ones(len(gram), dtype=torch.float64) * float(gram.diagonal()[:-1].mean())
    penalty[-1] = 0  # the intercept is free
    weights = [torch.linalg.lstsq(gram + torch.diag(ridge * penalty), cross).solution.float() for ridge in _RIDGES]

    def error(weight: Tensor, split: Split) -> float:
        return _fvu(pairs, split, lambda block: _one(inputs(block)) @ weight)

    return error(min(weights, key=lambda w: error(w, "validation")), "test")


def token_mean_fvu(pairs: Pairs) -> float:
    """FVU on test of each token's mean output over the training split; an unseen token gets the mean of all."""
    size = 1 + max(int(_tokens(b).max()) for split in SPLITS for b in blocks(pairs, split))
    width = next(blocks(pairs, "train")).y.shape[1]
    total, seen = torch.zeros(size, width, dtype=torch.float64), torch.zeros(size)
    for block in blocks(pairs, "train"):
        total.index_add_(0, _tokens(block), block.y.double())
        seen += torch.bincount(_tokens(block), minlength=size)
    table = torch.where(seen[:, None] > 0, total / seen.clamp(min=1)[:, None], total.sum(0) / seen.sum()).float()
    return _fvu(pairs, "test", lambda block: table[_tokens(block)])


def _tokens(block: Block) -> Tensor:
    assert block.tokens is not None
    return block.tokens


def _one(x: Tensor) -> Tensor:
    """With a column of ones, for the intercept."""
    return torch.cat([x, torch.ones(len(x), 1)], dim=1)


def _fvu(pairs: Pairs, split: Split, predict: Callable[[Block], Tensor]) -> float:
    sums = ResidualSums()
    for block in blocks(pairs, split):
        sums.add(block.y, predict(block))
    return sums.fvu()
