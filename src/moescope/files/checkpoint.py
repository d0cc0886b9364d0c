"""Named numpy arrays with a JSON note in one safetensors file that carries its checksum: whatever is kept to be run again."""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from moescope.errors import InputError
from moescope.files.atomic import write_atomic
from moescope.files.parse import parse_object
from moescope.files.seal import BLANK, seal_holds, sealed


def run_id(model: str, texts: str, settings: list[Any], *arrays: np.ndarray) -> dict[str, str]:
    """What must be equal for a run to be the same run, by the words in which a difference is reported.

    Args:
        model: its fingerprint.
        texts: sha256 of their token ids.
    """
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return {
        "model": model,
        "texts": texts,
        "labels": digest.hexdigest(),
        "settings": json.dumps(settings),
    }


def save_arrays(path: Path, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
    """Write the arrays and the note to ``path``, whole or not at all.

    Raises:
        InputError: it cannot be written, or holds something that this did not write.
    """
    _check_ours(path)
    straight = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    # the format's own writer copies all of it into one buffer
    header: dict[str, Any] = {"__metadata__": {"moescope": json.dumps({"seal": BLANK, **meta})}}
    end = 0
    for name, array in straight.items():
        kind = "BOOL" if array.dtype == bool else f"{array.dtype.kind.upper()}{8 * array.itemsize}"
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": [end, end := end + array.nbytes]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    write_atomic(path, sealed(struct.pack("<Q", len(head)) + head, *(_buffer(a) for a in straight.values())))


def _buffer(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data if array.size else memoryview(b"")


def _check_ours(path: Path) -> None:
    """Refuse a file that :func:`save_arrays` may not replace.

    Raises:
        InputError: it is there, and no file of its.
    """
    if not os.path.lexists(path):
        return
    try:
        with safe_open(str(path), "numpy") as file:
            ours = "moescope" in (file.metadata() or {})
    except (OSError, SafetensorError, ValueError):
        ours = False
    if not ours:
        raise InputError(f"{path}: is there already and was not written by moescope, or is damaged; name another file")


def load_arrays(
    path: Path, form: str, *, expected: dict[str, Any] | None = None, mapped: bool = False
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what :func:`save_arrays` wrote.

    Args:
        mapped: leave the arrays in the file; what is written to them is not written there.

    Raises:
        InputError: the file is missing, damaged, not of format ``form``, or its note differs from ``expected``.
    """
    try:
        with safe_open(str(path), "numpy") as file:
            meta = parse_object((file.metadata() or {}).get("moescope", "{}"))
            if meta.get("format") != form:
                raise InputError(f"{path}: not a file of format {form}; choose another file name")
            if not seal_holds(path):
                raise InputError(f"{path}: is damaged: its sha256 is not the one in it; delete it and run again")
            arrays = _mapped(path) if mapped else {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (OSError, SafetensorError, ValueError, TypeError, KeyError) as error:  # the last two: of types that numpy lacks
        raise InputError(f"{path}: damaged or not a safetensors file ({error}); delete it and run again") from error
    meta.pop("seal", None)
    for key, value in (expected or {}).items():
        if meta.get(key) != value:
            raise InputError(f"{path}: was written with other {key}; delete it or choose another file name")
    return arrays, meta


def _mapped(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = parse_object(file.read(size))
    found: dict[str, np.ndarray] = {}
    for name, entry in header.items():
        if name != "__metadata__":
            kind, shape, at = entry["dtype"], tuple(entry["shape"]), 8 + size + entry["data_offsets"][0]
            dtype = np.dtype(bool if kind == "BOOL" else f"{kind[0].lower()}{int(kind[1:]) // 8}")
            found[name] = np.memmap(path, dtype, "c", at, shape) if math.prod(shape) else np.empty(shape, dtype)
    return found


def check_array(name: str, array: np.ndarray, kind: type[np.generic], shape: tuple[int, ...] | None = None) -> None:
    """Check an array that was read: of type ``kind`` or of one below it, of that shape where one is given, and finite.

    Raises:
        ValueError: it is not; one line without the file.
    """
    if not np.issubdtype(array.dtype, kind) or shape not in (None, array.shape) or not np.isfinite(array).all():
        raise ValueError(f"{name} is {array.dtype} {array.shape}, or not finite")


class Damaged(InputError):
    """A file's arrays are not those that its kind has."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(f"{path}: {what}; it is damaged or of another version: delete it and run again")


def check_arrays(path: Path, arrays: dict[str, np.ndarray], shapes: Mapping[str, tuple[int | None, ...]]) -> None:
    """Compare arrays with their shapes (None: any length) and refuse values that are not finite.

    Raises:
        Damaged: naming the array.
    """
    for name, shape in shapes.items():
        if name not in arrays:
            raise Damaged(path, f"it lacks the array {name!r}")
        found = arrays[name]
        if len(found.shape) != len(shape) or any(b is not None and a != b for a, b in zip(found.shape, shape, strict=True)):
            raise Damaged(path, f"{name!r} has shape {found.shape}")
        if found.dtype.kind not in "fiub" or not np.isfinite(found).all():
            raise Damaged(path, f"{name!r} holds values that are not finite numbers")
