"""Figures: each is drawn from its tables, complete and degenerate ones, legibly, and the same bytes every time."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterator

import matplotlib.text
import numpy as np
import pandas as pd
import pytest
from PIL import Image as Pixels

from moescope import studies
from moescope.errors import InputError
from moescope.report import registry as figures
from moescope.report.style import SERIES, look
from moescope.studies.circuits import controls
from moescope.studies.circuits.figures import compare, comparison
from moescope.studies.circuits.figures.extras import FIGURES
from moescope.study.result import StudyResult
from tests.figure_checks import check_legends, check_texts, only_shipped_fonts
from tests.synthetic_result import synthetic_result

LONG = "a task whose name $is {far_too} long\\for any axis " * 2


@pytest.fixture(autouse=True)
def _shipped_fonts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with only_shipped_fonts(monkeypatch):
        yield


@pytest.fixture(autouse=True)
def _warnings_are_errors() -> Iterator[None]:
    """A missing glyph, a collapsed layout or a division by zero must not pass in silence."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def _changed(result: StudyResult, change: Callable[[pd.DataFrame], pd.DataFrame]) -> StudyResult:
    tables = {name: change(table.copy()) for name, table in result.tables.items()}
    return StudyResult(result.kind, result.meta, result.claims, result.circuits, tables)


def _with_gaps(table: pd.DataFrame) -> pd.DataFrame:
    """A quarter of all measured numbers missing."""
    rng = np.random.default_rng(0)
    keys = {"k", "rank", "layer", "neuron", "step", "n_layers", "n", "n_random", "clusters", "distinct_coordinates"}
    for column in table.select_dtypes("number").columns.difference(list(keys)):
        table[column] = table[column].astype(float).mask(rng.random(len(table)) < 0.25)
    return table


def _all_missing(table: pd.DataFrame) -> pd.DataFrame:
    """No interval, null or p was made."""
    for column in table.columns.intersection(["low", "high", "p", "p_family", "chance", "expected", "threshold_5pct"]):
        table[column] = np.nan
    return table


def _renamed(table: pd.DataFrame) -> pd.DataFrame:
    for column in table.columns.intersection(["task", "source", "target_task", "class", "a", "b", "task_a", "task_b"]):
        table[column] = LONG + table[column].astype(str)
    if "source" in table:
        table["target"] = LONG + table["target"].astype(str)
    return table


def _with_classes(result: StudyResult, n: int) -> StudyResult:
    """Every class table with ``n`` classes."""

    def change(table: pd.DataFrame) -> pd.DataFrame:
        if "class" in table:
            table["class"] = [f"class {i % n}" for i in range(len(table))]
        return table

    return _changed(result, change)


CASES: dict[str, Callable[[], StudyResult]] = {
    "two tasks": synthetic_result,
    "one task": lambda: synthetic_result(("topic",)),
    "five tasks": lambda: synthetic_result(tuple(f"task {i}" for i in range(5))),
    "missing cells": lambda: _changed(synthetic_result(), _with_gaps),
    "no nulls": lambda: _changed(synthetic_result(("certainty",)), _all_missing),
    "many classes": lambda: _with_classes(synthetic_result(("topic",), optional=False), 12),
    "long names": lambda: _changed(synthetic_result(), _renamed),
    "one layer": lambda: synthetic_result(("certainty",), n_layers=1, width=400, optional=False),
    "deep": lambda: synthetic_result(("certainty",), n_layers=80, width=64, optional=False),
}


@pytest.mark.parametrize("case", CASES)
def test_every_figure_draws_and_can_be_read(case: str) -> None:
    """No text lies on another or leaves the page, and no curve runs under a legend."""
    found = figures.entries(CASES[case]())
    assert len({entry.name for entry in found}) == len(found) > 0
    boards = [e for e in found if e.name.startswith("dashboard")]
    for entry in [e for e in found if e not in boards[2:]]:  # two are enough: a dashboard knows of its own task alone
        assert entry.title
        assert entry.caption.endswith(".")
        with look():
            figure = entry.draw()
        assert figure.axes, entry.name
        check_texts(entry.name, figure)
        check_legends(entry.name, figure)


