"""How a cache of experts and their places are judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from moescope.routing.cache import Prefill
from moescope.study.settings import Judged, above, at_least, between
from moescope.study.verdicts import check_draws

FAMILY = 5
"""Claims that are judged together: locality, pinning, shift, lookahead, and one placement."""


@dataclass(frozen=True, kw_only=True)
class ResidencySettings(Judged):
    """The cache, how requests are served, and the devices."""

    capacity: Annotated[int | None, at_least(1)] = None
    """Experts that each layer keeps between two steps, for the verdicts; by default a quarter of them."""
    capacities: Annotated[tuple[int, ...], at_least(1)] = ()
    """Further capacities of the table; by default an eighth, a half and three quarters."""
    batch: Annotated[int, at_least(1)] = 1
    """Requests served together: a step needs the experts of all their tokens."""
    prefill: Prefill = "one step"
    """How a prompt is read: in one step, as engines do, whose loads do not count; or token by token as if it were generated
    (always, where a trace has no generated token)."""
    expert_bytes: Annotated[int | None, at_least(1)] = None
    """Bytes of one expert's weights; by default what the trace says."""
    bandwidth: Annotated[float | None, above(0)] = None
    """GB/s at which experts are loaded, for tokens per second."""
    compute: Annotated[float, at_least(0)] = 0.0
    """Milliseconds that a step takes when all its experts are there."""
    devices: Annotated[tuple[int, ...], at_least(2)] = ()
    """Numbers of devices that share out each layer's experts, the first for the verdict; by default those of 4, 2 and 8 that
    divide them."""
    redundant: Annotated[int, at_least(0)] = 0
    """Copies of busy experts, beyond one each, in every layer of a placement."""
    tokens: Annotated[int, at_least(1)] = 512
    """Of a batch in which devices wait for the busiest."""
    n_random: Annotated[int, at_least(1)] = 199
    """Random placements per number of devices."""
    margin: Annotated[float, between(0, 1)] = 0.02
    """Smallest difference of hit rates that counts."""
    margin_imbalance: Annotated[float, above(0)] = 0.05
    """Smallest difference of the busiest device's load, over the mean of all, that counts."""

    def check(self) -> None:
        """Placements that could not decide are refused."""
        check_draws(self.n_random, FAMILY, "n_random", self.alpha, sides=2)
