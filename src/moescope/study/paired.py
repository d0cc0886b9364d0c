"""Effects of what is right on rows that judge: against chance, and of one predictor against another on the same rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from scipy.stats import norm

from moescope.stats import class_weights, group_bootstrap, paired_bootstrap_difference, wilson
from moescope.study.verdicts import Case, Effect, beyond_draws
from moescope.types import Control


def balanced(right: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(N,) float64 whose mean is the balanced accuracy of ``right`` (N,), and whose spread is that of its error.

    Deviations from each class's share are weighted, not the rows: how many rows a class happens to have is no doubt about it.
    """
    _, code, counts = np.unique(y, return_inverse=True, return_counts=True)
    share = np.bincount(code, right) / counts
    return np.asarray(class_weights(y) * (right - share[code]) + share.mean())


def interval_p(value: float, low: float, high: float) -> float:
    """Two-sided p that there is nothing, from the width of the 95 % interval on the side of nought; NaN without an interval.

    By the mean of both widths a lopsided interval and its p would contradict each other.
    """
    side = value - low if value > 0 else high - value
    if np.isnan(side):
        return float("nan")
    return float(2 * norm.sf(abs(value) / side * norm.ppf(0.975))) if side > 0 else float(value == 0)


def interval_over(values: np.ndarray, groups: np.ndarray, seed: int) -> tuple[float, float]:
    """95 % interval of the mean of ``values`` (N,), whole ``groups`` (N,) resampled; NaN where there is one alone."""
    return group_bootstrap(values, groups, seed=seed) if len(np.unique(groups)) > 1 else (float("nan"), float("nan"))


def joined(value: float, *intervals: tuple[float, float]) -> tuple[float, float]:
    """The 95 % interval of ``value`` with independent doubts, each an interval of it (Zou and Donner 2008)."""
    low = value - float(np.sqrt(sum((value - low) ** 2 for low, _ in intervals)))
    return low, value + float(np.sqrt(sum((high - value) ** 2 for _, high in intervals)))


def above_chance(right: np.ndarray, y: np.ndarray, groups: np.ndarray, margin: float, seed: int) -> Effect:
    """Balanced accuracy less what guessing gives, one over the number of classes."""
    chance = 1 / len(np.unique(y))
    values = balanced(right.astype(float), y)
    value = float(values.mean()) - chance
    low, high = (end - chance for end in group_bootstrap(values, groups, seed=seed))
    return Effect(value, low, high, f"chance ({chance:.1%})", margin, interval_p(value, low, high))


def paired_effect(
    a: np.ndarray, b: np.ndarray, groups: np.ndarray, against: str, margin: float, seed: int, **options: Any
) -> Effect:
    """mean(a) - mean(b) on the same rows (N,); groups are resampled, and exchanged for p.

    Where two shares never differ, the interval is what so many groups exclude (Wilson's), not nought.
    """
    found = paired_bootstrap_difference(a, b, groups, seed=seed)
    low, high = found.low, found.high
    if options.get("share", True) and np.array_equal(a, b):
        n = len(np.unique(groups))
        high = wilson(0, n)[1]
        low = -high
    return Effect(found.value, low, high, against, margin, found.p, **options)


def beyond_sets(
    own: np.ndarray,
    random: np.ndarray,
    groups: np.ndarray,
    against: str,
    margin: float,
    seed: int,
    *,
    alternative: int = 1,
    **options: Any,
) -> Effect:
    """The mean of ``own`` (N,) beyond those of random sets (R, N) on the same texts.

    Both which sets were drawn and which documents, ``groups`` (N,), widen the interval; p is the larger of the two.
    """
    options["share"] = False
    texts = paired_effect(alternative * own, alternative * random.mean(0), groups, against, margin, seed, **options)
    sets = beyond_draws(float(own.mean()), random.mean(1), against, margin, alternative=alternative)
    low, high = joined(texts.value, (texts.low, texts.high), (sets.low, sets.high))
    p = max(sets.p or 0.0, interval_p(texts.value, texts.low, texts.high))
    return replace(texts, low=low, high=high, p=p)


def beyond_a_cue(
    statement: str,
    right: np.ndarray,
    cue: np.ndarray,
    y: np.ndarray,
    groups: np.ndarray,
    said: str,
    *,
    margin: float,
    seed: int,
    **case: Any,
) -> Case:
    """Is more right than by chance, and than by the surface cue ``said``? ``right``, ``cue`` (N,) bool; ``y`` (N,) classes."""
    effect, chance = above_chance(right, y, groups, margin, seed), 1 / len(np.unique(y))
    return Case(
        statement,
        effect.value + chance,
        effect,
        interval=(effect.low + chance, effect.high + chance),
        control=Control(f"surface cue: {said}", float(balanced(cue.astype(float), y).mean())),
        rivals=(beyond(right, cue, y, groups, f"the surface cue {said!r}", margin, seed, kind="trivial cue"),),
        **case,
    )


def beyond(
    right: np.ndarray,
    other: np.ndarray,
    y: np.ndarray,
    groups: np.ndarray,
    against: str,
    margin: float,
    seed: int,
    **options: Any,
) -> Effect:
    """Balanced accuracy of ``right`` less that of ``other`` (N,) bool, on the same rows."""
    a, b = right.astype(float), other.astype(float)
    found = paired_effect(balanced(a, y), balanced(b, y), groups, against, margin, seed, **options)
    if np.array_equal(a, b):
        return found
    # exchanging rows between two predictors is exact for weighted rows, whose mean is the same
    return replace(found, p=paired_bootstrap_difference(class_weights(y) * a, class_weights(y) * b, groups, seed=seed).p)