def test_the_tables_decide_which_figures_there_are() -> None:
    result = synthetic_result(("certainty", "sentiment"))
    expected = {"comparison", "dashboard-certainty", "dashboard-sentiment", "layers", *(name for name, *_ in FIGURES)}
    expected -= {"each_class", "confusion", "graded_controls"}  # of more than two classes, and of graded labels
    assert set(figures.available(result)) == expected
    assert figures.available(StudyResult("circuits", tables={"other": pd.DataFrame({"a": [1]})})) == []
    empty = _changed(result, lambda table: table.iloc[:0])
    assert figures.available(empty) == []
    only = StudyResult("circuits", tables={"layers": result.tables["layers"]})
    assert figures.available(only) == ["layers"]


def test_five_tasks_take_two_pages_of_layers() -> None:
    names = figures.available(CASES["five tasks"]())
    assert [n for n in names if n.startswith("layers")] == ["layers-1", "layers-2"]


def test_tasks_with_the_same_file_name_keep_both_dashboards() -> None:
    names = figures.available(synthetic_result(("a b", "a-b"), optional=False))
    assert [n for n in names if n.startswith("dashboard")] == ["dashboard-a_b", "dashboard-a_b_"]


def test_kinds_without_figures_have_none() -> None:
    result = synthetic_result()
    other = StudyResult("elsewhere", result.meta, result.claims, {}, result.tables)
    assert other.figures == []
    with pytest.raises(InputError, match="no table that a figure could show"):
        other.plot()


def test_a_kind_is_added_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(studies.FIGURES, "elsewhere", "moescope.studies.circuits.figures")
    result = synthetic_result()
    assert StudyResult("elsewhere", result.meta, (), {}, result.tables).figures == result.figures


def test_unknown_figures_are_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"no figure 'nothing'; it can draw: comparison, dashboard-certainty"):
        synthetic_result().figure("nothing")


def test_a_short_name_is_the_first_of_its_kind() -> None:
    result = synthetic_result(("sentiment", "certainty"))
    assert result.figure("dashboard").get_suptitle() == "sentiment · dense-tiny"
    assert result.plot().get_suptitle() == "sentiment · dense-tiny"


def test_same_figure_same_bytes() -> None:
    first, second = (figures.rendered(synthetic_result(), "layers") for _ in range(2))
    assert first == second
    assert Pixels.open(io.BytesIO(first.png)).size == (1440, 870)
    assert b"<svg" in first.svg
    assert b"certainty" in first.svg, "each text is named beside its paths"
    assert b"<text" not in first.svg, "no browser may set it in another font"


def test_styles_leave_no_trace() -> None:
    before = dict(matplotlib.rcParams)
    figures.rendered(synthetic_result(), "task_map")
    assert dict(matplotlib.rcParams) == before


def test_compare_has_one_row_per_model() -> None:
    results = [synthetic_result(model=f"model {i}", seed=i) for i in range(3)]
    figure = compare(results)
    texts = [t.get_text() for t in figure.findobj(matplotlib.text.Text)]
    assert len(figure.axes) == 12
    assert {f"model {i}" for i in range(3)} <= set(texts)
    with pytest.raises(InputError, match="no result to compare"):
        compare([StudyResult("circuits")])


def test_save_figure_writes_both_or_one_line(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = synthetic_result().figure("task_map")
    paths = figures.save_figure(figure, tmp_path / "new" / "folder", "map")
    assert [p.name for p in paths] == ["map.png", "map.svg"]
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == ["map.png", "map.svg"]
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*map\.png"):
        figures.save_figure(figure, tmp_path / "file", "map")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match=r"cannot write .*map\.png: the disk is full"):
        figures.save_figure(figure, tmp_path / "full", "map")
    assert list((tmp_path / "full").iterdir()) == []


def test_surface_cues_are_known_by_the_name_that_the_study_gives() -> None:
    assert comparison.SURFACE == controls.SURFACE


def test_only_as_many_classes_as_can_be_told_apart() -> None:
    figure = _with_classes(synthetic_result(("topic",)), 12).figure("dashboard")
    axes = next(a for a in figure.axes if "Projection" in a.get_title(loc="left"))
    labels = [t.get_text() for t in axes.get_legend().get_texts()]
    assert len(labels) == len(SERIES) + 1
    assert labels[-1] == "6 more classes not shown"
