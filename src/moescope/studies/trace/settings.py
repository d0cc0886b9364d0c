"""What a routing trace holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from moescope.study.settings import Settings, at_least


@dataclass(frozen=True, kw_only=True)
class TraceSettings(Settings):
    """What is generated while the routing is recorded, and what is kept of it."""

    new_tokens: Annotated[int, at_least(0)] = 32
    """Tokens generated after each prompt; 0 reads prompts alone."""
    sample: bool = False
    """Sample instead of taking the likeliest token."""
    beams: Annotated[int, at_least(1)] = 1
    """Beams of a beam search."""
    weights: bool = True
    """Keep the experts' weights, as float16."""
    scores: bool = False
    """Keep the routers' scores of all experts (large)."""
    token_ids: bool = True
    """Keep the token ids, from which the text can be read."""
