"""What ``python -m benchmarks.truths.coverage`` measures of one routine: how often its interval covers, what its p is worth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["interval", "exact p", "p", "safe p", "risk", "mean"]
Drawn = tuple[float, ...]
"""Of an interval (value, low, high, planted), planted NaN where it is the mean of the values over all draws, which is what a
statistic that small samples bias estimates; else one number."""


@dataclass(frozen=True)
class Routine:
    """A routine of the product on planted arrays.

    Attributes:
        kind: ``interval``: 95 %, to cover in 93-97 % of draws; at N up to ``wide``, in 93 % at least. p under its null:
            ``exact p`` is uniform, ``p`` is at most .05 in 3-7 % of draws, ``safe p`` in at most 7 %. ``risk``: 1 where
            what was promised not to happen did, in at most a share ``bound``; ``mean``: at most ``bound`` on average.
        sizes: small, middle and large N, of what is independent.
        draw: (N, seed) -> numbers, from planted arrays by the product's own function.
    """

    name: str
    kind: Kind
    draw: Callable[[int, int], Drawn]
    sizes: tuple[int, ...] = (20, 80, 400)
    bound: float = 0.05
    wide: int = 0
    """N up to which an interval is known to be on the wide side. One from the spread over five halvings takes Student's t. A
    jackknife's variance is never too small on average (Efron and Stein 1981), and the larger the more of the statistic comes
    from pairs of units, or from the square of an error. Taking the part of pairs off again needs units that are left out two
    by two; of four templates that leaves a variance below 0 in 4 samples of 10, and an interval that covers 90 %."""
