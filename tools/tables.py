"""Writes `docs/tables.md` from the tables that the studies declare.

python tools/tables.py                    # write the page
python tools/tables.py --from RESULT      # the start of a tables.toml, from the tables of a saved result
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from moescope.study.result import load
from moescope.study.schema import schema

ROOT = Path(__file__).resolve().parent.parent
HEAD = ("| column | kind | unit | meaning |", "|---|---|---|---|")
PAGE = ROOT / "docs" / "tables.md"


def page() -> str:
    """The whole page."""
    lines = ["# Tables", "", "Every table of every study: `result.table(NAME)`, `tables/NAME.parquet` in a saved result."]
    lines.append("Written by `python tools/tables.py` from the studies' own declarations; a run whose tables differ fails.")
    for folder in sorted((ROOT / "src" / "moescope" / "studies").iterdir()):
        for number, table in enumerate(schema(folder.name).values()):
            if number == 0:
                lines += ["", f"## {folder.name}"]
            lines += ["", f"### {folder.name}: {table.name}", "", table.about, "", *HEAD]
            for name, column in table.columns.items():
                shown = f"`{name}`" + " (may be absent)" * (column.optional and "*" not in name)
                lines.append(f"| {shown} | {column.kind} | {column.unit} | {column.meaning.replace('|', chr(92) + '|')} |")
    return "\n".join(lines) + "\n"


def started(folder: Path) -> Iterator[str]:
    """A declaration of each table of a saved result, meanings left to be said."""
    for name, table in load(folder).tables.items():
        yield f'[{name}]\nabout = "TODO"'
        for column in table:
            yield f'{column} = "{_kind(table[column])}: TODO"'
        yield ""


def _kind(values: pd.Series) -> str:
    known = values.dropna()
    if pd.api.types.is_bool_dtype(known):
        return "flag"
    if pd.api.types.is_integer_dtype(known):
        return "count"
    if pd.api.types.is_numeric_dtype(known):
        return "share" if len(known) and known.between(0, 1).all() else "number"
    return "list" if len(known) and isinstance(known.iloc[0], list) else "text"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Writes docs/tables.md from the tables that the studies declare.")
    parser.add_argument("--from", dest="result", type=Path, help="a saved result whose tables start a tables.toml")
    chosen = parser.parse_args()
    if chosen.result is not None:
        print("\n".join(started(chosen.result)))
    else:
        PAGE.write_text(page(), encoding="utf-8")
