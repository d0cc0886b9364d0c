"""A classifier or a router as a folder: arrays as safetensors, the rest as JSON. The model itself is named, not copied."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from moescope.capture.atomic import write_atomic
from moescope.errors import InputError
from moescope.exits.classifier import ExitClassifier
from moescope.exits.heads import Heads
from moescope.exits.router import TaskRouter
from moescope.exits.rule import Guarantee
from moescope.exits.settings import KINDS
from moescope.models import load

if TYPE_CHECKING:
    from moescope.models import LoadedModel

FORMAT = "moescope exit"
WEIGHTS, MANIFEST = "exit.safetensors", "exit.json"
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


def save_exit(classifier: ExitClassifier, folder: str | Path) -> Path:
    """Write ``exit.safetensors`` and then ``exit.json`` into ``folder``, which is made; what they replace is gone.

    Raises:
        InputError: the folder cannot be written to.
    """
    folder = Path(folder)
    heads = classifier.heads
    tensors = {f"{part}.{i}": t for part in ("weight", "bias") for i, t in enumerate(getattr(heads, part))}
    tensors |= {f"columns.{i}": t for i, t in enumerate(heads.columns or ())}
    manifest = {
        "format": FORMAT,
        "version": 1,
        "model": classifier.model.name,
        "revision": classifier.model.revision,
        "fingerprint": classifier.model.fingerprint,
        "task": classifier.task,
        "classes": classifier.classes,
        "kind": heads.kind,
        "layers": heads.n_layers,
        # JSON has no infinity: null stands for "no row leaves early"
        "threshold": _finite(classifier.threshold),
        "checks": classifier.checks,
        "max_tokens": classifier.max_tokens,
        "guarantee": _plain(classifier.guarantee),
    }
    write_atomic(folder / WEIGHTS, [save(tensors)])
    write_atomic(folder / MANIFEST, [json.dumps(manifest, indent=1, allow_nan=False).encode() + b"\n"])
    return folder


def load_exit(folder: str | Path, model: LoadedModel | None = None, **load_options: Any) -> ExitClassifier:
    """Read what :func:`save_exit` wrote. Without ``model`` the model is loaded by its name, with ``load_options``.

    Raises:
        InputError: the folder is not a saved classifier, is damaged, or belongs to another model.
    """
    data, tensors, path = _read(Path(folder), MANIFEST, WEIGHTS, FORMAT, "exit")
    try:
        if data["kind"] not in KINDS:
            raise ValueError(f"kind {data['kind']!r}")
        parts = {
            part: tuple(tensors[f"{part}.{i}"] for i in range(data["layers"]))
            for part in ("weight", "bias", *(["columns"] if data["kind"] == "circuit" else []))
        }
        guarantee = Guarantee(**_infinite(data["guarantee"])) if data["guarantee"] else None
        fields = {
            "heads": Heads(data["kind"], parts["weight"], parts["bias"], parts.get("columns")),
            "classes": tuple(data["classes"]),
            "threshold": float("inf") if data["threshold"] is None else float(data["threshold"]),
            "checks": tuple(int(i) for i in data["checks"]),
            "guarantee": guarantee,
            "task": str(data["task"]),
            "max_tokens": data["max_tokens"],
        }
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged ({type(error).__name__}: {error}); run moescope exit again") from error
    return ExitClassifier(_model(Path(folder), data, model, load_options), **fields)


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
    data, tensors, path = _read(Path(folder), ROUTER_MANIFEST, ROUTER_WEIGHTS, ROUTER_FORMAT, "route")
    try:
        if data["source"] not in ("residual", "routing"):
            raise ValueError(f"source {data['source']!r}")
        arrays = {name: tensors[name] for name in _ARRAYS}
        fields = {key: data[key] for key in ("source", "layer", "rate")} | {"tasks": tuple(data["tasks"])}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged ({type(error).__name__}: {error}); run moescope route again") from error
    _model(Path(folder), data, model, {})
    return TaskRouter(**fields, **arrays)


def _read(folder: Path, manifest: str, weights: str, kind: str, command: str) -> tuple[dict[str, Any], dict[str, Any], Path]:
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


def _model(folder: Path, data: dict[str, Any], model: LoadedModel | None, options: dict[str, Any]) -> LoadedModel:
    loaded = load(data["model"], revision=data["revision"], **options) if model is None else model
    if loaded.fingerprint != data["fingerprint"]:
        made = f"{data['model']} ({data['fingerprint']})"
        raise InputError(
            f"{folder} was made for {made}, not for {loaded.name} ({loaded.fingerprint}): another model, checkpoint or --dtype"
        )
    return loaded


def _finite(value: float) -> float | None:
    return None if value == float("inf") else value


def _plain(guarantee: Guarantee | None) -> dict[str, Any] | None:
    if guarantee is None:
        return None
    return dataclasses.asdict(guarantee) | {"threshold": _finite(guarantee.threshold)}


def _infinite(stored: dict[str, Any]) -> dict[str, Any]:
    return stored | {"threshold": float("inf") if stored["threshold"] is None else stored["threshold"]}
