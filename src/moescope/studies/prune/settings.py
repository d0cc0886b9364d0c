"""How pruning is done and measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from moescope.study.settings import Judged, at_least, between
from moescope.study.verdicts import check_draws

Criterion = Literal["reap", "frequency", "norm", "mass"]
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)
_SHARE = between(0, 1, open_low=False)


@dataclass(frozen=True, kw_only=True)
class PruneSettings(Judged):
    """Which experts are left out, and on how much text that is measured."""

    by: Criterion = "reap"
    """REAP saliency (mean of weight times output norm), how often an expert is chosen, the sum of its output norms, or that of
    its weighted output norms: which experts the checkpoint keeps."""
    ratio: Annotated[float, _SHARE] = 0.25
    """Share of every layer's experts that the checkpoint leaves out."""
    ratios: Annotated[tuple[float, ...], _SHARE] = (0.125, 0.25, 0.5)
    """Shares of the table; that of the checkpoint is added."""
    domain: str | None = None
    """Category by whose text experts are chosen; the others' then judges too, apart (default: all categories)."""
    guard: bool = True
    """Keep super experts (few, of extreme outputs, without which a model breaks) whatever their score."""
    n_random: Annotated[int, at_least(1)] = 39
    """Random masks per share, the same number of experts in each layer."""
    text_tokens: Annotated[int, at_least(2)] = 4096
    """Of each category's text, half for the saliency and half for the loss."""
    length: Annotated[int, at_least(2)] = 256
    """Tokens of one piece of text."""
    margin: Annotated[float, at_least(0)] = 0.02
    """Smallest difference in loss that counts, nats a token."""
    eval_task: tuple[str, ...] = ()
    """lm-evaluation-harness task (of multiple choice) to run on the whole and the pruned model."""
    eval_include: Path | None = None
    """Folder with harness tasks of your own."""

    def check(self) -> None:
        check_draws(self.n_random, 1, "n_random", self.alpha, sides=2)
