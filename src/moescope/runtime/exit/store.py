"""Read a classifier from the folder that :meth:`ExitClassifier.write` made. The model itself is named there, not copied."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from moescope.errors import InputError
from moescope.runtime.choices import KINDS
from moescope.runtime.exit.classifier import ExitClassifier
from moescope.runtime.exit.heads import Heads
from moescope.runtime.exit.rule import Guarantee
from moescope.study.artifacts import artifact_model, read_artifact

if TYPE_CHECKING:
    from moescope.models import LoadedModel

FILE = "exit.safetensors"


def load_exit(folder: str | Path, model: LoadedModel | None = None, **load_options: Any) -> ExitClassifier:
    """Read a saved classifier. Without ``model`` the model is loaded by its name, with ``load_options``.

    Raises:
        InputError: the folder is not a saved classifier, is damaged, or belongs to another model.
    """
    folder = Path(folder)
    data, tensors = read_artifact(folder, "exit")
    try:
        if data["kind"] not in KINDS:
            raise ValueError(f"kind {data['kind']!r}")
        parts = {
            part: tuple(tensors[f"{part}.{i}"] for i in range(data["layers"]))
            for part in ("weight", "bias", *(["columns"] if data["kind"] == "circuit" else []))
        }
        promise = data["guarantee"]
        fields = {
            "heads": Heads(data["kind"], parts["weight"], parts["bias"], parts.get("columns")),
            "classes": tuple(data["classes"]),
            "threshold": _threshold(data),
            "checks": tuple(int(i) for i in data["checks"]),
            "guarantee": Guarantee(**promise | {"threshold": _threshold(promise)}) if promise else None,
            "task": str(data["task"]),
            "max_tokens": data["max_tokens"],
        }
    except (KeyError, TypeError, ValueError) as error:
        problem = f"{folder / FILE} is damaged ({type(error).__name__}: {error})"
        raise InputError(f"{problem}; run moescope exit again") from error
    return ExitClassifier(artifact_model(folder, data, model, load_options), **fields)


def _threshold(stored: dict[str, Any]) -> float:
    return float("inf") if stored["threshold"] is None else float(stored["threshold"])
