"""Figures with names of any length, and in a font 15 % wider than matplotlib's: nothing is cut or overprinted."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib as mpl
import pandas as pd
import pytest
from fontTools.ttLib import TTFont
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager

from moescope.report import fonts
from moescope.report import registry as figures
from moescope.report.registry import Entry
from moescope.report.style import letter, look, new_figure
from moescope.studies.circuits.figures import compare
from moescope.study.result import StudyResult
from tests.figure_checks import check_legends, check_texts, drawn_in, only_shipped_fonts, wider
from tests.synthetic_result import synthetic_result
from tests.synthetic_tables import synthetic_results

WIDER = 1.15
LONG = "a name of forty characters at least: {}"
CJK = "日本語の課題 {}"


@pytest.fixture(scope="module")
def wide_font(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return wider(tmp_path_factory.mktemp("fonts"), WIDER)


@pytest.fixture(params=["DejaVu Sans", "15 % wider"])
def font(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The only fonts of the machine; a missing glyph or a collapsed layout is an error."""
    paths = request.getfixturevalue("wide_font") if request.param != "DejaVu Sans" else None
    with (
        drawn_in(paths, monkeypatch) if paths else only_shipped_fonts(monkeypatch),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)
        yield request.param


def _tasks(n: int, name: str = "{}") -> StudyResult:
    """A circuits result with ``n`` tasks, tasks and classes called ``name``; the causal tables for few tasks only."""
    result = synthetic_result(tuple(name.format(f"task {i}") for i in range(n)))
    tables = {k: v for k, v in result.tables.items() if n <= 4 or k not in ("ablation", "erasure")}
    for table in tables.values():
        if "class" in table:
            table["class"] = [name.format(c) for c in table["class"]]
    return StudyResult(result.kind, result.meta, result.claims, result.circuits, tables)


RESULTS: dict[str, Callable[[], list[StudyResult]]] = {
    "two tasks": lambda: [_tasks(2)],
    "two long names": lambda: [_tasks(2, LONG)],
    "four long names": lambda: [_tasks(4, LONG)],
    "eight tasks": lambda: [_tasks(8)],
    "eight long names": lambda: [_tasks(8, LONG)],
    "other kinds": synthetic_results,
    "other kinds, long names": lambda: synthetic_results(LONG),
}


def _entries(results: list[StudyResult]) -> Iterator[tuple[str, Entry]]:
    """One dashboard is enough, since it knows of its own task alone; so is one page of layers."""
    for result in results:
        found = figures.entries(result)
        assert found, result.kind
        for kind in dict.fromkeys(_kind(e) for e in found):
            yield result.kind, next(e for e in found if _kind(e) == kind)


def _kind(entry: Entry) -> str:
    return entry.name.rsplit("-", 1)[0]


def _drawn(entry: Entry) -> Figure:
    with look():
        return entry.draw()


@pytest.mark.parametrize("case", RESULTS)
def test_nothing_is_cut_or_overprinted(case: str, font: str) -> None:
    if font == "DejaVu Sans" and case.startswith("two"):
        pytest.skip("test_report_figures draws these in DejaVu Sans")
    for kind, entry in _entries(RESULTS[case]()):
        figure = _drawn(entry)
        check_texts(f"{kind} {entry.name} in {font}", figure)
        check_legends(f"{kind} {entry.name} in {font}", figure)


def test_models_compared_in_rows(font: str) -> None:
    results = [synthetic_result(("certainty", "sentiment"), model=LONG.format(i), optional=False) for i in range(3)]
    check_texts(f"compare in {font}", compare(results))


