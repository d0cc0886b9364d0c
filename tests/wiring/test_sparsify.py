"""Which neurons work, what chooses them, what judges that, and what stands beside it; on MLPs whose answer is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import moescope
from moescope.study.protocol import ControlFault
from moescope.study.result import StudyResult
from moescope.types import Claim
from tests.made_sparse import CLUSTERS, own_text, table_model

TEXT: dict[str, Any] = {"window": 64, "calibration_tokens": 3072, "heldout_tokens": 3072, "speed": False}


def sparsified(*, sparse: bool, **options: Any) -> StudyResult:
    model = table_model(sparse=sparse)
    settings = moescope.SparsifySettings(**(TEXT | options))
    return moescope.sparsify(model, own_text(model, 48, seed=1), settings, heldout=own_text(model, 48, seed=2))


@pytest.fixture(scope="module")
def planted() -> StudyResult:
    """A quarter of the neurons where an eighth write anything."""
    return sparsified(sparse=True, share=2 / CLUSTERS, choose=4, bits=8, shares=(2 / CLUSTERS,))


@pytest.fixture(scope="module")
def level() -> StudyResult:
    """Every neuron writes as much on every word; bits and shares are left to the search."""
    return sparsified(sparse=False, shares=(0.5,), rivals=("oracle", "static"), budgets="greedy")


def claim(result: StudyResult, start: str) -> Claim:
    return next(c for c in result.claims if c.statement.startswith(start))


def losses(result: StudyResult) -> dict[str, float]:
    return dict(zip(result.table("frontier")["method"], result.table("frontier")["loss"], strict=True))


def test_neurons_that_write_are_found_and_recommended(planted: StudyResult) -> None:
    layers = planted.table("layers")
    assert (layers["captured"] > 0.999).all()
    assert (layers["static"] < 0.7).all()
    assert claim(planted, "recommendation").measured == "use the sparse model"
    assert claim(planted, "choosing 25% of the neurons").outcome == "holds"
    assert claim(planted, "choosing neurons loses less than plain").outcome == "holds"
    assert claim(planted, "choosing by 4 bits loses no more").outcome == "holds"


def test_random_neurons_and_another_tokens_lose_what_the_tokens_own_do_not(planted: StudyResult) -> None:
    found = losses(planted)
    for name in ("random", "another token", "static"):
        assert found[name] > found["planes"] + 0.5
    told = claim(planted, "which neurons work is of the token")
    assert (told.outcome, told.explanation) == ("holds", "none found")
    assert {c["control"] for c in planted.meta["controls"]} == {"random", "another token"}


def test_fewer_bits_lose_more(planted: StudyResult) -> None:
    found = losses(planted)
    assert found["8-bit"] < found["5-bit"] < found["4-bit"] < found["3-bit"]
    assert found["4/5-bit"] < found["4-bit"]


def test_a_threshold_keeps_the_share_that_it_was_set_for(planted: StudyResult) -> None:
    table = planted.table("frontier").set_index("method")
    for name in ("cats", "up-first", "teal"):
        assert abs(table.loc[name, "used"] - 0.25) < 0.03


def test_where_every_neuron_writes_alike_nothing_is_recommended(level: StudyResult) -> None:
    assert claim(level, "recommendation").measured == "do not choose so few"
    told = claim(level, "which neurons work is of the token")
    assert told.outcome in ("inconclusive", "contradicted")
    table = level.table("frontier")
    own = table[table["method"] == "planes"].iloc[0]
    assert (table.query("method == '4-bit'")["loss"] < own["loss"]).all()


def test_what_is_left_open_is_chosen_on_text_that_does_not_judge(level: StudyResult) -> None:
    search = level.table("search")
    assert search["kept"].sum() == 1
    assert (search["rise"] > 0.2).all(), "none is within the tolerance, so the one that loses least is kept"
    kept = search[search["kept"]].iloc[0]
    assert kept["rise"] == search["rise"].min()
    judged = level.table("frontier").query("method == 'planes' and share == @kept.share").iloc[0]
    assert kept["rise"] != pytest.approx(judged["rise"], rel=1e-6)
    names = {name for rows in level.meta["rows"] for name in rows if name != "name"}
    assert names == {"fit", "select", "judge"}


def test_budgets_are_kept_if_they_validate_better(level: StudyResult) -> None:
    budgets = level.table("budgets").set_index("budgets")
    assert budgets["kept"].sum() == 1
    assert budgets.loc[budgets["kept"], "loss"].iloc[0] == budgets["loss"].min()


def test_a_choice_that_is_not_anothers_stops_the_study(monkeypatch: pytest.MonkeyPatch) -> None:
    from moescope.studies.sparsify import calibration

    monkeypatch.setattr(calibration, "by_another_token", lambda bits, seed: calibration.by_planes(bits))
    with pytest.raises(ControlFault, match="another token"):
        sparsified(sparse=True, share=0.25, choose=4, bits=8, shares=(0.25,), rivals=())


def test_own_text_is_what_the_model_says() -> None:
    """The planted texts are seeded, and no two documents are one."""
    texts = own_text(table_model(sparse=True), 12, seed=3)
    assert texts == own_text(table_model(sparse=True), 12, seed=3)
    assert len(np.unique(texts)) == 12
