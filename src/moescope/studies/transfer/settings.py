"""How two models are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from moescope.errors import InputError
from moescope.study.settings import Judged, at_least, between
from moescope.study.verdicts import check_draws
from moescope.types import Precision

FAMILY = 4
"""claims on a pair of models that are judged together"""


@dataclass(frozen=True, kw_only=True)
class TransferSettings(Judged):
    """How the second model is loaded, what stands for a dense model's experts, and how much is shuffled."""

    dtype_b: Precision | None = None
    """Precision of the second model, where it differs; with one model twice, its precisions are compared."""
    n_experts: Annotated[int, at_least(2)] = 16
    """Pseudo-experts of each layer of a dense model."""
    active: Annotated[int, at_least(1)] = 4
    """Of them, per token."""
    dimensions: Annotated[int, at_least(1)] = 16
    """Principal components that are rotated onto each other."""
    n_folds: Annotated[int, at_least(2)] = 5
    """Folds of the prompts, topics whole where they have them."""
    n_permutations: Annotated[int, at_least(1)] = 999
    """Shuffled pairings of the prompts, topics whole, for the similarity of similarities."""
    n_alignments: Annotated[int, at_least(1)] = 199
    """Shuffles of A's prompts, and as many of B's, for which rotation and classifier are fitted anew; p is the larger."""
    margin: Annotated[float, between(0, 1)] = 0.03
    """Smallest difference in the share of prompts that counts."""
    rho_margin: Annotated[float, between(0, 1)] = 0.05
    """Smallest difference in Spearman's correlation that counts."""

    def check(self) -> None:
        if self.active >= self.n_experts:
            raise InputError(f"must be below n_experts={self.n_experts}, got {self.active}", "active")
        for name in ("n_permutations", "n_alignments"):
            check_draws(getattr(self, name), FAMILY, name, self.alpha, sides=2)
