"""A result as a folder, whole or absent."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import Any, NamedTuple, Protocol

import pandas as pd

from moescope.errors import InputError
from moescope.files.folder import check_place, settled, system_errors, whole_folder
from moescope.files.names import plain_name
from moescope.files.parse import parse_json
from moescope.study.encode import circuit_from_json, claim_from_json
from moescope.types import Circuit, Claim

SCHEMA_VERSION = 2
FORMAT = "moescope result"
MANIFEST = "results.json"
OWN = (MANIFEST, "tables", "figures", "report.html")
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
    check_target(folder, overwrite=overwrite)
    with whole_folder(folder, _own(folder)) as draft:
        _write(values, tables, artifacts, draft)
        if show is not None:
            show(draft)
    return folder


def check_target(folder: str | Path, *, overwrite: bool) -> None:
    """Refuse a folder that :func:`save_result` could not write to, so that a long study can ask before it begins.

    Raises:
        InputError: it is a file, holds something else, holds a result while ``overwrite`` is off, or cannot be made.
    """
    folder = settled(folder)
    check_place(folder)
    if not folder.exists():
        return
    with system_errors(folder):
        if not any(folder.iterdir()):
            return
    if not _is_result(folder):
        raise InputError(f"{folder} is not empty and is not a moescope result; name a new folder")
    if not overwrite:
        raise InputError(f"{folder} already holds a moescope result; name another folder or ask for it to be overwritten")


def _is_result(folder: Path) -> bool:
    try:
        manifest = parse_json((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and manifest.get("format") == FORMAT


def _write(values: dict[str, Any], tables: dict[str, pd.DataFrame], artifacts: Mapping[str, Writes], draft: Path) -> None:
    made: dict[str, dict[str, str]] = {}
    for name in sorted(artifacts, key=lambda name: name != CHECKPOINT):  # which is written into an empty folder like any
        folder = draft / place(name)
        folder.mkdir(parents=True, exist_ok=True)
        artifacts[name].write(folder)
        files = (f for f in sorted(folder.rglob("*")) if f.is_file())
        made[name] = {f.relative_to(folder).as_posix(): _sha256(f) for f in files}
    (draft / "tables").mkdir()
    entries: dict[str, dict[str, Any]] = {}
    for name, table in tables.items():
        path = draft / "tables" / f"{name}.parquet"
        try:
            table.to_parquet(path)
        except (ValueError, TypeError) as error:  # pyarrow's own errors are both
            raise InputError(f"table {name!r} cannot be stored: {error}") from error
        entries[name] = {"file": f"tables/{name}.parquet", "sha256": _sha256(path), "rows": len(table)}
    manifest = {"format": FORMAT, "schema_version": SCHEMA_VERSION, **values, "tables": entries, "artifacts": made}
    text = json.dumps(manifest, indent=1, ensure_ascii=False, allow_nan=False)
    with (draft / MANIFEST).open("w", encoding="utf-8", errors="backslashreplace") as out:  # half a character: JSON's escape
        out.write(text + "\n")
        out.flush()
        os.fsync(out.fileno())


def _own(folder: Path) -> set[PurePath]:
    """What the result in ``folder`` has written there, by its manifest."""
    own = {PurePath(name) for name in OWN}
    try:
        made = parse_json((folder / MANIFEST).read_bytes()).get("artifacts", {})
        return own | {place(name) / _inside(file) for name, files in made.items() for file in files}
    except (OSError, ValueError, AttributeError):
        return own


def load_result(folder: Path) -> Parts:
    """See :func:`moescope.study.result.load`."""
    path = folder / MANIFEST
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; name one that moescope saved a result in")
    if not path.is_file():
        raise InputError(f"{path} is missing: {folder} is not a moescope result, or its writing was cut short")
    try:
        data = parse_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is damaged (not JSON: {error}); run the study again") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise InputError(f"{path} is not from moescope; name a folder that moescope saved a result in")
    version = data.get("schema_version")
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise InputError(f"{path} has schema version {version}, this moescope reads up to {SCHEMA_VERSION}; update moescope")
    if version < SCHEMA_VERSION:
        raise InputError(f"{path} has schema version {version}, from before {SCHEMA_VERSION}; run the study again")
    made = data.setdefault("artifacts", {}) and _mapping(data, "artifacts", path)
    tables = {name: _read_table(folder, path, name, entry) for name, entry in _mapping(data, "tables", path).items()}
    try:
        return Parts(
            kind=str(data["kind"]),
            meta=_mapping(data, "meta", path),
            claims=tuple(claim_from_json(c) for c in data["claims"]),
            circuits={name: circuit_from_json(c) for name, c in _mapping(data, "circuits", path).items()},
            tables=tables,
            artifacts={name: _check_artifact(folder, path, name, files) for name, files in made.items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({type(error).__name__}: {error}); run the study again") from error


def _mapping(data: dict[str, Any], key: str, path: Path) -> dict[str, Any]:
    value = data.get(key)
    if not isinstance(value, dict):
        raise InputError(f"{path} is damaged: {key!r} is not a mapping; run the study again")
    return value


def _read_table(folder: Path, manifest: Path, name: str, entry: Any) -> pd.DataFrame:
    # The name of the file follows from the name of the table: a manifest cannot point outside the folder.
    if not re.fullmatch(r"[A-Za-z0-9_]+", name) or not isinstance(entry, dict):
        raise InputError(f"{manifest} is damaged: table {name!r}; run the study again")
    path = folder / "tables" / f"{name}.parquet"
    if not path.is_file():
        raise InputError(f"{path} is missing, though {MANIFEST} lists it; run the study again")
    try:
        if _sha256(path) != entry.get("sha256"):
            raise InputError(f"{path} is damaged: its sha256 is not the one in {MANIFEST}; run the study again")
        return pd.read_parquet(path)
    except InputError:
        raise
    except (OSError, ValueError, TypeError, KeyError, NotImplementedError, MemoryError) as error:  # Arrow's are some of each
        raise InputError(f"{path} cannot be read: {error}") from error


def place(name: str) -> Path:
    """Where in the result's folder an artifact stands: in a folder of its name; a checkpoint in the folder itself, so that the
    folder that a user names is what transformers loads.

    Raises:
        ValueError: the name would lead elsewhere.
    """
    return Path() if name == CHECKPOINT else _inside(name)


def _inside(name: str) -> Path:
    """``name`` as a path of plain parts.

    Raises:
        ValueError: it would lead elsewhere.
    """
    return Path(*(plain_name(part) for part in name.split("/")))


def _check_artifact(folder: Path, manifest: Path, name: str, files: Any) -> tuple[Path, tuple[str, ...]]:
    """The folder of an artifact and its files, all there with their checksums."""
    here = folder / place(name)
    for file, digest in files.items():
        path = here / _inside(file)
        if not path.is_file():
            raise InputError(f"{path} is missing, though {manifest.name} lists it; run the study again")
        if _sha256(path) != digest:
            raise InputError(f"{path} is damaged: its sha256 is not the one in {manifest.name}; run the study again")
    return here, tuple(files)


def _sha256(path: Path) -> str:
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()
