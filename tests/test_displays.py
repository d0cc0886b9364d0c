"""Nothing that was measured is lost to a display: a notebook's backend, a figure that fails, a terminal that is not UTF-8."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import moescope
from moescope.errors import Note
from moescope.report import html
from moescope.report import registry as figures
from moescope.report.style import look
from tests.synthetic_result import synthetic_result
from tests.synthetic_tables import synthetic_results


def _run(arguments: list[str], **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", *arguments], env={**os.environ, **environment}, capture_output=True, check=False
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return synthetic_result(("certainty",)).save(tmp_path / "out", figures=False)


def test_a_notebook_s_backend_that_is_not_installed(folder: Path) -> None:
    code = (
        "import sys, moescope; r = moescope.load(sys.argv[1]); r.save(sys.argv[2]); import os; print(os.environ['MPLBACKEND'])"
    )
    backend = "module://no_such_inline.backend"
    done = subprocess.run(
        [sys.executable, "-c", code, folder, folder.parent / "again"],
        env={**os.environ, "MPLBACKEND": backend}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == backend
    assert "could not" not in done.stderr
    assert (folder.parent / "again" / "figures" / "dashboard-certainty.png").stat().st_size > 10_000
    code = "import moescope.report.style, matplotlib; print(matplotlib.get_backend())"
    told = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "MPLBACKEND": "svg"}, capture_output=True, text=True, check=True
    )
    assert told.stdout.strip().lower() == "svg"  # one that is installed stays


def test_a_figure_that_fails_costs_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = synthetic_result(("certainty",))
    ordinary = html.rendered

    def fail(result: moescope.StudyResult, name: str) -> figures.Image:
        if name == "layers":
            raise ZeroDivisionError("no room")
        return ordinary(result, name)

    monkeypatch.setattr(html, "rendered", fail)
    with pytest.warns(Note, match=r"figure layers could not be drawn \(ZeroDivisionError: no room\)"):
        place = result.save(tmp_path / "out")
    assert moescope.load(place).claims == result.claims
    assert not (place / "figures" / "layers.png").exists()
    assert (place / "figures" / "comparison.png").exists()
    assert "Figure layers could not be drawn." in (place / "report.html").read_text(encoding="utf-8")

    def broken(result: moescope.StudyResult, folder: Path) -> None:
        raise ImportError("no matplotlib")

    monkeypatch.setattr(html, "write_pages", broken)
    with pytest.warns(Note, match=r"figures and report could not be made \(ImportError: no matplotlib\)"):
        place = result.save(tmp_path / "again")
    assert moescope.load(place).claims == result.claims


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8"])
def test_terminals_of_any_encoding(folder: Path, encoding: str) -> None:
    shown = _run(["moescope", "show", str(folder)], PYTHONIOENCODING=encoding)
    assert (shown.returncode, shown.stderr) == (0, b"")
    assert "certainty" in shown.stdout.decode(encoding)
    json = _run(["moescope", "show", str(folder), "--json"], PYTHONIOENCODING=encoding)
    plain = _run(["moescope", "show", str(folder), "--json"], PYTHONIOENCODING="utf-8")
    import json as parser

    assert parser.loads(json.stdout.decode(encoding)) == parser.loads(plain.stdout.decode("utf-8"))
    wrong = _run(["moescope", "circuits", "dense-tiny", "--task", "日本=nowhere"], PYTHONIOENCODING=encoding)
    assert wrong.returncode == 2
    assert b"Traceback" not in wrong.stderr


@pytest.mark.slow
def test_names_with_an_underscore_stand_in_every_legend() -> None:
    def legends(name: str) -> dict[tuple[str, str], list[str]]:
        found = {}
        for result in (synthetic_result(tuple(name.format(t) for t in ("one", "two"))), *synthetic_results(name)):
            for entry in figures.entries(result):
                with look():
                    figure = entry.draw()
                    figure.canvas.draw()
                boxes = [*figure.legends, *(legend for axes in figure.axes if (legend := axes.get_legend()))]
                found[result.kind, entry.title.replace(name.format(""), "")] = [
                    t.get_text() for b in boxes for t in b.get_texts()
                ]
        return found

    plain, marked = legends("{}"), legends("_{}")
    assert [len(texts) for texts in plain.values()] == [len(texts) for texts in marked.values()]
    assert any(text.lstrip("\u2060").startswith("_") for texts in marked.values() for text in texts)


def test_captions_name_what_no_font_can_draw() -> None:
    from moescope.report.fonts import full_names

    assert full_names(["肯定", "否定"], 18) in ("", " Names in full, in order: 肯定; 否定.")
    assert full_names(["\U000f0000", "b"], 18) == " Names in full, in order: \U000f0000; b."
    assert full_names(["a", "b"], 18) == ""
