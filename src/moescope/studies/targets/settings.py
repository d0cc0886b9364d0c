"""When an expert counts as reached, and what is written for whom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from moescope.study.settings import Judged, at_least, between


@dataclass(frozen=True, kw_only=True)
class TargetSettings(Judged):
    """When an expert has had enough of a text, and how the experts of a category are told."""

    least: Annotated[int, at_least(1)] = 32
    """Tokens that an expert must receive to count as reached."""
    share: Annotated[float, between(0, 1, open_high=False)] = 1.0
    """Of all experts, those that must be reached; 0.99 lets one in a hundred go."""
    sure: Annotated[float, between(0, 1)] = 0.95
    """Probability with which as many tokens as are said to be needed suffice."""
    per_layer: Annotated[int, at_least(1)] = 2
    """Experts of each layer that one half of the texts chooses for a category, and the other half judges."""
    n_permutations: Annotated[int, at_least(19)] = 999
    """Permutations of whole cells (category and document) behind the experts of a category."""
    names: str | None = None
    """Model whose parameters are named, where a trace is given and the model does not run."""
    rank: Annotated[int, at_least(1)] = 16
    """Rank of the adapters whose configuration is written."""
    margin: Annotated[float, between(0, 1)] = 0.25
    """Smallest difference that counts between two numbers of tokens, as a share."""
    margin_share: Annotated[float, between(0, 1)] = 0.02
    """Smallest difference that counts between two shares of tokens."""
