"""Which results lie below a folder, and which are still to be made."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from moescope.cli.output import print_json
from moescope.errors import InputError
from moescope.files.bundle import MANIFEST, read_manifest
from moescope.files.lock import is_written
from moescope.study.repeat import STUDY, read_yaml
from moescope.study.stages import WORK, output_of


def results(
    folder: Annotated[Path, Parameter(help="Results are looked for in it and below.")] = Path("moescope-out"),
    /,
    *,
    json: Annotated[bool, Parameter(negative="", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the results below a folder, the newest first: command, model, date, claims by verdict, path.

    A run that was cut off, or is running, stands among them with what it has done and the command that goes on. A folder whose
    result is damaged is named with what is wrong. Sizes are compared; `moescope show` compares checksums too.

    Example: moescope list moescope-out
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; name one that results were saved below")
    found = sorted(_found(folder), key=lambda row: (row["date"] or "", row["path"]), reverse=True)
    if json:
        print_json(found)
        return
    if not found:
        print(f"no results below {folder}")
    for row in found:
        if row["damaged"]:
            print(f"{row['path']}: damaged: {row['damaged']}")
            continue
        if row["unfinished"]:
            print(f"{row['path']}\n  {row['command']} {row['model'] or ''}, {row['date']}: {row['unfinished']}")
            continue
        claims = ", ".join(f"{n} {outcome}" for outcome, n in row["claims"].items()) or "no claims"
        print(f"{row['path']}\n  {row['command']} {row['model'] or ''}, {row['date'] or 'no date'}: {claims}")


def _found(top: Path) -> Iterator[dict[str, Any]]:
    for at, below, files in os.walk(top):
        yield from (_begun(Path(at, name)) for name in below if name.startswith(".") and name.endswith(WORK))
        below[:] = sorted(name for name in below if not name.startswith("."))
        if MANIFEST in files:
            below.clear()  # what is in a result is of it
            yield _row(Path(at))


def _begun(work: Path) -> dict[str, Any]:
    """Of a run without a result, from what stands beside where it is to be."""
    row = _empty(output_of(work))
    try:
        record = read_yaml(work / STUDY)
    except InputError:  # nothing but stages, which a run of a release of another day left
        record = {}
    model = record.get("model")
    row["command"], row["model"] = record.get("study"), model if isinstance(model, str) else None
    row["date"] = datetime.fromtimestamp(work.stat().st_mtime, UTC).isoformat(timespec="seconds")
    stages = len(list(work.rglob("*.safetensors")))
    done = f"{stages} finished stage{'' if stages == 1 else 's'}"
    line = f"moescope run {shlex.quote(str(work / STUDY))} -o {shlex.quote(row['path'])}"
    row["unfinished"] = f"running, {done}" if is_written(output_of(work.resolve())) else f"cut off after {done}; {line} goes on"
    return row


def _empty(folder: Path) -> dict[str, Any]:
    names = ("command", "model", "date", "damaged", "unfinished")
    return {**dict.fromkeys(names), "claims": {}, "path": str(folder)}


def _row(folder: Path) -> dict[str, Any]:
    row = _empty(folder)
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
