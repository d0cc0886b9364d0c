"""The options of a signatures study, checked before any work begins."""

from __future__ import annotations

from dataclasses import dataclass

from moescope.errors import InputError
from moescope.routing.signatures import QUANTITIES, Quantity


@dataclass(frozen=True, kw_only=True)
class SignatureSettings:
    """How routing signatures are compared.

    Attributes:
        new_tokens: tokens generated after each prompt; 32 as published, 0 for the prompts alone.
        quantity: ``"frequency"`` (published) or ``"weight"``: what the headline signature adds up.
        n_permutations: label permutations of similarities, layers and experts.
        n_label_permutations: label permutations of the whole cross-validation; 0 leaves that baseline out.
        n_null: random routings per load-balance baseline.
        n_boot: resamples of prompts behind each bootstrap interval.
        cards: expert cards per category.
        experts: (layer, expert) of further cards.
        dense_experts: a dense model is read as so many groups of neurons per layer, a quarter of them active
            (:func:`moescope.routing.dense.dense_trace`; prompt tokens only); 0 refuses it.
        twin: also trace a randomly initialised model of the same architecture (prompt tokens only).
    """

    new_tokens: int = 32
    quantity: Quantity = "frequency"
    n_folds: int = 5
    n_permutations: int = 1000
    n_label_permutations: int = 100
    n_null: int = 50
    n_boot: int = 1000
    cards: int = 2
    experts: tuple[tuple[int, int], ...] = ()
    dense_experts: int = 0
    twin: bool = True
    max_tokens: int | None = None
    batch_tokens: int = 8192
    seed: int = 0

    def __post_init__(self) -> None:
        lowest = {
            "new_tokens": ("--tokens", 0),
            "n_folds": ("--folds", 2),
            "n_permutations": ("--permutations", 19),
            "n_label_permutations": ("--label-permutations", 0),
            "n_null": ("--nulls", 2),
            "n_boot": ("--boot", 100),
            "cards": ("--cards", 0),
            "batch_tokens": ("--batch-tokens", 1),
        }
        for name, (option, low) in lowest.items():
            if getattr(self, name) < low:
                raise InputError(f"{option}: must be at least {low}, got {getattr(self, name)}")
        if self.quantity not in QUANTITIES:
            raise InputError(f"--quantity: {self.quantity!r} is neither frequency nor weight")
