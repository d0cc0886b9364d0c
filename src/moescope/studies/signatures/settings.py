"""How routing signatures are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from moescope.errors import InputError
from moescope.study.settings import Form, Judged, NonEmpty, above, at_least, between
from moescope.study.verdicts import check_draws

FAMILY = 5
"""The most claims that are judged together: separation and accuracies, or depth, clusters, experts and load balance."""


@dataclass(frozen=True, kw_only=True)
class SignatureSettings(Judged):
    """How routing signatures are made and compared."""

    new_tokens: Annotated[int, at_least(0)] = 32
    """Tokens generated after each prompt (32 as published); 0 reads prompts alone."""
    quantity: Literal["frequency", "weight"] = "frequency"
    """Count choices (as published), or add up their weights: of which the headline signature is made."""
    n_folds: Annotated[int, at_least(2)] = 5
    """Cross-validation folds."""
    n_permutations: int = 9999
    """Permutations of whole cells (category and template) behind similarities, layers, experts and clusters."""
    n_label_permutations: Annotated[int, at_least(0)] = 99
    """Label permutations of the whole cross-validation; 0 takes the accuracy's p from its interval."""
    n_nulls: Annotated[int, at_least(2)] = 50
    """Random routings per load-balance and token baseline."""
    margin_d: Annotated[float, above(0)] = 0.2
    """Smallest Cohen's d that counts."""
    margin: Annotated[float, above(0)] = 0.03
    """Smallest difference of accuracies, cosines, silhouettes and shares of variance that counts."""
    margin_trend: Annotated[float, above(0)] = 0.3
    """Smallest correlation with depth that counts."""
    margin_load: Annotated[float, above(0)] = 0.1
    """Largest share of experts that may lie idle in a load that counts as spread."""
    capacity_factors: Annotated[tuple[float, ...], above(0), NonEmpty()] = (1.0, 1.25, 1.5, 2.0)
    """Capacities of an expert, in fair shares of a batch, for the choices that would be dropped."""
    batches: Annotated[tuple[int, ...], at_least(1), NonEmpty()] = (64, 512)
    """Tokens of a batch in which experts have a capacity."""
    cards: Annotated[int, at_least(0)] = 2
    """Expert cards per category."""
    experts: Annotated[tuple[tuple[int, int], ...], Form("LAYER:EXPERT")] = ()
    """Further experts that get a card."""
    dense_experts: Annotated[int, at_least(0)] = 0
    """Read a dense model as so many groups of neurons per layer, a quarter active (prompt tokens only); 0 refuses it."""
    neuron_share: Annotated[float | None, between(0, 1)] = None
    """Read each neuron of a dense model as an expert: the share of a layer that 4 of 8 bits of gate and up choose for a token
    (prompt tokens only). A model that `moescope sparsify` wrote is read by its own choice, without this."""
    twin: bool = True
    """Also trace a randomly initialised model (prompt tokens only)."""
    tokenizer: str | None = None
    """Model whose tokenizer reads the tokens of a recorded trace."""

    def check(self) -> None:
        """Permutations that could not decide, and one group of neurons, are refused."""
        check_draws(self.n_permutations, FAMILY, "n_permutations", self.alpha)
        if self.n_label_permutations:
            check_draws(self.n_label_permutations, FAMILY, "n_label_permutations", self.alpha)
        if self.dense_experts == 1:
            raise InputError("must be 0 or at least 2, got 1", "dense_experts")
        if self.dense_experts and self.neuron_share is not None:
            raise InputError(
                "a model is read in groups of neurons or neuron by neuron; give dense_experts or this", "neuron_share"
            )
