"""What a folder says of itself: every file in it with its size and checksum, in one manifest, written last."""

from __future__ import annotations

import json
import os
from pathlib import Path, PurePath
from typing import Any

from moescope.errors import InputError
from moescope.files.folder import system_errors
from moescope.files.hashes import sha256_of
from moescope.files.names import inside
from moescope.files.parse import parse_json
from moescope.files.seal import BLANK, seal_holds, sealed

SCHEMA_VERSION = 3
FORMAT = "moescope result"
MANIFEST = "results.json"


def write_manifest(folder: Path, values: dict[str, Any]) -> None:
    """Write ``values`` and the list of all files in ``folder``, which this is the last of."""
    files = (f for f in sorted(folder.rglob("*")) if f.is_file())
    listed = {f.relative_to(folder).as_posix(): {"size": f.stat().st_size, "sha256": sha256_of(f)} for f in files}
    manifest = {"format": FORMAT, "schema_version": SCHEMA_VERSION, "seal": BLANK, **values, "files": listed}
    text = json.dumps(manifest, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    with (folder / MANIFEST).open("wb") as out:
        out.writelines(sealed(text.encode("utf-8", "backslashreplace")))  # half a character: JSON's escape


def read_manifest(path: Path) -> dict[str, Any]:
    """What results.json holds, its own checksum compared.

    Raises:
        InputError: it is missing, damaged, of another version, or something else.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing: {path.parent} is not a moescope result, or its writing was cut short")
    try:
        data = parse_json(path.read_bytes())
        json.dumps(data, ensure_ascii=False).encode()  # half of a character, which no table can hold, is a ValueError
        whole = seal_holds(path)
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
    if not whole:
        raise InputError(f"{path} is damaged: its sha256 is not the one in it; run the study again")
    return data


def is_result(folder: Path) -> bool:
    """Whether a manifest of moescope's stands in ``folder``, of whatever version or state."""
    try:
        manifest = parse_json((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and manifest.get("format") == FORMAT


def own_files(folder: Path) -> set[PurePath]:
    """The files that moescope has written into ``folder``, by its manifest."""
    try:
        files = parse_json((folder / MANIFEST).read_bytes())["files"]
        return {PurePath(MANIFEST)} | {inside(file) for file in files}
    except (OSError, ValueError, KeyError, TypeError):
        return {PurePath(MANIFEST)}


def check_file(folder: Path, file: PurePath, files: dict[str, Any]) -> None:
    """Raise unless ``file`` is in ``folder`` as ``files``, those of its manifest, say.

    Raises:
        InputError: it is missing, cannot be read, or is damaged.
    """
    path, entry = folder / file, files.get(file.as_posix())
    if not os.path.isfile(path):
        raise InputError(f"{path} is missing, though {MANIFEST} lists it; run the study again")
    with system_errors(path):
        if not isinstance(entry, dict) or sha256_of(path) != entry.get("sha256"):
            raise InputError(f"{path} is damaged: its sha256 is not the one in {MANIFEST}; run the study again")


def check_model(folder: Path) -> None:
    """Check the model in the folder of a result; a folder that holds none is not ours to judge.

    Raises:
        InputError: a file of the model, or the manifest, is not as it was written.
    """
    if is_result(folder):
        files = read_manifest(folder / MANIFEST)["files"]
        for file in files:
            if "/" not in file and file != "report.html":
                check_file(folder, inside(file), files)
