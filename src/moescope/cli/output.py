"""What every command does around its work: check the target, show progress, save, print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from moescope.cli.streams import unicode_output

if TYPE_CHECKING:
    from moescope.study.result import StudyResult


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
