"""Which rows fit, calibrate and judge a router."""

from __future__ import annotations

from functools import cache

import numpy as np

from moescope.study.result import StudyResult
from moescope.types import Task
from tests.wiring import call
from tests.wiring.planted import lookup_model, task

EACH, WIDTH, RATE = 60, 16, 0.2


def tasks_of(names: str) -> list[Task]:
    """Texts of two words: the first is not looked at, the second belongs to its row alone."""
    return [task([f"start {name}{i}" for i in range(EACH)], np.arange(EACH) % 2, name=name) for name in names]


def parts_of(tasks: list[Task]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """bool (tasks, EACH): the rows that fit, that calibrate and that judge."""
    rows = [(e.text, label, f"{label}/{e.group}") for label, one in enumerate(tasks) for e in one.examples]
    together = Task(
        "all",
        tuple(type(tasks[0].examples[0])(text, label, group) for text, label, group in rows),
        tuple(t.name for t in tasks),
        "made here",
    )
    found = []
    for part in call.exit_split(together):
        mask = np.zeros(len(rows), dtype=bool)
        mask[part] = True
        found.append(mask.reshape(len(tasks), EACH))
    return found[0], found[1], found[2]


@cache
def spread() -> StudyResult:
    """A's calibration rows are narrower than all its others, B's are wider, C is far away."""
    tasks = tasks_of("ABC")
    _, calibration, _ = parts_of(tasks)
    x = np.random.default_rng(0).normal(size=(3, EACH, WIDTH))
    x[0, calibration[0]] *= 0.05
    x[1, calibration[1]] *= 3
    for number, at in enumerate((-40.0, 40.0, 200.0)):
        x[number, :, 3] += at
    x[2, :, 4] += 200
    words = {f"{name}{i}": x[number, i] for number, name in enumerate("ABC") for i in range(EACH)}
    return call.route(lookup_model(words, layers=2), tasks, unknown=RATE, features="residual")


def test_unknown_is_what_is_stranger_than_calibration_rows() -> None:
    """Not than rows that fit, nor than those that judge, which are as wide as what is named."""
    named = spread().tables["named"].set_index("task")
    assert named.loc["A", "as unknown"] > 0.7


def test_each_task_is_calibrated_by_its_own_rows() -> None:
    named = spread().tables["named"].set_index("task")
    assert named.loc["A", "as unknown"] > 0.7
    assert named.loc["B", "as unknown"] < 0.2


def test_a_task_that_was_left_out_is_unknown() -> None:
    unknown = spread().tables["unknown"].set_index("prompts")["unknown"]
    assert unknown["C, left out"] > 0.9


@cache
def blank() -> StudyResult:
    """Two tasks that differ in nothing."""
    tasks = tasks_of("AB")
    x = np.random.default_rng(1).normal(size=(2, EACH, WIDTH))
    words = {f"{name}{i}": x[number, i] for number, name in enumerate("AB") for i in range(EACH)}
    return call.route(lookup_model(words, layers=2), tasks, unknown=RATE, features="residual")


def test_rows_that_judge_do_not_fit() -> None:
    assert blank().claims[0].measured < 0.7


def test_the_surface_cue_has_not_learnt_the_rows_that_judge() -> None:
    control = blank().claims[0].control
    assert control is not None
    assert float(control.value) < 0.8


def test_the_surface_cue_is_not_chosen_by_the_rows_that_judge() -> None:
    """A full stop tells four prompts in five, but of those that judge nothing; the length tells fewer, and of those all."""
    rng = np.random.default_rng(2)
    _, _, judge = parts_of(tasks_of("AB"))
    mine = np.array([0, 1])[:, None]
    stop, long = (np.where(rng.random((2, EACH)) < share, mine, 1 - mine) for share in (0.8, 0.7))
    stop[judge] = rng.permutation(stop[judge])
    long[judge] = np.broadcast_to(mine, (2, EACH))[judge]
    words = {
        (t, i): "ab"[t] + f"{i:02d}" + "x" * (20 * int(long[t, i])) + "z."[int(stop[t, i])] for t in (0, 1) for i in range(EACH)
    }
    tasks = [task([f"start {words[t, i]}" for i in range(EACH)], np.arange(EACH) % 2, name="AB"[t]) for t in (0, 1)]
    x = rng.normal(size=(2, EACH, WIDTH))
    model = lookup_model({word: x[t, i] for (t, i), word in words.items()}, layers=2)
    control = call.route(model, tasks, unknown=RATE, features="residual").claims[0].control
    assert control is not None
    assert "full stop" in control.name or "punctuation" in control.name or "final" in control.name
