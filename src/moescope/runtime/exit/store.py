"""A classifier as a folder: arrays as safetensors, the rest as JSON. The model itself is named, not copied."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.numpy import save

from moescope.errors import InputError
from moescope.files.atomic import write_atomic
from moescope.runtime.exit.classifier import ExitClassifier
from moescope.runtime.exit.heads import KINDS, Heads
from moescope.runtime.exit.rule import Guarantee
from moescope.study.artifacts import artifact_model, read_artifact

if TYPE_CHECKING:
    from moescope.models import LoadedModel

FORMAT = "moescope exit"
WEIGHTS, MANIFEST = "exit.safetensors", "exit.json"


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
    data, tensors, path = read_artifact(Path(folder), MANIFEST, WEIGHTS, FORMAT, "exit")
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
    return ExitClassifier(artifact_model(Path(folder), data, model, load_options), **fields)


def _finite(value: float) -> float | None:
    return None if value == float("inf") else value


def _plain(guarantee: Guarantee | None) -> dict[str, Any] | None:
    if guarantee is None:
        return None
    return dataclasses.asdict(guarantee) | {"threshold": _finite(guarantee.threshold)}


def _infinite(stored: dict[str, Any]) -> dict[str, Any]:
    return stored | {"threshold": float("inf") if stored["threshold"] is None else stored["threshold"]}
