"""The load of experts beside a uniform router: unevenness, and what experts with a capacity would drop."""

from __future__ import annotations

import numpy as np
import pytest

import moescope
from moescope.routing.load import RoutingLoad, dropped, gini
from tests.planted_routing import random_trace

FAST = moescope.SignatureSettings(
    n_permutations=199, n_label_permutations=0, n_nulls=20, twin=False, cards=0, batches=(32, 256), capacity_factors=(1.0, 1.5)
)


@pytest.fixture(scope="module")
def uniform() -> moescope.StudyResult:
    return moescope.signatures(random_trace(12, tokens=40), settings=FAST)


@pytest.fixture(scope="module")
def skewed() -> moescope.StudyResult:
    return moescope.signatures(random_trace(12, tokens=40, popularity=np.r_[6.0, 4.0, np.ones(14)]), settings=FAST)


def test_gini_by_its_definition() -> None:
    loads = np.random.default_rng(0).random((5, 9))
    pairs = np.abs(loads[:, :, None] - loads[:, None, :]).sum((1, 2))  # mean difference of two, over twice the mean
    assert gini(loads) == pytest.approx(pairs / (2 * 81 * loads.mean(1)))
    assert gini(np.ones(8)) == pytest.approx(0)
    assert gini(np.eye(8)[0]) == pytest.approx(7 / 8)


def test_what_a_full_expert_drops() -> None:
    counts = np.array([[5, 3, 0, 0], [2, 2, 2, 2]])
    assert dropped(counts, 1.0).tolist() == [4, 0]  # two a share
    assert dropped(counts, 1.5).tolist() == [2, 0]
    assert dropped(counts, 1.25).tolist() == [2, 0]  # two and a half, rounded up
    assert dropped(counts, 4.0).tolist() == [0, 0]


def test_a_uniform_router_drops_what_a_uniform_router_does(uniform: moescope.StudyResult) -> None:
    table = uniform.table("overflow")
    assert table[["tokens", "capacity_factor"]].to_numpy().tolist() == [[32, 1], [32, 1.5], [256, 1], [256, 1.5]]
    assert (abs(table["dropped"] - table["uniform"]) < 0.015).all()
    assert table["uniform"][0] > 0.1  # a batch of 32 tokens is uneven by chance
    assert table["uniform"].is_monotonic_decreasing or table["uniform"][1] < table["uniform"][0]
    load = uniform.table("routing_load")
    assert (load["gini"] < load["balanced_gini_high"] + 0.01).all()


def test_a_skewed_router_drops_more(skewed: moescope.StudyResult) -> None:
    table = skewed.table("overflow")
    assert (table["dropped"] > table["uniform_high"] + 0.03).all()
    assert (table["low"] < table["dropped"]).all()
    assert (table["dropped"] < table["high"]).all()
    load = skewed.table("routing_load")
    assert (load["gini"] > load["balanced_gini_high"] + 0.1).all()
    claim = next(c for c in skewed.claims if c.statement.startswith("Choices that experts"))
    assert claim.statement.endswith("in batches of 256 tokens")
    assert claim.measured == table["dropped"][3]
    assert claim.control is not None
    assert claim.control.value == table["uniform"][3]
    assert "overflow" in skewed.figures


def test_counts_alone_have_their_unevenness_beside_an_even_router() -> None:
    rng = np.random.default_rng(0)
    counts = np.stack([rng.multinomial(4000, np.full(16, 1 / 16)), rng.multinomial(4000, np.r_[0.25, np.full(15, 0.05)])])
    table = RoutingLoad((0, 1), 16, counts[None]).table()
    assert table["even_gini_low"][0] <= table["gini"][0] <= table["even_gini_high"][0]
    assert table["gini"][1] > table["even_gini_high"][1] + 0.1
