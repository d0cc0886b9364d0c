"""What a study saves beside its result for others to run: one JSON file that names the model, one of arrays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.numpy import load_file

from moescope.errors import InputError
from moescope.models import load

if TYPE_CHECKING:
    from moescope.models import LoadedModel


def read_artifact(
    folder: Path, manifest: str, weights: str, kind: str, command: str
) -> tuple[dict[str, Any], dict[str, Any], Path]:
    path = folder / manifest
    for part in (path, folder / weights):
        if not part.is_file():
            raise InputError(f"{part} is missing: {folder} is not what moescope {command} saves")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        tensors = load_file(folder / weights)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{folder} is damaged ({str(error).splitlines()[0]}); run moescope {command} again") from error
    if not isinstance(data, dict) or data.get("format") != kind or data.get("version") != 1:
        raise InputError(f"{path} is not of a kind that this moescope reads")
    return data, tensors, path


def artifact_model(folder: Path, data: dict[str, Any], model: LoadedModel | None, options: dict[str, Any]) -> LoadedModel:
    loaded = load(data["model"], revision=data["revision"], **options) if model is None else model
    if loaded.fingerprint != data["fingerprint"]:
        made = f"{data['model']} ({data['fingerprint']})"
        raise InputError(
            f"{folder} was made for {made}, not for {loaded.name} ({loaded.fingerprint}): another model, checkpoint or --dtype"
        )
    return loaded
