"""Named numpy arrays with a JSON note in one safetensors file: checkpoints and saved moments."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from moescope.errors import InputError
from moescope.files.atomic import write_atomic


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
    """Write the arrays and the note to ``path``, atomically."""
    # safetensors takes the buffer as it lies, so a transposed view must be straightened first
    straight = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    write_atomic(path, [save(straight, {"moescope": json.dumps(meta)})])


def load_arrays(
    path: Path, form: str, *, expected: dict[str, Any] | None = None
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what :func:`save_arrays` wrote.

    Raises:
        InputError: the file is missing, damaged, not of format ``form``, or its note differs from ``expected``.
    """
    try:
        with safe_open(str(path), "numpy") as file:
            meta = json.loads((file.metadata() or {}).get("moescope", "{}"))
            if meta.get("format") == form:
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"{path}: damaged or not a safetensors file ({error}); delete it and run again") from error
    if meta.get("format") != form:
        raise InputError(f"{path}: not a file of format {form}; choose another file name")
    for key, value in (expected or {}).items():
        if meta.get(key) != value:
            raise InputError(f"{path}: was written with other {key}; delete it or choose another file name")
    return arrays, meta
