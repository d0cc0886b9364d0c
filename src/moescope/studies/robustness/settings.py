"""What a monitor of the routing is tried with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from moescope.errors import InputError
from moescope.study.settings import Judged, at_least, between

PerturbationName = Literal["identity", "paraphrase", "typo", "suffix", "lower_case", "upper_case"]
PERTURBATION_NAMES: tuple[PerturbationName, ...] = get_args(PerturbationName)


@dataclass(frozen=True, kw_only=True)
class RobustnessSettings(Judged):
    """Which changes are tried, how long a suffix is searched, and what stands for a dense model's experts."""

    perturbations: tuple[PerturbationName, ...] = PERTURBATION_NAMES
    """Of the text; identity is the control that must give nought."""
    precision: bool = True
    """Also run in bfloat16 (or, a bf16 model, in fp32)."""
    batches: bool = True
    """Also run the prompts one by one instead of together."""
    attacked: Annotated[int, at_least(0)] = 24
    """Prompts for which a suffix is searched, as many of each category; 0 for none."""
    suffix_tokens: Annotated[int, at_least(1)] = 8
    """Length of a suffix."""
    queries: Annotated[int, at_least(2)] = 256
    """Suffixes tried per prompt, by the search and by the random baseline alike."""
    start: Annotated[int | None, at_least(1)] = None
    """Random suffixes that the search begins with, of its queries (default: a quarter of them, at most 64)."""
    children: Annotated[int, at_least(1)] = 8
    """Suffixes tried in one round of the search."""
    n_folds: Annotated[int, at_least(2)] = 5
    """Folds of the prompts, topics whole where they have them: a monitor for each."""
    n_experts: Annotated[int, at_least(2)] = 16
    """Pseudo-experts of each layer of a dense model."""
    active: Annotated[int, at_least(1)] = 4
    """Of them, per token."""
    monitor: str | None = None
    """Category that a monitor in two stages is made for, with a promise on misses; none is made where it is not named."""
    risk: Annotated[float, between(0, 1)] = 0.1
    """Share of that category's prompts that may be missed, by both stages together."""
    delta: Annotated[float, between(0, 1)] = 0.1
    """Probability with which that promise may fail, over calibration prompts."""
    layer: Annotated[int | None, at_least(0)] = None
    """Last layer that its first stage reads (default: a quarter of the way up)."""
    margin: Annotated[float, between(0, 1)] = 0.03
    """Smallest difference in the share of prompts that counts."""
    odds_margin: Annotated[float, at_least(0)] = 0.1
    """Smallest difference in log odds that counts, nats."""

    def check(self) -> None:
        if self.active >= self.n_experts:
            raise InputError(f"must be below n_experts={self.n_experts}, got {self.active}", "active")
        if not (self.perturbations or self.precision or self.batches or self.attacked or self.monitor):
            raise InputError("nothing to try; name one, e.g. typo, or leave precision on", "perturbations")
        if self.begin >= self.queries:
            raise InputError(
                f"must be above start={self.begin}, the random suffixes it starts with, got {self.queries}", "queries"
            )

    @property
    def begin(self) -> int:
        """The random suffixes that the search begins with."""
        return max(1, min(64, self.queries // 4)) if self.start is None else self.start
