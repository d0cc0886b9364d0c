"""A router as a folder, beside the model whose layers it reads. The model itself is named, not copied."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from moescope.errors import InputError
from moescope.files.checkpoint import check_array
from moescope.files.remote import local
from moescope.runtime.choices import Source
from moescope.runtime.route.router import TaskRouter, source_sites
from moescope.study.artifacts import artifact_model, read_artifact, write_artifact
from moescope.study.settings import at_least, between, read_record

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
    folder = local(folder)
    data, tensors = read_artifact(folder, "route")
    try:
        known = read_record(_Stored, {name: value for name, value in data.items() if name in _FIELDS})
        arrays = {name: tensors[name] for name in _ARRAYS}
        _check(known, arrays)
    except (KeyError, ValueError) as error:
        problem = f"{folder / ROUTER_FILE} is damaged ({type(error).__name__}: {error})"
        raise InputError(f"{problem}; run moescope route again") from error
    loaded = artifact_model(folder, data, model, {})
    try:
        width = sum(loaded.width(site) for site in source_sites(loaded, known.source, known.layer))
    except InputError as error:
        raise InputError(f"{folder}: {error}; run moescope route again") from error
    if width != len(arrays["mean"]):
        raise InputError(f"{folder} reads {len(arrays['mean'])} features, the model has {width}; run moescope route again")
    found: dict[str, Any] = {name: getattr(known, name) for name in _FIELDS} | arrays
    return TaskRouter(**found, reading=loaded.reading)


@dataclass(frozen=True)
class _Stored:
    """What the file says of the router itself."""

    tasks: tuple[str, ...]
    source: Source
    layer: Annotated[int, at_least(0)]
    rate: Annotated[float, between(0, 1, open_low=False)]


def _check(known: _Stored, arrays: dict[str, np.ndarray]) -> None:
    """Raise ValueError unless the arrays fit each other and the tasks, are finite, and every spread is one."""
    n_tasks, n_features = len(known.tasks), len(arrays["mean"]) if arrays["mean"].ndim else 0
    rank = arrays["basis"].shape[-1] if arrays["basis"].ndim else 0
    n = len(arrays["owner"]) if arrays["owner"].ndim else 0
    shapes: dict[str, tuple[int, ...]] = {
        "mean": (n_features,), "scale": (n_features,), "basis": (n_features, rank), "weight": (rank, n_tasks),
        "bias": (n_tasks,),
        "centres": (n_tasks, rank), "axes": (n_tasks, rank, rank), "base": (n_tasks, rank + 1),
        "per_token": (n_tasks, rank + 1), "outside": (n_tasks, 2), "strangeness": (n,), "owner": (n,),
    }  # fmt: skip
    for name, shape in shapes.items():
        check_array(name, arrays[name], np.signedinteger if name == "owner" else np.floating, shape)
    spread = min(arrays[name].min(initial=1) for name in ("base", "per_token"))
    scale = min(arrays["scale"].min(initial=1), arrays["outside"][:, 1].min(initial=1))
    if not n_tasks or set(arrays["owner"].tolist()) != set(range(n_tasks)) or spread < 0 or scale <= 0:
        raise ValueError("a spread is negative, or a task has no calibration prompts")
