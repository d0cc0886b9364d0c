"""Rows that judge are apart from those that fit, select and calibrate, by group; a control is not what it controls."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from moescope.errors import InputError
from moescope.study.protocol import Context, ControlFault
from moescope.study.result import Stored, StudyResult, load
from moescope.study.rows import ROLES, FoldRows, Rows, RowsOverlap, halves
from moescope.study.run import Run
from moescope.study.settings import Settings

GROUPS = np.array(["a", "a", "b", "b", "c", "d"])


@pytest.mark.parametrize(("first", "second"), list(combinations(ROLES, 2)))
def test_no_group_is_in_two_roles(first: str, second: str) -> None:
    """Different rows of one group are as bad as the same row; only fitting and selecting may share."""
    roles = {first: np.array([0, 4]), second: np.array([1, 5])}
    if (first, second) == ("fit", "select"):
        Rows("shared", GROUPS, **roles)
        return
    with pytest.raises(RowsOverlap, match="'a'"):
        Rows("mixed", GROUPS, **roles)


def test_what_is_on_record_is_what_was_used() -> None:
    rows = halves("ablation", GROUPS, np.array([True, True, False, False, True, False]))
    assert rows.select.tolist() == [0, 1, 4]
    assert rows.judge.tolist() == [2, 3, 5]
    record = rows.record()
    assert record["judge"]["rows"] == 3
    assert record["judge"]["groups"] == 2
    assert "calibrate" not in record
    other = halves("ablation", GROUPS, np.array([True, True, False, False, False, True])).record()
    assert other["judge"]["sha256"] != record["judge"]["sha256"]


def test_folds_keep_groups_whole() -> None:
    folds = FoldRows("cv", GROUPS, np.array([0, 0, 1, 1, 0, 1]))
    assert [rows.judge.tolist() for rows in folds] == [[0, 1, 4], [2, 3, 5]]
    assert folds.record()["rows_by_fold"] == [3, 3]
    with pytest.raises(RowsOverlap, match="'a'"):
        FoldRows("cv", GROUPS, np.array([0, 1, 1, 1, 0, 0]))


class Text:
    """An artifact of one file."""

    def __init__(self, text: str) -> None:
        self.text = text

    def write(self, folder: Path, /) -> None:
        (folder / "text.txt").write_text(self.text)


def ended(run: Run, text: str = "one") -> StudyResult:
    context = Context("route", Settings(), run)
    context.rows(halves("all", GROUPS, GROUPS == "a"))
    context.control("shuffled", differs=True, evidence="5 of 6 labels moved")
    context.note("Mind the gap.")
    artifacts = {"exit/a": Text(text), "exit/b": Text(text * 2)}
    tables = {"speed": pd.DataFrame({"what": ["x"], "microseconds": [1.0], "low": [0.5], "high": [1.5]})}
    return context.result(title="An example", claims=[], tables=tables, artifacts=artifacts)


def test_a_control_that_is_what_it_controls_is_a_fault() -> None:
    context = Context("example", Settings(), Run())
    with pytest.raises(ControlFault, match="the control 'twin' is what it controls"):
        context.control("twin", differs=False, evidence="one fingerprint")


def test_the_result_carries_rows_controls_and_artifacts_and_saves_them_together(tmp_path: Path) -> None:
    seen: list[str] = []
    result = ended(Run(out=tmp_path / "out", seed=7, progress=lambda stage, done, total: seen.append(stage)))
    assert seen == ["done"]
    back = load(tmp_path / "out")
    assert back == result
    assert back.rows[0]["name"] == "all"
    assert back.meta["controls"] == [{"control": "shuffled", "evidence": "5 of 6 labels moved"}]
    assert back.meta["seed"] == 7
    stored = back.artifacts["exit/b"]
    assert isinstance(stored, Stored)
    assert (stored.folder / "text.txt").read_text() == "oneone"
    back.save(tmp_path / "copy")  # artifacts travel
    assert (tmp_path / "copy" / "exit" / "a" / "text.txt").read_text() == "one"
    # an old artifact does not survive beside a new result
    again = StudyResult("example", artifacts={"mask": Text("new")})
    again.save(tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out" / "exit").exists()


def test_a_damaged_artifact_is_not_loaded(tmp_path: Path) -> None:
    ended(Run(out=tmp_path / "out"))
    file = tmp_path / "out" / "exit" / "a" / "text.txt"
    file.write_text("two")
    with pytest.raises(InputError, match=r"text\.txt is damaged: its sha256"):
        load(tmp_path / "out")
    file.unlink()
    with pytest.raises(InputError, match=r"text\.txt is missing"):
        load(tmp_path / "out")


def test_a_target_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="not a moescope result"):
        Context("example", Settings(), Run(out=tmp_path))
