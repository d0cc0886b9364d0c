"""What an intervention does to a model's loss, category by category, beside random interventions of the same kind.

An effect is steered minus clean loss, in nats per token, on texts that had no part in choosing what is intervened on. Bootstrap
intervals resample whole documents; they hold the random sets fixed, and p tells how often a random set does as much.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from moescope.capture.encode import Encoded
from moescope.intervene.effects import against_random
from moescope.intervene.text_loss import Applied, encode_texts, text_losses
from moescope.study.paired import interval_over

if TYPE_CHECKING:
    from moescope.models import LoadedModel
    from moescope.studies.steer.settings import Match, SteerSettings
    from moescope.study.run import Counter, Run
    from moescope.tasks.passages import Passage


@dataclass(frozen=True, eq=False)
class Plan:
    """One intervention, and the random ones that it is measured beside, by what they are matched on."""

    own: Applied
    effects: Callable[[Counter | None], np.ndarray]
    """gives float64 (1 + R, N): each text's loss less its clean loss, nats per token, under its own and each random one"""
    sizes: Mapping[Match, int]
    """how many of the R random ones are matched on what, in their order"""
    ratios: Mapping[Match, float]
    """geometric mean of the random ones' usage (or norm) over that of their counterparts: 1 is a match"""
    shared: Mapping[Match, float]
    """mean share of its experts or neurons that a random set has as well"""


@dataclass(frozen=True, eq=False)
class Texts:
    """Encoded texts with their clean losses; made by :func:`prepare_texts`."""

    encoded: Encoded
    passages: tuple[Passage, ...]
    clean: np.ndarray
    """float64 (N,) nats per token"""

    @property
    def categories(self) -> list[str]:
        return list(dict.fromkeys(p.category for p in self.passages))

    def rows(self, category: str) -> np.ndarray:
        """int64: the texts of a category."""
        return np.flatnonzero([p.category == category for p in self.passages])

    def of(self, category: str) -> Texts:
        """Those of a category alone."""
        rows = self.rows(category)
        encoded = Encoded.from_ids([self.encoded[r] for r in rows])
        return Texts(encoded, tuple(self.passages[r] for r in rows), self.clean[rows])

    def groups(self, rows: np.ndarray) -> np.ndarray:
        """The documents of some texts."""
        return np.array([f"{self.passages[r].category}/{self.passages[r].group}" for r in rows])


def prepare_texts(model: LoadedModel, passages: Sequence[Passage], tokens: int, settings: SteerSettings, run: Run) -> Texts:
    """Encode so many ``tokens`` of each category's passages and run the untouched model on them.

    Raises:
        InputError: a category with fewer than two texts, or a model without its head.
    """
    encoded, used = encode_texts(model, passages, tokens=tokens, length=settings.length)
    clean = text_losses(model, encoded, batch_tokens=run.batch_tokens)
    return Texts(encoded, tuple(used), clean)


def one_by_one(
    model: LoadedModel, texts: Texts, interventions: Sequence[Applied], run: Run, progress: Counter | None
) -> np.ndarray:
    """The ``effects`` of a :class:`Plan`, a run over the texts for each intervention."""
    found = []
    for one in interventions:
        found.append(text_losses(model, texts.encoded, one, batch_tokens=run.batch_tokens) - texts.clean)
        if progress is not None:
            progress(len(found), len(interventions))
    return np.stack(found)


def compare_effects(texts: Texts, plan: Plan, *, target: str | None, run: Run, progress: Counter | None = None) -> pd.DataFrame:
    """The effect of one intervention on every category, against random ones.

    Args:
        target: a category of the texts.

    Returns:
        One row per matching and category, then, where there is a target, one per matching named ``selectivity``: the
        effect on the target minus the mean effect on the other categories; columns as declared in ``tables.toml``, without
        ``steering``.
    """
    steered, *rest = plan.effects(progress)
    rows: list[dict[str, Any]] = []
    for match, count in plan.sizes.items():
        random, rest = np.stack(rest[:count]), rest[count:]  # (R, N)
        shared = {"match": match, "n_random": count}
        by_category = {}
        for category in texts.categories:
            at = texts.rows(category)
            by_category[category] = _compared(steered[at], random[:, at], texts.groups(at), run.seed)
            baseline = float(texts.clean[at].mean())
            found = by_category[category].row()
            rows.append({"category": category, "target": category == target, "baseline": baseline, **found, **shared})
        if target is not None and len(by_category) > 1:
            found = _selectivity(by_category, target).row()
            rows.append({"category": "selectivity", "target": True, "baseline": np.nan, **found, **shared})
    columns = ["match", "category", "target", "baseline"]
    frame = pd.DataFrame(rows)
    frame["usage_ratio"] = frame["match"].map(dict(plan.ratios))
    return frame[[*columns, *(c for c in frame if c not in columns)]]


@dataclass(frozen=True, eq=False)
class _Compared:
    """An effect, its excess over the mean of the random sets, both with intervals, and the random sets' effects (R,)."""

    effect: float
    interval: tuple[float, float]
    excess: float
    excess_interval: tuple[float, float]
    random: np.ndarray

    def row(self) -> dict[str, float]:
        harm, help_ = (against_random(self.effect, self.random, harm=sign) for sign in (1, -1))
        return {
            "effect": self.effect,
            "low": self.interval[0],
            "high": self.interval[1],
            **{name: harm[name] for name in ("random_mean", "random_low", "random_high")},
            "excess": self.excess,
            "excess_low": self.excess_interval[0],
            "excess_high": self.excess_interval[1],
            "p_harm": harm["p"],
            "p_help": help_["p"],
        }


def _compared(steered: np.ndarray, random: np.ndarray, groups: np.ndarray, seed: int) -> _Compared:
    """Effects by text, steered (n,) and random (R, n), of texts from the documents ``groups`` (n,)."""
    excess = steered - random.mean(0)

    def interval(values: np.ndarray) -> tuple[float, float]:
        if not values.any():  # losses are no proportions: where none changed there is no doubt for Wilson's interval to add
            return 0.0, 0.0
        return interval_over(values, groups, seed)

    return _Compared(float(steered.mean()), interval(steered), float(excess.mean()), interval(excess), random.mean(1))


def _selectivity(found: dict[str, _Compared], target: str) -> _Compared:
    """Effect on the target minus the mean effect on the others.

    The categories' texts are independent, so their intervals combine by the method of variance estimates recovery (Zou
    and Donner 2008, "Construction of confidence limits about effect measures").
    """
    share = {c: 1.0 if c == target else -1.0 / (len(found) - 1) for c in found}

    def combined(value: str, interval: str) -> tuple[float, tuple[float, float]]:
        centres = {c: share[c] * getattr(f, value) for c, f in found.items()}
        ends = {c: sorted(share[c] * end for end in getattr(f, interval)) for c, f in found.items()}
        centre = sum(centres.values())
        below = np.sqrt(sum((centres[c] - ends[c][0]) ** 2 for c in found))
        above = np.sqrt(sum((ends[c][1] - centres[c]) ** 2 for c in found))
        return centre, (centre - float(below), centre + float(above))

    effect, interval = combined("effect", "interval")
    excess, excess_interval = combined("excess", "excess_interval")
    random = np.sum([share[c] * f.random for c, f in found.items()], axis=0)
    return _Compared(effect, interval, excess, excess_interval, random)
