"""How a token's experts are chosen: scores of every expert, of low rank, or by product keys.

Each router gives the chosen experts and the scores of those alone, through which the gradient flows; no gradient reaches an
expert that was not chosen. All start with scores of variance 1 on inputs of variance 1, whatever their rank, so that they
differ in structure and not in temperature.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moescope.kernels import Routed, gathered_dot, top_rows
from moescope.kernels.dense import capturing
from moescope.studies.distill.spec import StudentSpec, key_grid


class Router(nn.Module):
    """``choose`` maps inputs (B, d) to the chosen experts and their scores (B, k)."""

    experts: int

    def choose(self, x: Tensor, k: int, half: bool = False) -> tuple[Routed, Tensor]:
        raise NotImplementedError

    def aim(self, directions: Tensor) -> None:
        """Start at given directions (m, d): expert i is chosen by inputs along row i. A router whose structure cannot
        hold them stays as it is."""


class FullRouter(Router):
    """One score for every expert from the whole input: m · d multiply-adds."""

    def __init__(self, d: int, experts: int) -> None:
        super().__init__()
        self.experts = experts
        self.weight = nn.Parameter(torch.randn(experts, d) / d**0.5)

    def choose(self, x: Tensor, k: int, half: bool = False) -> tuple[Routed, Tensor]:
        routed = Routed(top_rows(x, self.weight, k, half=half)[1], self.experts)
        return routed, gathered_dot(x, self.weight, routed)

    @torch.no_grad()
    def aim(self, directions: Tensor) -> None:
        self.weight.copy_(F.normalize(directions, dim=1))


class LowRankRouter(Router):
    """Scores from a projection of the input to ``rank`` dimensions, as published."""

    def __init__(self, d: int, experts: int, rank: int) -> None:
        super().__init__()
        self.experts = experts
        self.down = nn.Parameter(torch.randn(rank, d) / d**0.5)
        self.up = nn.Parameter(torch.randn(experts, rank) / rank**0.5)

    def choose(self, x: Tensor, k: int, half: bool = False) -> tuple[Routed, Tensor]:
        low = F.linear(x, self.down).to(self.up.dtype)  # (B, rank)
        routed = Routed(top_rows(low, self.up, k, half=half)[1], self.experts)
        return routed, gathered_dot(low, self.up, routed)

    @torch.no_grad()
    def aim(self, directions: Tensor) -> None:
        directions = F.normalize(directions, dim=1)
        _, vectors = torch.linalg.eigh(directions.T @ directions)
        basis = vectors[:, -len(self.down) :].T  # (rank or fewer, d): where the directions mostly lie
        self.down[: len(basis)] = basis
        self.up[:, : len(basis)] = directions @ basis.T


class ProductKeyRouter(Router):
    """Expert (i, j) of an n₁ × n₂ grid scores ``a[i] · q₁ + b[j] · q₂``: n₁ + n₂ scores find the best k of n₁ · n₂ exactly.

    Lample et al. 2019, "Large Memory Layers with Product Keys": the best k pairs are among the best k rows × best k columns.
    """

    def __init__(self, d: int, experts: int, rank: int) -> None:
        super().__init__()
        self.experts = experts
        self.grid = key_grid(experts)
        self.query = nn.Parameter(torch.randn(rank, d) / d**0.5)
        # each half gives half the variance
        self.rows = nn.Parameter(torch.randn(self.grid[0], rank // 2) / rank**0.5)
        self.columns = nn.Parameter(torch.randn(self.grid[1], rank // 2) / rank**0.5)

    def choose(self, x: Tensor, k: int, half: bool = False) -> tuple[Routed, Tensor]:
        first, second = F.linear(x, self.query).to(self.rows.dtype).chunk(2, dim=1)  # (B, rank / 2) each
        by_row, row = torch.topk(F.linear(first, self.rows).to(x.dtype), min(k, self.grid[0]), dim=1)
        by_column, column = torch.topk(F.linear(second, self.columns).to(x.dtype), min(k, self.grid[1]), dim=1)
        pairs = (by_row[:, :, None] + by_column[:, None, :]).flatten(1)  # (B, ≤ k²)
        scores, best = torch.topk(pairs, k, dim=1)
        if not capturing(scores) and not bool(torch.isfinite(scores.detach()).all()):
            raise FloatingPointError("router scores are not finite")
        i = row.gather(1, best // column.shape[1])
        j = column.gather(1, best % column.shape[1])
        return Routed(i * self.grid[1] + j, self.experts), scores.to(x.dtype)


def build_router(spec: StudentSpec, d: int) -> Router:
    """The router that ``spec`` asks for, for inputs of width ``d``."""
    if spec.router == "full":
        return FullRouter(d, spec.experts)
    if spec.router == "low-rank":
        return LowRankRouter(d, spec.experts, spec.rank)
    return ProductKeyRouter(d, spec.experts, spec.rank)
