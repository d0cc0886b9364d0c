"""What a router reads, and how many known prompts it may lose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from moescope.errors import InputError
from moescope.runtime.choices import Kind, Loss, Source
from moescope.study.settings import Judged, above, at_least, between
from moescope.study.verdicts import check_draws

ROUTED, TOLD, BAG, PROBE, FULL = WAYS = (
    "routed by the first layers",
    "told the task, early exit",
    "routed by a bag of words",
    "one probe for all tasks, at one depth",
    "told the task, full depth",
)
"""Ways of answering a mixed stream."""
TURNS = 3
"""Times that each way answers a text on the clock; the median counts, so that a stall of the machine does not."""
PASSES = 4
"""Of a prompt, bare and with the router listening, where the listening is timed."""
FOREIGN = 200
"""Paragraphs of no task that are put to the router, at most."""
DIRECTION, NEURONS = EARLY = ("direction", "neurons")
"""What is moved of a task's early identification."""
CAUSAL_FAMILY = 2
"""Claims that are judged together of each way of replacing a task's early identification."""


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
    act: bool = False
    """Go on with the named task's own early-exit classifier, in the same pass: router and classifiers are one artifact."""
    risk: Annotated[float, between(0, 1)] = 0.05
    """What acting may cost, mistakes of naming included, as a share of rows."""
    delta: Annotated[float, between(0, 1)] = 0.1
    """Probability with which that bound may fail (Learn-then-Test)."""
    loss: Loss = "accuracy"
    """Count rows that full depth, told the task, gets right and acting wrong, or all that differ."""
    head: Literal["auto", Kind] = "auto"
    """What decides at each depth when acting; auto takes the best in training."""
    k: Annotated[int, at_least(1)] = 10
    """Neurons of a circuit."""
    n_resplits: Annotated[int, at_least(1)] = 200
    """Times that calibration and test groups are dealt out anew to see the bound kept."""
    n_random: Annotated[int, at_least(1)] = 999
    """Times that the depths at which rows leave are dealt out anew among them."""

    leave_out: Annotated[float | None, between(0, 1)] = None
    """With act, of a mixture of experts: share of every later layer's that a text goes without once its task is named."""
    tolerance: Annotated[float, above(0)] = 0.05
    """Nats a token that a text may lose by that; one that loses more is lost. Also the smallest difference that counts."""
    causal: bool = False
    """Put the next task's identification into the layer that is read, and see whether the circuits after it follow."""
    causal_texts: Annotated[int, at_least(4)] = 40
    """Texts of each task that this is judged on, at most."""
    early_neurons: Annotated[int, at_least(0)] = 10
    """Coordinates of that layer that are moved by themselves beside the whole direction; 0: none are."""
    n_changes: Annotated[int, at_least(1)] = 99
    """Random changes, or sets of experts, of the same size beside it."""
    causal_margin: Annotated[float, between(0, 1)] = 0.1
    """Smallest share of a circuit's reading, or of the way to the next task, that counts."""

    def check(self) -> None:
        if self.act:
            check_draws(self.n_random, 1, "n_random", self.alpha, sides=2)
        if self.leave_out is not None:
            if not self.act:
                raise InputError("experts are left out by the task that is acted on; add act", "leave_out")
            check_draws(self.n_changes, 1, "n_changes", self.alpha, sides=2)
        if self.causal:
            check_draws(self.n_changes, CAUSAL_FAMILY, "n_changes", self.alpha, sides=2)


def first_layers(n_layers: int, settings: RouteSettings) -> int:
    """The last layer of so many that is read: the one that was asked for, or a quarter of the way up."""
    return settings.layer if settings.layer is not None else max(0, n_layers // 4)
