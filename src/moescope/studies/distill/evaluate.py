"""How well a predictor does on a split, and how its experts share the load."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from moescope.studies.distill.data import Pairs, Split, blocks
from moescope.studies.distill.students import Student

_CHUNK = 2048


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Of a student on one split."""

    fvu: float
    """fraction of variance unexplained: Σ‖y − ŷ‖² / Σ‖y − ȳ‖², with ȳ the split's own mean output"""
    tokens: int
    load: np.ndarray | None
    """float64 (experts,): the share of tokens that each expert ran for; None for a dense student"""
    documents: dict[int, tuple[int, float]] = field(default_factory=dict)
    """by document: its vectors, and its part of the FVU (the parts add up to it)"""

    @property
    def dead(self) -> float | None:
        """Share of experts that ran for no token of the split."""
        return None if self.load is None else float((self.load == 0).mean())

    @property
    def load_entropy(self) -> float | None:
        """Entropy of the load over its maximum log(experts): 1 is an even load."""
        if self.load is None or len(self.load) < 2:
            return None
        share = self.load[self.load > 0] / self.load.sum()
        return float(-(share * np.log(share)).sum() / np.log(len(self.load)))

    def touched(self, batch: int) -> float | None:
        """Experts that at least one of ``batch`` independent tokens runs, in expectation."""
        return None if self.load is None else float((1 - (1 - self.load) ** batch).sum())


def fvu(predict: Callable[[Tensor], Tensor], pairs: Pairs, split: Split = "test") -> float:
    """Fraction of variance unexplained of any function from raw inputs (n, d_in) to raw outputs (n, d_out)."""
    sums = ResidualSums()
    with torch.no_grad():
        for block in blocks(pairs, split):
            for x, y in zip(block.x.split(_CHUNK), block.y.split(_CHUNK), strict=True):
                sums.add(y, predict(x))
    return sums.fvu()


@torch.no_grad()
def evaluate(student: Student, pairs: Pairs, split: Split = "test", limit: int | None = None) -> Evaluation:
    """FVU and load of a student on (the first ``limit`` vectors of) a split."""
    counts = np.zeros(student.spec.experts, np.int64) if student.spec.experts else None
    sums = ResidualSums()
    for block in blocks(pairs, split):
        of = torch.zeros(len(block.x), dtype=torch.long) if block.documents is None else block.documents
        for x, y, documents in zip(block.x.split(_CHUNK), block.y.split(_CHUNK), of.split(_CHUNK), strict=True):
            left = None if limit is None else limit - sums.n
            if left is not None and left <= 0:
                break
            y = y[:left].to(student.bias.device)
            out = student.run(student.scaling.inputs(x[:left].to(student.bias.device)))
            sums.add(student.scaling.outputs(y), out.y, documents[:left])
            if counts is not None and out.routed is not None:
                counts += np.bincount(out.routed.index.cpu().numpy().reshape(-1), minlength=len(counts))
    return Evaluation(sums.fvu(), sums.n, None if counts is None else counts / max(sums.n, 1), sums.parts())


class ResidualSums:
    """Running sums of squares in float64."""

    def __init__(self) -> None:
        self.n = 0
        self._residual = self._square = 0.0
        self._total: Tensor | None = None
        self._documents: dict[int, tuple[int, float]] = {}

    def add(self, y: Tensor, predicted: Tensor, documents: Tensor | None = None) -> None:
        wide = y.double()
        self.n += len(y)
        residual = (wide - predicted.double()).square().sum(1)
        self._residual += float(residual.sum())
        if documents is not None:
            names, of = documents.unique(return_inverse=True)
            sums = torch.zeros(len(names), dtype=torch.float64).index_add_(0, of, residual.cpu())
            for name, n, own in zip(names.tolist(), of.bincount().tolist(), sums.tolist(), strict=True):
                before = self._documents.get(name, (0, 0.0))
                self._documents[name] = before[0] + n, before[1] + own
        self._square += float(wide.square().sum())
        self._total = wide.sum(0) if self._total is None else self._total + wide.sum(0)

    def fvu(self) -> float:
        return self._residual / self._variance()

    def parts(self) -> dict[int, tuple[int, float]]:
        """Of each document its vectors and its part of the FVU."""
        return {name: (n, residual / self._variance()) for name, (n, residual) in self._documents.items()}

    def _variance(self) -> float:
        if self._total is None:
            return float("nan")
        return max(self._square - float(self._total.square().sum()) / self.n, 1e-300)
