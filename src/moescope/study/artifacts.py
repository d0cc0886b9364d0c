"""What a study saves for others to run: arrays in NAME.safetensors, the rest in NAME.json, which names the model.

The JSON holds the sha256 of the arrays, so that a folder whose two files are not of one writing is never read.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import save as save_bytes

from moescope.errors import InputError
from moescope.files.atomic import write_atomic
from moescope.files.parse import parse_json, parse_safetensors
from moescope.models import load

if TYPE_CHECKING:
    from moescope.models import LoadedModel

_VERSION = 2


def write_artifact(folder: Path, name: str, model: LoadedModel, arrays: dict[str, np.ndarray], fields: dict[str, Any]) -> Path:
    """Write what moescope NAME makes into ``folder``, which is made where it is absent.

    Raises:
        InputError: the folder cannot be written to.
    """
    # safetensors takes the buffer as it lies, so a transposed view must be straightened first
    data = save_bytes({key: np.ascontiguousarray(array) for key, array in arrays.items()})
    manifest = {
        "format": f"moescope {name}",
        "version": _VERSION,
        "sha256": hashlib.sha256(data).hexdigest(),
        "model": model.name,
        "revision": model.revision,
        "fingerprint": model.fingerprint,
        "special_tokens": model.reading.special_tokens,
        "chat": model.reading.chat,
        **fields,
    }
    write_atomic(folder / f"{name}.safetensors", [data])
    write_atomic(folder / f"{name}.json", [json.dumps(manifest, indent=1, allow_nan=False).encode() + b"\n"])
    return folder


def read_artifact(folder: Path, name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The fields and the arrays of what :func:`write_artifact` wrote.

    Raises:
        InputError: a file is missing or damaged, or the two are not of one writing.
    """
    path, weights = folder / f"{name}.json", folder / f"{name}.safetensors"
    for part in (path, weights):
        if not part.is_file():
            raise InputError(f"{part} is missing: {folder} is not what moescope {name} saves")
    try:
        fields, data = parse_json(path.read_bytes()), weights.read_bytes()
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} is damaged ({str(error).splitlines()[0]}); run moescope {name} again") from error
    if not isinstance(fields, dict) or fields.get("format") != f"moescope {name}" or fields.get("version") != _VERSION:
        raise InputError(f"{path} is not of a kind that this moescope reads; run moescope {name} again")
    if fields.get("sha256") != hashlib.sha256(data).hexdigest():
        raise InputError(
            f"{folder} is damaged ({weights.name} and {path.name} do not belong together: the sha256 of the one is not that in "
            f"the other); run moescope {name} again"
        )
    try:
        return fields, parse_safetensors(data)
    except ValueError as error:
        raise InputError(f"{folder} is damaged ({error}); run moescope {name} again") from error


def artifact_model(folder: Path, fields: dict[str, Any], model: LoadedModel | None, options: dict[str, Any]) -> LoadedModel:
    """``model``, or the one that ``fields`` names, loaded with ``options``; it reads texts as it did when they were written.

    Raises:
        InputError: it is not the one that the artifact was made for.
    """
    given = (fields.get(key) for key in ("model", "revision", "fingerprint", "special_tokens", "chat"))
    kinds = (str, str | None, str, str | None, bool | None)
    if not all(isinstance(value, kind) for value, kind in zip(given, kinds, strict=True)):
        raise InputError(f"{folder} is damaged (it does not say which model it is of, or how that reads); make it again")
    loaded = load(fields["model"], revision=fields.get("revision"), **options) if model is None else model
    if loaded.fingerprint != fields["fingerprint"]:
        made = f"{fields['model']} ({fields['fingerprint']})"
        raise InputError(
            f"{folder} was made for {made}, not for {loaded.name} ({loaded.fingerprint}): another model, checkpoint or dtype"
        )
    try:
        return loaded.read_as(fields.get("special_tokens", "default"), fields.get("chat", False))
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error
