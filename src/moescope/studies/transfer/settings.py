"""How two models are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from moescope.errors import InputError
from moescope.study.settings import Settings, at_least


@dataclass(frozen=True, kw_only=True)
class TransferSettings(Settings):
    """How the second model is loaded, what stands for a dense model's experts, and how much is shuffled."""

    dtype_b: Literal["fp32", "bf16", "fp16"] | None = None
    """Precision of the second model, where it differs; with one model twice, its precisions are compared."""
    n_experts: Annotated[int, at_least(2)] = 16
    """Pseudo-experts of each layer of a dense model."""
    active: Annotated[int, at_least(1)] = 4
    """Of them, per token."""
    dimensions: Annotated[int, at_least(1)] = 16
    """Principal components that are rotated onto each other."""
    n_folds: Annotated[int, at_least(2)] = 5
    """Folds of the prompts, topics whole where they have them."""
    n_permutations: Annotated[int, at_least(19)] = 999
    """Shuffles of the prompts for the similarity of similarities."""
    n_alignments: Annotated[int, at_least(19)] = 100
    """Shuffles of A's prompts, and as many of B's, for which rotation and classifier are fitted anew; p is the larger."""

    def check(self) -> None:
        if self.active >= self.n_experts:
            raise InputError(f"must be below n_experts={self.n_experts}, got {self.active}", "active")
