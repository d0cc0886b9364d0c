"""Which results lie below a folder."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from moescope.cli.output import print_json
from moescope.errors import InputError
from moescope.files.bundle import MANIFEST, read_manifest


def results(
    folder: Annotated[Path, Parameter(help="Results are looked for in it and below.")] = Path("moescope-out"),
    /,
    *,
    json: Annotated[bool, Parameter(negative="", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the results below a folder, the newest first: command, model, date, claims by verdict, path.

    A folder whose result is damaged is named with what is wrong. Sizes are compared; `moescope show` compares checksums too.

    Example: moescope list moescope-out
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; name one that results were saved below")
    found = sorted(map(_row, _folders(folder)), key=lambda row: (row["date"] or "", row["path"]), reverse=True)
    if json:
        print_json(found)
        return
    if not found:
        print(f"no results below {folder}")
    for row in found:
        if row["damaged"]:
            print(f"{row['path']}: damaged: {row['damaged']}")
            continue
        claims = ", ".join(f"{n} {outcome}" for outcome, n in row["claims"].items()) or "no claims"
        print(f"{row['path']}\n  {row['command']} {row['model'] or ''}, {row['date'] or 'no date'}: {claims}")


def _folders(top: Path) -> Iterator[Path]:
    for at, below, files in os.walk(top):
        below[:] = sorted(name for name in below if not name.startswith("."))
        if MANIFEST in files:
            below.clear()  # what is in a result is of it
            yield Path(at)


def _row(folder: Path) -> dict[str, Any]:
    row: dict[str, Any] = {"command": None, "model": None, "date": None, "claims": {}, "path": str(folder), "damaged": None}
    try:
        data = read_manifest(folder / MANIFEST)
        for file, entry in data["files"].items():
            if not (folder / file).is_file() or (folder / file).stat().st_size != entry["size"]:
                raise InputError(f"{folder / file} is missing or of another size than {MANIFEST} says; run the study again")
        meta = data["meta"]
        model = meta.get("model")
        row["model"] = model.get("name") if isinstance(model, dict) else model
        row["command"] = (meta.get("study") or {}).get("study") or data["kind"]
        row["date"] = meta.get("date")
        row["claims"] = dict(Counter(str(claim["outcome"]) for claim in data["claims"]).most_common())
    except InputError as error:
        row["damaged"] = str(error)
    except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        row["damaged"] = f"{folder / MANIFEST} is not what moescope writes ({type(error).__name__}: {error})"
    return row
