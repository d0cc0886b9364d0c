"""How far a study is, on stderr: a bar in a terminal or a notebook, now and then a line with the time left elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeRemainingColumn

Report = Callable[[str, int, int], None]
"""Called with (stage, done, total); the stage ``done`` ends the last one."""
_FIRST, _EVERY, _BETWEEN = 10.0, 30.0, 2.0
"""seconds: until the first line, so that a short run's log holds none; between two of a stage; between two stages'"""


@contextmanager
def progress(*, quiet: bool = False) -> Iterator[Report]:
    """What a study tells its progress to, for as long as the body runs."""
    console = Console(stderr=True, quiet=quiet)
    if quiet:
        yield lambda stage, done, total: None
    elif console.is_jupyter:
        yield _Lines(_displayed(), every=0.5, first=0.0)
    elif console.is_terminal:
        with _bars(console) as report:
            yield report
    else:
        yield _Lines(lambda text: print(text, file=sys.stderr, flush=True))


@contextmanager
def _bars(console: Console) -> Iterator[Report]:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
    )
    with Progress(*columns, console=console) as bar:
        lines: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in lines:
                for line in lines.values():
                    bar.update(line, completed=bar.tasks[line].total)
                if stage == "done":
                    return
                lines[stage] = bar.add_task(stage, total=total)
            bar.update(lines[stage], completed=done, total=total)

        yield report


class _Lines:
    """One line of text at a time: a stage that begins, and then how far it is."""

    def __init__(self, write: Callable[[str], object], *, every: float = _EVERY, first: float = _FIRST) -> None:
        self._write, self._every, self._first = write, every, first
        self._began = self._said = time.monotonic()
        self._stage, self._since, self._from = "", self._began, 0
        self._spoke = False

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        new = stage != self._stage
        if new:
            self._stage, self._since, self._from = stage, now, done
        if stage == "done":
            if self._spoke:
                self._write(f"{_clock()} done after {_span(now - self._began)}")
            return
        if now - self._began < self._first or (self._spoke and now - self._said < (_BETWEEN if new else self._every)):
            return
        self._said, self._spoke = now, True
        self._write(f"{_clock()} {stage}: {done:,} of {total:,}{self._left(now, done, total)}")

    def _left(self, now: float, done: int, total: int) -> str:
        """Of the stage, from what it took so far."""
        if done <= self._from or done >= total:
            return ""
        return f", about {_span((now - self._since) / (done - self._from) * (total - done))} left of it"


def _clock() -> str:
    return time.strftime("%H:%M:%S")


def _span(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _displayed() -> Callable[[str], object]:
    """Writes into one place of a notebook's cell, again and again."""
    from IPython.display import display  # there, where the notebook's kernel is

    handle = display({"text/plain": ""}, raw=True, display_id=True)
    return lambda text: handle.update({"text/plain": text}, raw=True)
