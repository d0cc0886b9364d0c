"""How few tokens at a prompt's end make a monitor call it something else: a search without gradients.

Evolution of one suffix per prompt: it starts from the best of some random suffixes, and every round tries a few changes of
one or two of its tokens and keeps the best. A random suffix may do as well by luck, and the best of many random ones better
still; so the baseline is the best of as many random suffixes as the search had tries, its own random start among them. Only
the monitor's probabilities are used, as an attacker with query access has them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from moescope.capture.encode import Encoded
from moescope.studies.robustness.monitor import Counter, Monitors, flat_signatures
from moescope.studies.robustness.settings import RobustnessSettings


@dataclass(frozen=True, eq=False)
class Attack:
    """What the suffixes did to n prompts. A margin is the log odds of the true category against the likeliest other."""

    clean: np.ndarray
    """(n,) margin without a suffix"""
    first: np.ndarray
    """(n,) margin under one random suffix"""
    random: np.ndarray
    """(n,) least margin over the random suffixes"""
    search: np.ndarray
    """(n,) least margin that the search found"""
    suffixes: np.ndarray
    """(n, length) token ids of the suffixes that the search found"""
    becomes: np.ndarray
    """(n,) the likeliest category under them"""
    own: float
    """share of the random suffixes that the search did not try"""


def find_suffixes(
    counter: Counter,
    monitors: Monitors,
    ids: Sequence[np.ndarray],
    rows: np.ndarray,
    y: np.ndarray,
    vocabulary: np.ndarray,
    *,
    settings: RobustnessSettings,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Attack:
    """Search a suffix for each prompt that lowers the monitor's margin most.

    Args:
        counter: how often each expert is chosen, by text.
        ids: token ids of n prompts; ``rows`` (n,) are their numbers among the monitors' prompts and ``y`` (n,) their
            categories.
        vocabulary: token ids that a suffix may hold.
    """
    rng = np.random.default_rng(seed)
    n, length, start = len(ids), settings.suffix_tokens, settings.begin

    def margins(suffixes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n, m) margins and likeliest categories of suffixes (n, m, length)."""
        m = suffixes.shape[1]
        texts = [np.concatenate([ids[i], suffixes[i, j]]) for i in range(n) for j in range(m)]
        scores = monitors.log_odds(flat_signatures(counter(Encoded.from_ids(texts))), np.repeat(rows, m))
        return margin(scores, np.repeat(y, m)).reshape(n, m), scores.argmax(1).reshape(n, m)

    clean = margin(monitors.log_odds(flat_signatures(counter(Encoded.from_ids(ids))), rows), y)
    tell = progress or (lambda done, total: None)
    drawn = vocabulary[rng.integers(len(vocabulary), size=(n, start, length))]
    found, becomes = margins(drawn)
    every, winner = np.arange(n), found.argmin(1)
    first, least, label, best = found[:, 0], found[every, winner], becomes[every, winner], drawn[every, winner]
    random, own = least, 0
    for done in range(start, settings.queries, settings.children):
        m = min(settings.children, settings.queries - done)
        others = vocabulary[rng.integers(len(vocabulary), size=(n, m, length))]
        luck, _ = margins(others)
        random = np.minimum(random, luck.min(1))
        children = _mutated(np.repeat(best[:, None], m, axis=1), vocabulary, rng)
        own += int((others != children).any(-1).sum())
        found, becomes = margins(children)
        winner = found.argmin(1)
        better = found[every, winner] < least
        least = np.where(better, found[every, winner], least)
        label = np.where(better, becomes[every, winner], label)
        best = np.where(better[:, None], children[every, winner], best)
        tell(done + m, settings.queries)
    return Attack(clean, first, random, least, best, label, own / (n * settings.queries))


def margin(scores: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(n,) log probability (n, C) of the true category minus the largest of the others."""
    own = np.take_along_axis(scores, y[:, None], 1)[:, 0]
    others = scores.copy()
    np.put_along_axis(others, y[:, None], -np.inf, 1)
    return np.asarray(own - others.max(1))


def _mutated(suffixes: np.ndarray, vocabulary: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Every suffix (n, m, length) with one token replaced, and in half of them a second one."""
    children = suffixes.copy()
    n, m, length = children.shape
    row, column = np.indices((n, m))
    for change in (np.ones((n, m), bool), rng.random((n, m)) < 0.5):
        place = rng.integers(length, size=(n, m))
        token = vocabulary[rng.integers(len(vocabulary), size=(n, m))]
        children[row[change], column[change], place[change]] = token[change]
    return children
