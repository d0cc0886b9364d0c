"""A router as a folder: arrays as safetensors, the rest as JSON. The model itself is named, not copied."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import save

from moescope.errors import InputError
from moescope.files.atomic import write_atomic
from moescope.runtime.route.router import TaskRouter
from moescope.study.artifacts import artifact_model, read_artifact

if TYPE_CHECKING:
    from moescope.models import LoadedModel

ROUTER_FORMAT = "moescope route"
ROUTER_WEIGHTS, ROUTER_MANIFEST = "route.safetensors", "route.json"
_ARRAYS = (
    "mean",
    "scale",
    "basis",
    "weight",
    "bias",
    "centres",
    "axes",
    "base",
    "per_token",
    "outside",
    "strangeness",
    "owner",
)


def save_router(router: TaskRouter, model: LoadedModel, folder: str | Path) -> Path:
    """Write ``route.safetensors`` and then ``route.json`` into ``folder``, which is made.

    Raises:
        InputError: the folder cannot be written to.
    """
    folder = Path(folder)
    manifest = {
        "format": ROUTER_FORMAT,
        "version": 1,
        "model": model.name,
        "revision": model.revision,
        "fingerprint": model.fingerprint,
        "tasks": router.tasks,
        "source": router.source,
        "layer": router.layer,
        "rate": router.rate,
    }
    write_atomic(folder / ROUTER_WEIGHTS, [save({name: np.ascontiguousarray(getattr(router, name)) for name in _ARRAYS})])
    write_atomic(folder / ROUTER_MANIFEST, [json.dumps(manifest, indent=1, allow_nan=False).encode() + b"\n"])
    return folder


def load_router(folder: str | Path, model: LoadedModel) -> TaskRouter:
    """Read what :func:`save_router` wrote, for use with ``model``.

    Raises:
        InputError: the folder is not a saved router, is damaged, or belongs to another model.
    """
    data, tensors, path = read_artifact(Path(folder), ROUTER_MANIFEST, ROUTER_WEIGHTS, ROUTER_FORMAT, "route")
    try:
        if data["source"] not in ("residual", "routing"):
            raise ValueError(f"source {data['source']!r}")
        arrays = {name: tensors[name] for name in _ARRAYS}
        fields = {key: data[key] for key in ("source", "layer", "rate")} | {"tasks": tuple(data["tasks"])}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged ({type(error).__name__}: {error}); run moescope route again") from error
    artifact_model(Path(folder), data, model, {})
    return TaskRouter(**fields, **arrays)
