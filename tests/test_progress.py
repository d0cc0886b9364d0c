"""A study says how far it is: lines with the time left in a log, a bar in a terminal, nothing where it is told to be quiet."""

from __future__ import annotations

import io

import numpy as np
import pytest

from moescope import Run, StudyResult
from moescope.study import progress as module
from moescope.study.progress import progress
from moescope.study.repeat import verb
from tests.synthetic_result import synthetic_result


class Clock:
    now = 0.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(module.time, "monotonic", lambda: Clock.now)
    Clock.now = 0.0
    return Clock()


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What was said on stderr, without the time of day."""
    return [line.partition(" ")[2] for line in capsys.readouterr().err.splitlines()]


def test_a_log_has_the_stages_and_the_time_left(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress() as report:
        for done in range(101):
            Clock.now = float(done)
            report("reading", done, 100)
        for done in range(4):
            Clock.now = 200.0 + 60 * done
            report("fitting", done, 3)
        report("done", 1, 1)
    said = lines(capsys)
    assert said[0] == "reading: 10 of 100, about 90 s left of it"
    assert said[1] == "reading: 40 of 100, about 60 s left of it"
    assert said[-5:-1] == [
        "fitting: 0 of 3",
        "fitting: 1 of 3, about 2 min left of it",
        "fitting: 2 of 3, about 60 s left of it",
        "fitting: 3 of 3",
    ]
    assert said[-1] == "done after 6 min"


def test_a_short_run_leaves_no_line(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress() as report:
        for done in range(10):
            Clock.now += 0.9
            report("reading", done, 10)
        report("done", 1, 1)
    assert lines(capsys) == []


_RUN = Run()


@verb
def count(run: Run = _RUN) -> int:
    assert run.progress is not None
    for done in range(4):
        Clock.now += 20
        run.progress("counting", done, 4)
    return 4


def test_a_call_in_python_shows_it_unless_it_is_quiet_or_told_otherwise(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    count()
    assert lines(capsys)[0] == "counting: 0 of 4"
    count(run=Run(quiet=True))
    assert lines(capsys) == []
    told: list[tuple[str, int, int]] = []
    count(run=Run(progress=lambda *how: told.append(how)))
    assert told[0] == ("counting", 0, 4)
    assert lines(capsys) == []


def test_a_terminal_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr", terminal)
    with progress() as report:
        report("reading", 3, 10)
    assert "reading" in terminal.getvalue()
    assert "3/10" in terminal.getvalue()


def test_a_figure_shows_itself_where_nobody_imported_pyplot() -> None:
    result: StudyResult = synthetic_result()
    png = result.plot()._repr_png_()  # type: ignore[attr-defined]
    assert png.startswith(b"\x89PNG")
    assert int.from_bytes(png[16:20], "big") > 800  # pixels wide
    assert np.frombuffer(png, np.uint8).std() > 0
