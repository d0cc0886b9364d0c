"""Null pairings, held-out topics and held-fixed tokens of the transfer study."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from moescope.routing import RoutingTrace
from moescope.study.result import StudyResult
from tests.planted_routing import random_trace
from tests.wiring import call

NAMES = tuple(f"t{i}" for i in range(8))


def routed(seed: int, *, by: tuple[str, ...] = NAMES, each: int = 6) -> RoutingTrace:
    """Every name has experts of its own, which another seed draws anew."""
    rng = np.random.default_rng(seed)
    planted = {(1, name): tuple(rng.choice(32, 4, replace=False)) for name in by}
    return random_trace(each, tokens=30, layers=(1,), n_experts=32, planted=planted, strength=0.8, categories=by, seed=seed)


def with_category(trace: RoutingTrace) -> RoutingTrace:
    """The names become topics, in turn of either category."""
    sequences = tuple(
        replace(s, category=("even", "odd")[NAMES.index(str(s.category)) % 2], group=f"{s.category}/") for s in trace.sequences
    )
    return replace(trace, sequences=sequences)


@cache
def topical() -> StudyResult:
    return call.transfer(with_category(routed(1)), with_category(routed(2)))


@cache
def categorical() -> StudyResult:
    """Two models whose routing has the category in common, and nothing else."""
    by = NAMES[:4]
    return call.transfer(routed(3, by=by, each=8), routed(4, by=by, each=8))


@pytest.mark.parametrize("measure", ["explained", "matched", "cross_model"])
def test_shuffled_pairings_align_less(measure: str) -> None:
    row = categorical().tables["alignment"].set_index("measure").loc[measure]
    assert row["p"] <= 0.1
    assert row["null"] < row["value"]


def test_shuffled_prompts_are_not_alike() -> None:
    found = categorical().tables["similarity"].iloc[0]
    assert found["p"] == 0.02
    assert abs(found["null"]) < 0.1


def test_within_a_category_the_shuffle_stays_within_it() -> None:
    """The two have nothing in common there."""
    assert categorical().tables["similarity"].iloc[0]["p_within"] > 0.05


def test_shuffled_pairings_keep_topics_together() -> None:
    """Prompts on one topic are alike in both models, which any pairing of whole topics has as well."""
    both = [with_category(routed(seed, by=NAMES[:4], each=8)) for seed in (3, 4)]
    alone = [replace(trace, sequences=tuple(replace(s, group=None) for s in trace.sequences)) for trace in both]
    assert call.transfer(*both).tables["similarity"]["p"].iloc[0] > 0.05
    assert call.transfer(*alone).tables["similarity"]["p"].iloc[0] == 0.02


def test_a_rotation_and_a_classifier_do_not_know_the_topic() -> None:
    found = topical().tables["alignment"].set_index("measure")["value"]
    assert found["explained"] < 0.05
    assert found["cross_model"] < 0.75
    assert found["native_a"] < 0.8


def test_what_both_have_of_the_tokens_is_held_fixed() -> None:
    """Both route by token id alone, each in its own way."""
    a = random_trace(12, tokens=30, lexical=True, seed=5)
    assert a.tokens is not None
    table = np.random.default_rng(6).random((a.tokens.max() + 1, *a.ids.shape[1:2], 16)).argsort(-1)[..., :4]
    found = call.transfer(a, replace(a, ids=table[a.tokens].astype(a.ids.dtype))).tables["similarity"].iloc[0]
    assert found["rho"] > 0.5
    assert found["partial"] < 0.6 * found["rho"]
