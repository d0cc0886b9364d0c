"""What a monitor has seen, what stands still, and what a searched suffix is compared with."""

from __future__ import annotations

from functools import cache

import numpy as np

from moescope.study.result import StudyResult
from moescope.tasks import Prompt
from tests.architectures import tiny_model
from tests.wiring import call

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@cache
def blank() -> StudyResult:
    """Random letters, categories of nothing."""
    rng = np.random.default_rng(0)
    y = rng.permutation(np.arange(40) % 2)
    prompts = [Prompt(str(i), "".join(rng.choice(list(LETTERS), 14)), "ab"[y[i]]) for i in range(40)]
    attack = {"length": 2, "queries": 2, "start": 1, "children": 1}
    return call.robustness(tiny_model("olmoe"), prompts, attack, perturbations=("identity", "suffix", "upper_case"))


def test_a_monitor_has_not_seen_the_prompt() -> None:
    assert blank().tables["changes"]["accuracy_before"].iloc[0] < 0.7


def test_only_the_identity_moves_nothing() -> None:
    changes = blank().tables["changes"].set_index("change")
    assert changes.loc["identity", "unmoved"] == 1
    assert changes.loc["identity", "flips"] == 0
    assert (changes.loc[["suffix", "upper_case"], "unmoved"] < 0.5).all()


def test_a_monitor_has_not_seen_the_topic() -> None:
    """Each topic is of letters of its own, each category of four topics."""
    rng = np.random.default_rng(1)
    topics = [LETTERS[3 * t : 3 * t + 3] for t in range(8)]
    prompts = [
        Prompt(str(i), "".join(rng.choice(list(topics[i % 8]), 14)), "ab"[i % 2], topics[i % 8], "plain") for i in range(48)
    ]
    found = call.robustness(tiny_model("olmoe"), prompts, perturbations=("identity",), n_folds=4)
    assert found.tables["changes"]["accuracy_before"].iloc[0] < 0.8


@cache
def attacked() -> StudyResult:
    rng = np.random.default_rng(2)
    prompts = [Prompt(str(i), "".join(rng.choice(list((LETTERS, LETTERS.upper())[i % 2]), 10)), "ab"[i % 2]) for i in range(40)]
    attack = {"length": 3, "queries": 33, "start": 1, "children": 8}
    return call.robustness(tiny_model("olmoe"), prompts, attack, perturbations=("identity",))


def test_the_search_stands_beside_the_best_of_as_many_random_suffixes() -> None:
    found = attacked().tables["attack"]
    assert (found["best_random"] < found["one_random"]).mean() > 0.7


def test_that_best_is_the_null_of_the_claim() -> None:
    claim = next(c for c in attacked().claims if c.statement.startswith("a searched suffix flips"))
    found = attacked().tables["attack"]
    assert claim.control is not None
    assert claim.control.value == (found["best_random"] < 0).mean()
    assert (found["one_random"] < 0).mean() < claim.control.value


def test_the_attacked_are_prompts_that_the_monitor_names_rightly() -> None:
    """Of those that it names wrongly there are many."""
    assert (blank().tables["attack"]["margin"] > 0).all()
