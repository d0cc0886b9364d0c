"""Look at results, models and tasks."""

from __future__ import annotations

from pathlib import Path

from moescope.cli.output import print_claims, print_json


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


def compare(folders: list[Path], /, *, out: Path = Path("moescope-out/compare")) -> None:
    """Draw several saved circuit studies (models) side by side, as PNG and SVG."""
    from moescope.report.registry import save_figure
    from moescope.studies.circuits.figures import compare as draw
    from moescope.study.result import load

    for path in save_figure(draw([load(folder) for folder in folders]), out, "comparison"):
        print(path)


def models(*, json: bool = False) -> None:
    """List the embedded models, with their cards."""
    from moescope.models import list_models

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
