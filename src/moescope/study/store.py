"""A result as a folder, whole or absent."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pandas as pd

from moescope.errors import InputError
from moescope.files.bundle import MANIFEST, check_file, is_result, own_files, read_manifest, write_manifest
from moescope.files.folder import check_place, healed, output, settled, system_errors, whole_folder
from moescope.files.names import inside
from moescope.files.remote import local, shown
from moescope.study.encode import circuit_from_json, claim_from_json
from moescope.study.repeat import STUDY, study_yaml
from moescope.types import Circuit, Claim

CHECKPOINT = "checkpoint"


class Parts(NamedTuple):
    """What a folder holds of a result."""

    kind: str
    meta: dict[str, Any]
    claims: tuple[Claim, ...]
    circuits: dict[str, Circuit]
    tables: dict[str, pd.DataFrame]
    artifacts: dict[str, tuple[Path, tuple[str, ...]]]
    """folder and files of each"""


class Writes(Protocol):
    """An artifact, as far as writing it goes."""

    def write(self, folder: Path, /) -> object: ...


def save_result(
    values: dict[str, Any],
    tables: dict[str, pd.DataFrame],
    artifacts: Mapping[str, Writes],
    folder: Path,
    *,
    overwrite: bool,
    show: Callable[[Path], None] | None,
) -> Path:
    """See :meth:`moescope.study.result.StudyResult.save`; ``show`` adds figures and page to the folder that it is given."""
    folder = settled(folder)
    check_place(folder)
    with output(folder):  # from here on it is no other process's to change
        check_target(folder, overwrite=overwrite)
        with whole_folder(folder, own_files(folder)) as draft:
            _write(values, tables, artifacts, draft, show)
    return folder


def check_target(folder: str | Path, *, overwrite: bool) -> None:
    """Refuse a folder that :func:`save_result` could not write to, so that a long study can ask before it begins.

    Raises:
        InputError: it is a file, holds something else, holds a result while ``overwrite`` is off, or cannot be made.
    """
    folder = healed(settled(folder))
    check_place(folder)
    if not folder.exists():
        return
    with system_errors(folder):
        if not any(folder.iterdir()):
            return
    if not is_result(folder):
        raise InputError(f"{folder} is not empty and is not a moescope result; name a new folder")
    if not overwrite:
        raise InputError(f"{folder} already holds a moescope result; name another folder or ask for it to be overwritten")


def _write(
    values: dict[str, Any],
    tables: dict[str, pd.DataFrame],
    artifacts: Mapping[str, Writes],
    draft: Path,
    show: Callable[[Path], None] | None,
) -> None:
    made: dict[str, list[str]] = {}
    for name in sorted(artifacts, key=lambda name: name != CHECKPOINT):  # which is written into an empty folder like any
        folder = draft / place(name)
        folder.mkdir(parents=True, exist_ok=True)
        artifacts[name].write(folder)
        made[name] = [f.relative_to(folder).as_posix() for f in sorted(folder.rglob("*")) if f.is_file()]
    (draft / "tables").mkdir()
    for name, table in tables.items():
        try:
            table.to_parquet(draft / _table(name))
        except (ValueError, TypeError) as error:  # pyarrow's own errors are both
            raise InputError(f"table {name!r} cannot be stored: {error}") from error
    if isinstance(values["meta"].get("study"), dict):
        (draft / STUDY).write_text(study_yaml(values["meta"]["study"]), encoding="utf-8")
    if show is not None:
        show(draft)
    listed = {name: {"rows": len(table)} for name, table in tables.items()}
    write_manifest(draft, {**values, "tables": listed, "artifacts": made})


def load_result(folder: Path) -> Parts:
    """See :func:`moescope.study.result.load`."""
    named, folder = shown(folder), local(folder)
    healed(settled(folder))
    path = folder / MANIFEST
    if not folder.is_dir():
        raise InputError(f"{named}: no such folder; name one that moescope saved a result in")
    data = read_manifest(path)
    try:
        made, files = _mapping(data, "artifacts", path), _mapping(data, "files", path)
        names = [*map(_table, data["tables"]), *(place(name) / inside(file) for name in made for file in made[name])]
        for file in names:
            check_file(folder, file, files)
        return Parts(
            kind=str(data["kind"]),
            meta=_mapping(data, "meta", path),
            claims=tuple(claim_from_json(c) for c in data["claims"]),
            circuits={name: circuit_from_json(c) for name, c in _mapping(data, "circuits", path).items()},
            tables={name: _read_table(folder / _table(name)) for name in _mapping(data, "tables", path)},
            artifacts={name: (folder / place(name), tuple(own)) for name, own in made.items()},
        )
    except InputError as error:
        if error.parameter is None:  # of a file, which it names
            raise
        raise InputError(f"{path} is damaged ({error}); run the study again") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({type(error).__name__}: {error}); run the study again") from error


def _mapping(data: dict[str, Any], key: str, path: Path) -> dict[str, Any]:
    value = data.get(key)
    if not isinstance(value, dict):
        raise InputError(f"{path} is damaged: {key!r} is not a mapping; run the study again")
    return value


def _table(name: str) -> Path:
    """Where a table stands. The file's name follows from the table's: a manifest cannot point outside the folder.

    Raises:
        ValueError: it is no table's name.
    """
    if not re.fullmatch(r"[A-Za-z0-9_]+", name):
        raise ValueError(f"table {name!r}")
    return Path("tables") / f"{name}.parquet"


def _read_table(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError, TypeError, KeyError, NotImplementedError, MemoryError) as error:  # Arrow's are some of each
        raise InputError(f"{path} cannot be read: {error}") from error


def place(name: str) -> Path:
    """Where in the result's folder an artifact stands: in a folder of its name; a checkpoint in the folder itself, so that the
    folder that a user names is what transformers loads.

    Raises:
        ValueError: the name would lead elsewhere.
    """
    return Path() if name == CHECKPOINT else inside(name)
