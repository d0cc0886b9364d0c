"""How an early exit is fitted, calibrated and measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from moescope.runtime.choices import Kind, Loss, Method
from moescope.study.settings import Judged, NonEmpty, at_least, between
from moescope.study.verdicts import check_draws

FAMILY = 3
"""claims of one task that are judged together"""


@dataclass(frozen=True, kw_only=True)
class ExitSettings(Judged):
    """What leaving early may cost, and what decides when a row leaves."""

    risk: Annotated[float, between(0, 1)] = 0.02
    """What leaving early may cost, as a share of rows."""
    delta: Annotated[float, between(0, 1)] = 0.1
    """Probability with which the bound may fail (Learn-then-Test)."""
    loss: Loss = "accuracy"
    """Count rows that full depth gets right and the exit wrong, or all that differ."""
    method: Method = "ltt"
    """Learn-then-Test (with high probability) or conformal risk control (on average)."""
    head: Literal["auto", Kind] = "auto"
    """What decides at each depth; auto takes the best in training."""
    k: Annotated[int, at_least(1)] = 10
    """Neurons of a circuit head."""
    layers: Annotated[tuple[int, ...] | None, NonEmpty(), at_least(0)] = None
    """Layers after which a row may leave; after the last it always does (default: all)."""
    timed_texts: Annotated[int, at_least(1)] = 128
    """Test texts that go on the clock, at most."""
    timed_seconds: Annotated[float, between(0, 3600)] = 45.0
    """Seconds that a task may be on the clock at each of two batch sizes: fewer texts are timed where these would take
    longer."""
    margin: Annotated[float, between(0, 1)] = 0.03
    """Smallest difference in balanced accuracy that counts."""
    n_random: Annotated[int, at_least(1)] = 999
    """Times that the depths at which rows leave are dealt out anew among them."""

    def check(self) -> None:
        check_draws(self.n_random, FAMILY, "n_random", self.alpha, sides=2)
