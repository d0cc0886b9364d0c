"""Every planted truth is found at its largest size; how often, at every size, is measured by `make truths`."""

from __future__ import annotations

from collections import Counter
from typing import get_args

import pytest
from scipy.stats import binom

from benchmarks.truths.harness import RIGHT, truths
from moescope.types import Outcome
from tools.truths import PAGE, page

REPEATS = 40
ENOUGH = int(binom.ppf(0.001, REPEATS, RIGHT))
"""right words, which chance brings below this once in a thousand where the rate is what the page promises"""


def test_there_are_truths_of_every_kind() -> None:
    outcomes = Counter(outcome for truth in truths().values() for outcome, _ in truth.right)
    assert len(truths()) >= 20
    assert {"holds", "contradicted", "inconclusive", "undertrained"} <= set(outcomes)


def test_every_truth_is_told_in_words() -> None:
    for truth in truths().values():
        assert truth.draw(min(truth.sizes), 1).outcome in get_args(Outcome)


@pytest.mark.slow
@pytest.mark.parametrize("name", truths())
def test_the_right_word_is_found(name: str) -> None:
    truth = truths()[name]
    words = [(c.outcome, c.explanation) for c in (truth.draw(max(truth.sizes), 10_000 + seed) for seed in range(REPEATS))]
    assert sum(word in truth.right for word in words) >= ENOUGH, Counter(words)


def test_the_page_is_what_was_measured() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run python tools/truths.py"
