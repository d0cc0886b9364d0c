"""A circuit kept alone, where it is known what carries the answer: one neuron, all of them alike, or none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from moescope.study.result import StudyResult
from moescope.types import Claim
from tests.wiring import call
from tests.wiring.planted import expects, lookup_model, task, words_of

WIDTH, ROWS, NEURON = 256, 160, 7
CLASSES = np.random.default_rng(99).permutation(np.arange(ROWS) % 2)
SIGN = 2.0 * CLASSES - 1.0


def kept(x: np.ndarray, reads: np.ndarray, *, layers: int = 1, mode: str = "resample") -> StudyResult:
    """A word for each row of x (N, D); the head answers yes or no by the sign of its product with ``reads`` (D,)."""
    model = lookup_model(words_of(x) | {"no": np.eye(WIDTH)[0], "yes": np.eye(WIDTH)[0]}, layers=layers)
    expects(model, "yes", reads)
    expects(model, "no", -reads)
    made = replace(task([*words_of(x)], CLASSES), answers=("no", "yes"))
    return call.circuits(model, made, keep_only=mode, keep_random=119)


def said(result: StudyResult, about: str) -> Claim:
    found = [c for c in result.claims if about in c.statement]
    assert len(found) == 1
    return found[0]


def curve(result: StudyResult, order: str, target: str = "answer_logodds", mode: str = "resample") -> pd.DataFrame:
    return result.tables["kept"].query("order == @order and target == @target and mode == @mode").set_index("k")


@pytest.fixture(scope="module")
def one() -> StudyResult:
    """One coordinate of three layers holds the class and gives the answer; a hundred others are wider."""
    x = np.random.default_rng(0).normal(size=(ROWS, WIDTH))
    x[:, NEURON] = 3 * SIGN + 0.3 * x[:, NEURON]
    x[:, 40:140] *= 5
    return kept(x, 2 * np.eye(WIDTH)[NEURON], layers=3)


def test_a_planted_neuron_carries_the_answer_alone(one: StudyResult) -> None:
    claim = said(one, "1 coordinates alone keep 90% of the effect")
    assert (claim.outcome, claim.explanation) == ("holds", "none found")
    assert claim.measured == pytest.approx(1, abs=0.15)
    claim = said(one, "fewer coordinates of the circuit than random ones keep")
    assert (claim.outcome, claim.explanation) == ("holds", "none found")
    assert claim.measured == 1 / WIDTH
    assert claim.published is not None
    assert one.circuits["made"].neurons[0].index == NEURON


def test_random_neurons_do_not(one: StudyResult) -> None:
    row = curve(one, "random").loc[1]
    assert row["faithfulness"] < 0.1
    assert row["gap_low"] > 0.5
    assert curve(one, "random").loc[200, "faithfulness"] > 0.5  # most of these 200 hold it


def test_the_widest_neurons_do_not(one: StudyResult) -> None:
    assert curve(one, "top_variance").loc[1, "faithfulness"] < 0.3
    assert curve(one, "top_variance", "probe_accuracy").loc[1, "faithfulness"] < 0.4


def test_gradients_choose_it_too(one: StudyResult) -> None:
    assert curve(one, "attribution").loc[1, "faithfulness"] == pytest.approx(1, abs=0.15)
    assert said(one, "keep as much as those that gradients choose").outcome == "holds"


def test_what_was_read_is_counted(one: StudyResult) -> None:
    tokens = one.meta["forward_tokens"]
    assert tokens["attribution"] >= ROWS // 2  # words of one token
    sizes = one.tables["kept"]["k"].nunique()
    # all, none, and of 3 named orders and 119, and 19 of the mean, each size; from the first layer's output on
    assert tokens["kept"] <= ROWS // 2 * (4 + sizes * (2 * 3 + 119 + 19)) + 200
    judged = [row for row in one.meta["rows"] if row["name"] == "made: interventions"]
    assert judged[0]["judge"]["rows"] == ROWS // 2


@pytest.fixture(scope="module")
def spread() -> StudyResult:
    """Every coordinate holds as much of the class, and the answer is read from all alike."""
    x = np.random.default_rng(1).normal(size=(ROWS, WIDTH)) + 0.8 * SIGN[:, None]
    return kept(x, np.full(WIDTH, 0.3))


def test_an_answer_that_all_carry_is_not_carried_by_one(spread: StudyResult) -> None:
    claim = said(spread, "1 neurons alone keep 90% of the effect")
    assert claim.outcome == "contradicted"
    assert isinstance(claim.measured, float)
    assert claim.measured < 0.1
    claim = said(spread, "fewer neurons of the circuit than random ones keep")
    assert claim.outcome != "holds"
    assert isinstance(claim.measured, float)
    assert claim.measured > 0.6


def test_where_the_model_does_not_know_there_is_nothing_to_keep() -> None:
    x = np.random.default_rng(2).normal(size=(ROWS, WIDTH))
    x[:, NEURON] = 3 * SIGN + 0.3 * x[:, NEURON]
    result = kept(x, 2 * np.eye(WIDTH)[NEURON + 1])  # the answer is read from noise
    for about in ("alone keep", "fewer neurons", "gradients choose"):
        claim = said(result, about)
        assert claim.outcome == "not tested"
        assert "there is nothing to keep" in claim.words
    assert said(result, "share that keeps 90% of a probe's balanced accuracy at the last layer, the rest set by mean").measured


def test_random_neurons_may_be_the_circuit_by_chance() -> None:
    """Of eight neurons a random four are the circuit's four once in seventy times, and 119 are drawn."""
    width, classes = 8, np.arange(60) % 2
    x = np.random.default_rng(1).normal(size=(60, width))
    x[:, 0] = 3 * (2.0 * classes - 1)
    model = lookup_model(words_of(x) | {"no": np.eye(width)[1], "yes": np.eye(width)[1]})
    expects(model, "yes", np.eye(width)[0])
    expects(model, "no", -np.eye(width)[0])
    made = replace(task([*words_of(x)], classes), answers=("no", "yes"))
    assert 4 in call.circuits(model, made, k=4, keep_only="mean", keep_random=119).tables["kept"]["k"].to_numpy()
