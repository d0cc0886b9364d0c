"""Look at results, models and tasks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from moescope.cli.output import print_claims, print_json
from moescope.errors import InputError

if TYPE_CHECKING:
    from moescope.study.result import StudyResult


def show(folder: Path, /, *, table: str = "claims", json: bool = False) -> None:
    """Print a saved result again: its claims, or one of its tables."""
    from moescope.study.result import load

    result = load(folder)
    if json:
        print_json(result.json())
    elif table == "claims":
        print_claims(result)
    else:
        print(result.table(table).to_string(index=False))


def compare(
    folders: list[Path],
    /,
    *,
    out: Annotated[Path | None, Parameter(help="Folder for what is made (default: moescope-out/compare, numbered).")] = None,
    json: Annotated[bool, Parameter(negative="", help="Print JSON instead of a table.")] = False,
) -> None:
    """Set the claims of several results of one study side by side, as a table and as CSV; of circuits also draw them.

    Example: moescope compare moescope-out/circuits-smollm2 moescope-out/circuits-gemma3-270m
    """
    import pandas as pd

    from moescope.cli.place import free
    from moescope.files.atomic import write_atomic
    from moescope.study.result import load

    alone = len({folder.name for folder in folders}) == len(folders)
    found = {folder.name if alone else str(folder): load(folder) for folder in folders}
    kinds = {result.kind: folder for folder, result in found.items()}
    if len(kinds) > 1:
        named = ", ".join(f"{folder} is of {kind!r}" for kind, folder in kinds.items())
        raise InputError(f"only results of one study stand side by side: {named}")
    place = out or free("compare")
    rows = _side_by_side(found)
    files = [place / "comparison.csv"]
    write_atomic(files[0], [pd.DataFrame(rows).to_csv(index=False).encode()])
    if "circuits" in kinds:
        from moescope.report.registry import save_figure
        from moescope.studies.circuits.figures import compare as draw

        files += save_figure(draw(list(found.values())), place, "comparison")
    if json:
        print_json({"claims": rows, "files": [str(file) for file in files]})
        return
    table = Table("claim", *found, title=f"{next(iter(kinds))}: measured, verdict")
    for row in rows:
        table.add_row(*(Text(row[name]) for name in ("claim", *found)))
    Console().print(table)
    for file in files:
        print(file)


def _side_by_side(found: Mapping[str, StudyResult]) -> list[dict[str, str]]:
    """One row a claim, in the order of the first result that has it; what a result does not claim is a dash."""
    from moescope.report.format import numbers, verdict_style

    rows: dict[tuple[str, str], dict[str, str]] = {}
    for folder, result in found.items():
        for claim in result.claims:
            row = rows.setdefault((claim.id, claim.statement), {"claim": claim.statement, **dict.fromkeys(found, "–")})
            row[folder] = f"{numbers(claim)[1]} {verdict_style(claim).mark} {claim.verdict}"
    return list(rows.values())


def models(*, json: bool = False) -> None:
    """List the embedded models, with their cards."""
    from moescope.zoo import list_models

    cards = list_models()
    if json:
        print_json(cards)
    else:
        print("\n\n".join(cards.values()))


def tasks(*, json: bool = False) -> None:
    """List the task presets, and how a task of your own is named."""
    from moescope.tasks import list_tasks

    rows = list_tasks()
    if json:
        print_json(rows)
        return
    width = max(map(len, rows))
    for name, description in rows.items():
        print(f"{name:{width}}  {description}")
    print("\nOf your own: --task NAME=FILE.jsonl?text=COLUMN&label=COLUMN (also .csv, .parquet), or NAME=hf:org/name")
    print("Numbers as labels: &kind=graded; a label for each word: ?kind=tokens")


def completion(shell: Literal["bash", "zsh", "fish"], /) -> None:
    """Print the script that lets a shell complete commands and options.

    Where it goes: bash ~/.local/share/bash-completion/completions/moescope, fish ~/.config/fish/completions/moescope.fish,
    zsh a file _moescope in a folder of $fpath.

    Example: moescope completion bash > ~/.local/share/bash-completion/completions/moescope
    """
    from moescope.cli import app

    print(app.generate_completion(shell=shell))
