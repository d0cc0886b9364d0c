"""How routing signatures are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from moescope.errors import InputError
from moescope.study.settings import Form, Settings, at_least

_FEWEST = 19  # permutations: with fewer, no p can reach 0.05


@dataclass(frozen=True, kw_only=True)
class SignatureSettings(Settings):
    """How routing signatures are made and compared."""

    new_tokens: Annotated[int, at_least(0)] = 32
    """Tokens generated after each prompt (32 as published); 0 reads prompts alone."""
    quantity: Literal["frequency", "weight"] = "frequency"
    """Count choices (as published), or add up their weights: of which the headline signature is made."""
    n_folds: Annotated[int, at_least(2)] = 5
    """Cross-validation folds."""
    n_permutations: Annotated[int, at_least(_FEWEST)] = 1000
    """Label permutations of similarities, layers and experts."""
    n_label_permutations: Annotated[int, at_least(0)] = 100
    """Label permutations of the whole cross-validation; 0 leaves that baseline out."""
    n_nulls: Annotated[int, at_least(2)] = 50
    """Random routings per load-balance baseline."""
    n_boot: Annotated[int, at_least(100)] = 1000
    """Resamples of prompts behind each bootstrap interval."""
    cards: Annotated[int, at_least(0)] = 2
    """Expert cards per category."""
    experts: Annotated[tuple[tuple[int, int], ...], Form("LAYER:EXPERT")] = ()
    """Further experts that get a card."""
    dense_experts: Annotated[int, at_least(0)] = 0
    """Read a dense model as so many groups of neurons per layer, a quarter active (prompt tokens only); 0 refuses it."""
    twin: bool = True
    """Also trace a randomly initialised model (prompt tokens only)."""
    tokenizer: str | None = None
    """Model whose tokenizer reads the tokens of a recorded trace."""

    def check(self) -> None:
        """Permutations that could not decide, and one group of neurons, are refused."""
        if 0 < self.n_label_permutations < _FEWEST:
            raise InputError(f"must be 0 or at least {_FEWEST}, got {self.n_label_permutations}", "n_label_permutations")
        if self.dense_experts == 1:
            raise InputError("must be 0 or at least 2, got 1", "dense_experts")
