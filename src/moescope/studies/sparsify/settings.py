"""How neurons are chosen, and how that is judged."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from moescope.errors import InputError
from moescope.study.settings import Judged, NonEmpty, at_least, between

Rival = Literal["oracle", "gate-first", "up-first", "cats", "teal", "wina", "rotated", "static"]
RIVALS: tuple[Rival, ...] = get_args(Rival)
PLAIN = ((8, 8), (6, 6), (5, 6), (5, 5), (4, 5), (4, 4), (3, 4), (3, 3))
"""the plain formats that any way is held against: bits of gate and up, and of down"""
Budgets = Literal["uniform", "greedy"]


@dataclass(frozen=True, kw_only=True)
class SparsifySettings(Judged):
    """Which neurons work on a token, by how many bits they are chosen and run, and how that is judged."""

    share: Annotated[float | None, between(0, 1, open_high=False)] = None
    """Of each MLP's neurons, those that work on a token of the model that is written (default: what validates best)."""
    choose: Annotated[int | None, between(2, 8, open_low=False, open_high=False)] = None
    """Bits of gate and up that are read for every neuron, and choose (default: what validates best)."""
    bits: Annotated[int | None, between(2, 8, open_low=False, open_high=False)] = None
    """Bits of the weights that run, of which those that choose are the first (default: what validates best)."""
    budgets: Budgets = "uniform"
    """Neurons of a layer: as many in each; or more where leaving out costs more, if that validates better."""
    shares: Annotated[tuple[Annotated[float, between(0, 1, open_high=False)], ...], NonEmpty()] = (0.25, 0.35, 0.5, 0.75)
    """Shares at which every way of choosing is measured, beside that of the model that is written."""
    rivals: tuple[Rival, ...] = RIVALS
    """Other ways of choosing that are measured."""
    calibration_tokens: Annotated[int, at_least(1)] = 16384
    """Tokens of the calibration text to read, at most; a quarter of them validate what is left open above."""
    heldout_tokens: Annotated[int, at_least(2)] = 8192
    """Tokens of the held-out text to read, at most; 50,000 or more for figures to be cited."""
    window: Annotated[int, at_least(2)] = 512
    """Tokens of one sequence of either, at most; the model's context where that is shorter."""
    tolerance: Annotated[float, at_least(0)] = 0.01
    """Relative rise in perplexity that may be recommended: the largest loss that counts as none."""
    margin: Annotated[float, at_least(0)] = 0.01
    """Smallest difference in loss from another way that counts, nats per token."""
    speed: bool = True
    """Measure tokens per second of what has a kernel, beside plain weights of eight bits."""
    timed_seconds: Annotated[float, at_least(0)] = 240.0
    """Seconds that this may take, about: there are fewer turns where twelve would take longer, and six at least."""
    eval_task: tuple[str, ...] = ()
    """lm-evaluation-harness task (of multiple choice) to run on the original and the sparse model."""
    eval_include: Path | None = None
    """Folder with harness tasks of your own."""

    def check(self) -> None:
        if not self.formats():
            raise InputError(f"{self.choose} bits cannot be the first of {self.bits}", "choose")

    def forward_tokens(self, n_plain: int) -> dict[str, int]:
        """What the model reads at most, by purpose; ``n_plain`` plain formats are measured beside.

        A pass that takes fewer weights into account still reads all of its tokens.
        """
        formats = self.formats()
        validated = self.calibration_tokens // 4 if len(formats) > 1 or self.budgets == "greedy" else 0
        tries = len(formats) + len({form.bits for form in formats}) if len(formats) > 1 else 0
        tries += 3 if self.budgets == "greedy" else 0
        shares = {*self.shares, *([] if self.share is None else [self.share])}
        lines = 1 + n_plain + len(shares) * (1 + len(self.rivals)) + 2
        if self.share is None:  # one that is measured anyway, or one more
            lines += (1 + len(self.rivals)) * (not shares.issuperset(_SHARES))
        return {
            "calibration": 2 * (self.calibration_tokens - validated),
            **({"validation": tries * validated} if validated else {}),
            "held-out": lines * self.heldout_tokens,
        }

    def formats(self) -> list[Format]:
        """Those that are tried on validation text, or the one that is given."""
        given = (self.choose, self.bits)
        known = [(c, b) for c, b in _FORMATS if c == (self.choose or c) and b == (self.bits or b)]
        if self.choose is not None and self.bits is not None:
            known = [given] if self.choose <= self.bits else []  # type: ignore[list-item]
        elif not known:
            choose, bits = self.choose or min(4, self.bits or 4), self.bits or max(6, self.choose or 6)
            known = [(choose, bits)]
        shares = _SHARES if self.share is None else (self.share,)
        return [Format(share, choose, bits) for choose, bits in known for share in shares]


@dataclass(frozen=True)
class Format:
    """How a model is run: the share of its neurons that work on a token, the bits that choose them, and the bits that run."""

    share: float
    choose: int
    bits: int


_FORMATS = ((3, 5), (4, 5), (3, 6), (4, 6), (4, 8))
_SHARES = (0.35, 0.5, 0.65, 0.8)
