"""What a router reads, and how many known prompts it may lose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from moescope.runtime.choices import Source
from moescope.study.settings import Judged, at_least, between


@dataclass(frozen=True, kw_only=True)
class RouteSettings(Judged):
    """Where in the model a prompt's task is read, and when it is called unknown."""

    unknown: Annotated[float, between(0, 1)] = 0.05
    """Share of prompts of known tasks that may be called unknown."""
    layer: Annotated[int | None, at_least(0)] = None
    """Last layer that is read (default: a quarter of the way up)."""
    features: Literal["auto", Source] = "auto"
    """auto: routing in a mixture of experts, else residual."""
    timed_texts: Annotated[int, at_least(1)] = 32
    """Test prompts that go on the clock, at most."""
    margin: Annotated[float, between(0, 1)] = 0.03
    """Smallest difference that counts, in balanced accuracy and in the rate of unknowns."""
