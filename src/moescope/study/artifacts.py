"""What a study saves for others to run, in one file NAME.safetensors, which names the model that it was made for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moescope.errors import InputError
from moescope.files.checkpoint import load_arrays, save_arrays
from moescope.models import load

if TYPE_CHECKING:
    from moescope.models import LoadedModel

_VERSION = 3


def write_artifact(folder: Path, name: str, model: LoadedModel, arrays: dict[str, np.ndarray], fields: dict[str, Any]) -> Path:
    """Write what moescope NAME makes into ``folder``, which is made where it is absent.

    Raises:
        InputError: the folder cannot be written to, or a file of that name is not moescope's.
    """
    note = {
        "format": _format(name),
        "model": model.name,
        "revision": model.revision,
        "fingerprint": model.fingerprint,
        "special_tokens": model.reading.special_tokens,
        "chat": model.reading.chat,
        **fields,
    }
    save_arrays(folder / f"{name}.safetensors", arrays, note)
    return folder


def read_artifact(folder: Path, name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The fields and the arrays of what :func:`write_artifact` wrote.

    Raises:
        InputError: the file is missing or damaged.
    """
    file = folder / f"{name}.safetensors"
    if not file.is_file():
        raise InputError(f"{file} is missing: {folder} is not what moescope {name} saves")
    arrays, fields = load_arrays(file, _format(name))
    return fields, arrays


def _format(name: str) -> str:
    return f"moescope-{name}-{_VERSION}"


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
