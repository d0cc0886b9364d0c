"""A task's experts alone: what is planted is found, what is not is not, and the promise is of the task that was named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moescope
from moescope.errors import InputError
from moescope.runtime.mask import PruneMask
from moescope.study.rows import calibrated
from moescope.types import Example, Task
from tests.gated_llama import TASKS, worded
from tests.planted_llama import planted_llama
from tests.tasked_olmoe import EXPERTS, tasked_olmoe

ROWS = 200
QUICK: dict[str, Any] = {"act": True, "leave_out": 0.5, "features": "residual", "unknown": 0.1, "layer": 1, "k": 3}
QUICK |= {"timed_texts": 1, "n_random": 39, "n_resplits": 2, "n_changes": 39}


def study(*, tasked: bool, tasks: list[Task] | None = None, **changed: Any) -> moescope.StudyResult:
    tasks = [worded(t, ROWS) for t in range(TASKS)] if tasks is None else tasks
    return moescope.route(tasked_olmoe(tasked=tasked), tasks, moescope.RouteSettings(**{**QUICK, **changed}))


@pytest.fixture(scope="module")
def tasked() -> moescope.StudyResult:
    return study(tasked=True)


def test_a_tasks_own_experts_are_found(tasked: moescope.StudyResult) -> None:
    promise, *beside = tasked.claims[:4]
    assert promise.statement.startswith("with the named task's experts alone, no more texts are lost than was promised")
    assert promise.outcome == "holds"
    assert [claim.outcome for claim in beside] == ["holds"] * 3
    table = tasked.table("experts")
    assert table["own"].max() < 0
    assert table["others"].min() > 0.2
    confidence = tasked.table("experts_confidence")
    assert confidence["acted"].iloc[0] == 0
    assert confidence["acted"].is_monotonic_increasing
    assert confidence.loc[confidence["used"], "acted"].item() > 0.8


def test_they_are_saved_as_masks(tasked: moescope.StudyResult, tmp_path: Path) -> None:
    folder = tasked.save(tmp_path / "out", figures=False)
    for t in range(TASKS):
        mask = PruneMask.load(folder / "experts" / f"t{t}" / "mask.safetensors")
        assert list(mask.keep) == [2, 3], "layers behind the router's alone"
        assert mask.kept == EXPERTS // 2
        assert all(keep[[2 * t, 2 * t + 1]].all() for keep in mask.keep.values())


def test_experts_of_no_task_are_none() -> None:
    result = study(tasked=False)
    assert [(claim.outcome, claim.explanation) for claim in result.claims[1:4]] == [("contradicted", "chance")] * 3


def test_a_text_gets_the_experts_of_the_task_that_it_is_named() -> None:
    """A third of the texts that judge have another task's words: they are named that task, and lose nothing with its experts,
    though their own task's would cost them much."""
    tasks = [worded(t, ROWS) for t in range(TASKS)]
    examples = [Example(e.text, t, f"{t}/{e.group}") for t, task in enumerate(tasks) for e in task.examples]
    judge = calibrated("prompts", Task("route", tuple(examples), tuple(task.name for task in tasks), ""), 0).judge
    foreign = np.zeros(TASKS * ROWS, bool)
    foreign[judge[::3]] = True
    result = study(tasked=True, tasks=[worded(t, ROWS, foreign=one) for t, one in enumerate(foreign.reshape(TASKS, ROWS))])
    assert result.table("experts_confidence")["lost"].iloc[-1] < 0.05
    assert result.table("experts")["own"].max() > 0.2


def test_where_it_costs_more_than_is_tolerated_all_experts_stay() -> None:
    """Nothing can be left out for nothing: the promise is kept by leaving most texts their experts."""
    tasks = [worded(t, ROWS) for t in range(2)]
    used = study(tasked=False, tasks=tasks, tolerance=1e-9).table("experts_confidence").set_index("used").loc[True]
    assert used["lost"] <= 0.1
    assert used["acted"] < 0.3


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"act": False}, "leave_out: experts are left out by the task that is acted on; add act"),
        ({"n_changes": 38}, "n_changes: 38 draws cannot show anything at 0.05 for a single claim; give at least 39"),
        ({"layer": 3}, "layer: no layer behind layer 3 has experts; choose an earlier one"),
        ({"leave_out": 0.95}, "leave_out: 0.95 leaves 0 of 6 experts in layer 2, and each token needs 1; leave out fewer"),
    ],
)
def test_what_cannot_be_asked(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        study(tasked=True, tasks=[worded(t, 100) for t in range(2)], risk=0.2, delta=0.2, **changed)


def test_a_dense_model_has_none() -> None:
    with pytest.raises(InputError, match="leave_out: planted-llama has no experts"):
        moescope.route(planted_llama(), [worded(t) for t in range(2)], moescope.RouteSettings(**QUICK))
