"""Planted truths, and how often the verdict layer finds the right word for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from moescope.types import Claim

Word = tuple[str, str | None]
"""(outcome, explanation)"""


@dataclass(frozen=True)
class Truth:
    """A planted truth: what must be said at the largest size, and what must hardly ever be said at any."""

    name: str
    right: frozenset[Word]
    wrong: frozenset[Word]
    sizes: tuple[int, ...]
    draw: Callable[[int, int], Claim]
    """(N, seed) -> the claim"""
