"""Boosts by a few prompts of a task never seen: found to help where an expert is that task's, and not where it is not."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from moescope.errors import InputError
from moescope.models import LoadedModel
from moescope.studies.steer.settings import SteerSettings
from moescope.studies.steer.study import steer
from moescope.study.result import StudyResult
from moescope.tasks import Prompt
from tests.test_steer_experts_effect import passages, planted

N = 4
SETTINGS = SteerSettings(unseen=(f"capitals={N}",), n_random=79, text_tokens=200, length=24, new_tokens=0)
CLAIM = f"boost by {N} prompts of capitals: helps capitals, beyond matched random ones and the same of other tasks"


def prompts(each: int = 6) -> list[Prompt]:
    """Other texts of the same kinds than those that judge."""
    return [Prompt(f"{p.category} {p.group}", p.text, p.category) for p in passages(seed=1) if int(p.group) < each]


@cache
def model(strength: float, also: str = "") -> LoadedModel:
    """Expert 0 of each of four layers has a little more than half of a capital's weight, so that a boost can give it more."""
    return planted(strength, layers=4, also=also, gate=0.2)


@cache
def studied(strength: float, also: str = "") -> StudyResult:
    return steer(model(strength, also), passages(), SETTINGS, prompts=prompts())


def test_a_task_with_an_expert_of_its_own_is_helped_by_its_own_prompts() -> None:
    result = studied(0.001)
    claim = result.claims[0]
    assert (claim.statement, claim.id) == (CLAIM, "S8")
    assert (claim.outcome, claim.explanation) == ("holds", "none found")
    assert all(f"that by as many prompts of {c}" in claim.words for c in ("small", "digits"))
    others = result.table("others")
    assert others["prompts_of"].tolist() == ["small", "digits"]
    assert set(others["category"]) == {"capitals"}
    assert (others["beyond_low"] > 0.02).all()
    own = result.table("effects").query("category == 'capitals'")["effect"].item()
    assert own < -0.02
    # on the same texts
    assert others["beyond"].to_numpy() == pytest.approx(others["effect"].to_numpy() - own, abs=1e-5)


def test_an_expert_that_carries_nothing_helps_nobody() -> None:
    result = studied(0.0)
    assert result.table("experts").query("layer == 0 and expert == 0")["boost"].item() > 3  # it is the task's own in its use
    assert result.claims[0].outcome == "contradicted"


def test_what_another_tasks_prompts_do_as_well_is_not_the_tasks_own() -> None:
    """A few small letters use those experts too: a boost by prompts of them helps capitals no less."""
    result = studied(0.005, "abcd")
    row = result.table("effects").query("category == 'capitals'").iloc[0]
    assert row["high"] < -0.3  # it does help, and more than random experts do
    assert row["excess_high"] < -0.3
    claim = result.claims[0]
    assert claim.outcome == "contradicted"
    assert "that by as many prompts of small" in claim.words


def test_what_random_boosts_do_is_taken_off() -> None:
    row = studied(0.001).table("effects").query("category == 'capitals'").iloc[0]
    assert abs(row["random_mean"]) > 1e-4
    assert row["excess"] == pytest.approx(row["effect"] - row["random_mean"], abs=1e-9)


def test_a_few_prompts_choose_and_the_work_is_counted() -> None:
    result = studied(0.001)
    (rows,) = result.rows
    assert rows["select"]["rows"] == 3 * N
    assert rows["judge"]["rows"] == sum(found["texts"] for found in result.meta["texts"].values())
    sizes = {c: found["tokens"] for c, found in result.meta["texts"].items()}
    assert result.meta["forward_tokens"] == {"steered": sum(sizes.values()) * 80 + sizes["capitals"] * 3}
    assert len(result.table("effects")["match"].unique()) == 1


def test_another_tasks_boost_is_not_told_of_the_unseen_one() -> None:
    """Prompts of the unseen task that use other experts change its own boost, not those of the others."""
    changed = [replace(p, text="§" * 20) if p.category == "capitals" else p for p in prompts()]
    few = replace(SETTINGS, text_tokens=60, n_random=9, alpha=0.45)
    before, after = (
        steer(model(0.001), passages(), few, prompts=given).table("others")["effect"] for given in (prompts(), changed)
    )
    assert np.array_equal(before, after)


@pytest.mark.parametrize(
    ("unseen", "given", "message"),
    [
        ("capitals=7", prompts(), "unseen: 7 prompts asked for and category 'capitals' has 6"),
        ("poem", prompts(), "category 'poem' is not among the prompts'"),
        ("capitals=2", [p for p in prompts() if p.category != "small"], "unseen: the prompts have 2 categories"),
        (
            "capitals=6",
            [replace(p, topic="3") for p in prompts()],
            "prompts: prompt 'capitals .' and a text that judges are both of document '3'",
        ),
    ],
)
def test_what_cannot_be_judged_is_refused_before_the_model_is_loaded(unseen: str, given: list[Prompt], message: str) -> None:
    with pytest.raises(InputError, match=message):
        steer("no-such-model", passages(), replace(SETTINGS, unseen=(unseen,)), prompts=given)


def test_a_category_of_one_document_is_refused() -> None:
    alone = [replace(p, group="0") for p in passages()]
    with pytest.raises(InputError, match="texts: category 'capitals' has texts of one document"):
        steer("no-such-model", alone, SETTINGS, prompts=prompts())


@pytest.mark.parametrize(
    ("unseen", "message"),
    [
        (("capitals=0",), "0 prompts make no boost"),
        (("capitals=x",), "'x' is not a number"),
        (("small", "small=8"), "small=8 is given twice"),
    ],
)
def test_what_makes_no_boost_is_refused(unseen: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=f"unseen: .*{message}"):
        SteerSettings(unseen=unseen)
