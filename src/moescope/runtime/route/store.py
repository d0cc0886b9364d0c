"""A router as a folder, beside the model whose layers it reads. The model itself is named, not copied."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from moescope.errors import InputError
from moescope.runtime.choices import Source
from moescope.runtime.route.router import TaskRouter
from moescope.study.artifacts import artifact_model, read_artifact, write_artifact

if TYPE_CHECKING:
    from moescope.models import LoadedModel

ROUTER_FILE = "route.safetensors"
_FIELDS = ("tasks", "source", "layer", "rate")
_ARRAYS = tuple(f.name for f in fields(TaskRouter) if f.name not in (*_FIELDS, "reading"))


@dataclass(frozen=True, eq=False)
class ModelRouter:
    """A router with the model that it was fitted on: what a study makes."""

    router: TaskRouter
    model: LoadedModel

    def write(self, folder: Path, /) -> Path:
        """Write ``route.safetensors`` into ``folder``, which is made where it is absent; for :func:`load_router`.

        Raises:
            InputError: the folder cannot be written to.
        """
        arrays: dict[str, np.ndarray] = {name: getattr(self.router, name) for name in _ARRAYS}
        return write_artifact(folder, "route", self.model, arrays, {name: getattr(self.router, name) for name in _FIELDS})


def load_router(folder: str | Path, model: LoadedModel) -> TaskRouter:
    """Read a saved router, for use with ``model``.

    Raises:
        InputError: the folder is not a saved router, is damaged, or belongs to another model.
    """
    folder = Path(folder)
    data, tensors = read_artifact(folder, "route")
    try:
        if data["source"] not in get_args(Source):
            raise ValueError(f"source {data['source']!r}")
        found: dict[str, Any] = {name: data[name] for name in _FIELDS} | {name: tensors[name] for name in _ARRAYS}
        found["tasks"] = tuple(data["tasks"])
    except (KeyError, TypeError, ValueError) as error:
        problem = f"{folder / ROUTER_FILE} is damaged ({type(error).__name__}: {error})"
        raise InputError(f"{problem}; run moescope route again") from error
    return TaskRouter(**found, reading=artifact_model(folder, data, model, {}).reading)
