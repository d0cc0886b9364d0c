"""How the cards of an atlas are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from moescope.study.settings import Judged, above, at_least


@dataclass(frozen=True, kw_only=True)
class AtlasSettings(Judged):
    """What is shown of each expert, and what counts as confirmed."""

    new_tokens: Annotated[int, at_least(0)] = 32
    """Tokens generated after each prompt; 0 reads prompts alone."""
    top: Annotated[int, at_least(1)] = 8
    """Tokens and contexts of a card."""
    margin: Annotated[float, above(0)] = 0.1
    """Smallest preference that counts, bits: the logarithm of how much oftener an expert gets what it is said to prefer."""
    dense_experts: Annotated[int, at_least(0)] = 0
    """Read a dense model as so many groups of neurons per layer, a quarter active (prompt tokens only); 0 refuses it."""
    twin: bool = True
    """Also trace a randomly initialised model (prompt tokens only)."""
    tokenizer: str | None = None
    """Model whose tokenizer reads the tokens of a recorded trace."""