def test_the_wider_font_is_wider(wide_font: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def width(text: str) -> float:
        with look():
            figure = new_figure(1)
            return figure.text(0, 0, text, fontsize=40).get_window_extent().width

    with only_shipped_fonts(monkeypatch):
        narrow = width("Specialization ratio 0.75")
    with drawn_in(wide_font, monkeypatch):
        assert width("Specialization ratio 0.75") == pytest.approx(WIDER * narrow, rel=0.02)


def test_a_cut_and_an_overprinted_text_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check can fail."""
    with only_shipped_fonts(monkeypatch):
        figure = synthetic_result().figure("layers")
        check_texts("whole", figure)
        figure.text(0.97, 0.5, "runs over the page's edge")
        with pytest.raises(AssertionError, match="leaves the page"):
            check_texts("cut", figure)
        figure = synthetic_result().figure("layers")
        label = figure.axes[0].yaxis.label
        with look():
            figure.canvas.draw()
        x, y = figure.transFigure.inverted().transform(label.get_window_extent().get_points().mean(0))
        figure.text(x, y, "on a label", rotation=60, ha="center", va="center")
        with pytest.raises(AssertionError, match="lies on"):
            check_texts("overprinted", figure)


def test_the_size_of_a_figure_follows_from_the_number_of_tasks_alone() -> None:
    for n in (2, 4, 8):
        for short, long in zip(_entries([_tasks(n)]), _entries([_tasks(n, LONG)]), strict=True):
            if short[1].name not in ("comparison", "task_map", "layers"):
                continue
            assert (_drawn(short[1]).get_size_inches() == _drawn(long[1]).get_size_inches()).all(), short[1].name


@pytest.mark.parametrize("name", [r"$\frac{1}{$", "$100 to $500", r"a\$b$", "$x$", "_hidden"])
def test_names_are_drawn_as_they_are(name: str) -> None:
    result = synthetic_result(("certainty",))
    for table in result.tables.values():
        for column in table.columns.intersection(["task", "class"]):
            table[column] = name if column == "task" else [name, "other"] * (len(table) // 2) + [name] * (len(table) % 2)
    with look():
        board = result.figure("dashboard")
        board.canvas.draw()
    assert board.get_suptitle().lstrip("\u2060") == f"{name} · dense-tiny"
    legend = next(a for a in board.axes if "Projection" in a.get_title(loc="left")).get_legend()
    assert {t.get_text().lstrip("\u2060") for t in legend.get_texts()} == {name, "other"}
    with look():
        figure = new_figure(2)
        letter(figure.subplots(), 0, name)
        check_texts(name, figure)
    assert figure.axes[0].get_title(loc="left").lstrip("\u2060") == name


def test_what_no_font_can_draw_is_escaped_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with only_shipped_fonts(monkeypatch), warnings.catch_warnings():
        warnings.simplefilter("error")  # a missing glyph
        warnings.simplefilter("ignore", DeprecationWarning)
        assert fonts.plain("日本 é") == "\\u65e5\\u672c é"
        texts = check_texts("comparison", _tasks(2, CJK).figure("comparison"))
        assert any(text.startswith("\\u65e5") for text in texts)
        assert sum("no font here can draw" in text.replace("\n", " ") for text in texts) == 1
        for _, entry in _entries([_tasks(1, CJK), *synthetic_results(CJK)]):
            check_texts(entry.name, _drawn(entry))
        assert not any("no font here" in text for text in check_texts("plain", synthetic_result().figure("layers")))


def test_what_another_font_of_the_machine_can_draw_is_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = _with_an_ideograph(tmp_path)
    with only_shipped_fonts(monkeypatch):
        fontManager.addfont(path)
        fonts.further_fonts.cache_clear()
        assert fonts.plain("日本") == "日\\u672c"


def _with_an_ideograph(folder: Path) -> Path:
    """A font under the name of a system's, whose only ideograph is 日."""
    font = wider(folder, 1.0)[0]
    with TTFont(font) as file:
        for table in file["cmap"].tables:
            if table.isUnicode():
                table.cmap[ord("日")] = "A"
        for record in file["name"].names:
            if record.nameID in (1, 4, 16):
                record.string = "Unifont"
        file.save(folder / "unifont.ttf")
    return folder / "unifont.ttf"


def test_captions_name_in_full_what_a_figure_may_cut() -> None:
    found = {e.name: e for e in figures.entries(_tasks(2, LONG))}
    for name in ("comparison", "layers", "controls", "task_map", "dynamics"):
        assert f"Names in full, in order: {LONG.format('task 0')}; {LONG.format('task 1')}." in found[name].caption, name
    assert "Names in full" not in "".join(e.caption for e in figures.entries(_tasks(2)))
    effects = figures.entries(synthetic_results(LONG)[4])[0]
    assert LONG.format("mathematics") in effects.caption


def test_a_user_s_settings_do_not_change_a_figure() -> None:
    figure = synthetic_result().figure("layers")
    with look():
        figure.canvas.draw()
    before = figures.render(figure)
    with mpl.rc_context({"font.size": 20, "legend.fontsize": 20, "font.family": "serif", "text.hinting": "default"}):
        figure = synthetic_result().figure("layers")
        figure.canvas.draw()
    assert figures.render(figure) == before


def test_no_number_on_an_axis_is_markup() -> None:
    for _, entry in _entries([_tasks(1), *synthetic_results()]):
        with look():
            figure = _drawn(entry)
            figure.canvas.draw()
        for axes in figure.axes:
            ticks = [*axes.get_xticklabels(minor=True), *axes.get_xticklabels(), *axes.get_yticklabels(minor=True)]
            assert not [t.get_text() for t in [*ticks, *axes.get_yticklabels()] if "\\math" in t.get_text()], entry.name


def test_tables_are_not_changed_by_drawing() -> None:
    result = synthetic_results()[0]
    copies = {name: table.copy(deep=True) for name, table in result.tables.items()}
    for _, entry in _entries([result]):
        _drawn(entry)
    for name, table in copies.items():
        pd.testing.assert_frame_equal(result.tables[name], table)
