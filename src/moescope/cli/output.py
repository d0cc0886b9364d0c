"""What every command does around its work: check the target, show progress, save, print."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from moescope.cli.streams import unicode_output

if TYPE_CHECKING:
    from moescope.study.result import StudyResult


def prepare(out: Path | None, command: str, *, overwrite: bool = False) -> Path:
    """The result's folder, refused before any work is done if it could not be written at the end."""
    from moescope.study.store import check_target

    # The default folder is ours to replace; one that the user names is theirs.
    folder = out or Path("moescope-out") / command
    check_target(folder, overwrite=overwrite or out is None)
    return folder


def print_result(result: StudyResult, folder: Path, tables: tuple[str, ...] = ()) -> None:
    """The claims, the tables named, the notes, and where the report and the artifacts are."""
    from moescope.files.remote import address
    from moescope.report.answer import answer
    from moescope.study.store import place

    print_claims(result)
    console = Console(highlight=False, markup=False)
    for line in answer(result.claims, map(str, result.meta.get("tasks") or ())).lines():
        console.print(line)
    where = folder if address(folder) else folder.resolve()
    for name in (name for name in tables if name in result.tables):
        print(result.table(name).to_string(index=False), end="\n\n")
    for note in result.meta.get("notes") or []:
        print(note)
    for name in result.artifacts:
        print(f"{name}: {where / place(name)}")
    print(f"report: {where / 'report.html'}")


def print_claims(result: StudyResult) -> None:
    from moescope.report.claims import ClaimsTable

    Console().print(ClaimsTable(result.claims, title=result.meta.get("title")))


def print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=not unicode_output(), allow_nan=False, indent=2))


@contextmanager
def progress(*, quiet: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on stderr with one line per stage: done, total, time left."""
    console = Console(stderr=True, quiet=quiet)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
    )
    with Progress(*columns, console=console) as bar:
        lines: dict[str, Any] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in lines:
                for line in lines.values():
                    bar.update(line, completed=bar.tasks[line].total)
                if stage == "done":
                    return
                lines[stage] = bar.add_task(stage, total=total)
            bar.update(lines[stage], completed=done, total=total)

        yield report
