"""Read a classifier from the folder that :meth:`ExitClassifier.write` made. The model itself is named there, not copied."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from moescope.capture.encode import encode
from moescope.errors import InputError
from moescope.files.checkpoint import check_array
from moescope.files.remote import local
from moescope.runtime.choices import Kind
from moescope.runtime.exit.classifier import ExitClassifier
from moescope.runtime.exit.heads import Heads
from moescope.runtime.exit.rule import Guarantee
from moescope.study.artifacts import artifact_model, read_artifact
from moescope.study.settings import at_least, between, hints, read_record
from moescope.tasks.templates import parse_template

if TYPE_CHECKING:
    from moescope.models import LoadedModel

FILE = "exit.safetensors"


def load_exit(folder: str | Path, model: LoadedModel | None = None, **load_options: Any) -> ExitClassifier:
    """Read a saved classifier. Without ``model`` the model is loaded by its name, with ``load_options``.

    Raises:
        InputError: the folder is not a saved classifier, is damaged, or belongs to another model.
    """
    folder = local(folder)
    data, tensors = read_artifact(folder, "exit")
    try:
        known = read_record(_Stored, {name: value for name, value in data.items() if name in hints(_Stored)})
        guarantee = read_guarantee(known.guarantee)
        heads = _heads(known, tensors)
    except (KeyError, TypeError, ValueError) as error:
        problem = f"{folder / FILE} is damaged ({type(error).__name__}: {error})"
        raise InputError(f"{problem}; run moescope exit again") from error
    if known.template is not None:
        parse_template(known.template, {}, str(folder / FILE))
    loaded = artifact_model(folder, data, model, load_options)
    try:
        if known.kind == "circuit":
            _check_columns(heads, loaded.d_model)
        encode(loaded, ["a"], max_tokens=known.max_tokens)  # there is room for a text, and a place for each token
        rule = _threshold(known.threshold), known.checks, guarantee
        return ExitClassifier(loaded, heads, known.classes, *rule, known.task, known.max_tokens, known.template)
    except ValueError as error:
        raise InputError(f"{folder}: {error}; run moescope exit again") from error


@dataclass(frozen=True)
class _Stored:
    """What the file says of the classifier itself."""

    kind: Kind
    layers: Annotated[int, between(1, 10_000, open_low=False, open_high=False)]
    classes: tuple[str, ...]
    threshold: float | None
    checks: tuple[int, ...]
    guarantee: dict[str, Any] | None
    task: str
    max_tokens: Annotated[int | None, at_least(1)]
    template: str | None = None
    """None also in a file from before templates were kept"""


def _heads(known: _Stored, tensors: dict[str, np.ndarray]) -> Heads:
    """The heads, of shapes that fit each other; their numbers are finite."""
    n_classes = len(known.classes)
    if any("\0" in name for name in known.classes):
        raise ValueError("a class has a name with a null character")
    if n_classes < 2 or len(set(known.classes)) < n_classes:
        raise ValueError(f"classes {', '.join(known.classes)[:80]!r} are fewer than two, or two of one name")
    parts: dict[str, list[np.ndarray]] = {"weight": [], "bias": [], "columns": []}
    for layer in range(known.layers):
        width = tensors[f"weight.{layer}"].shape[-1:]
        shapes = {"weight": (n_classes, *width), "bias": (n_classes,)} | ({"columns": width} if known.kind == "circuit" else {})
        for part, shape in shapes.items():
            array = tensors[f"{part}.{layer}"]
            check_array(f"{part}.{layer}", array, np.int64 if part == "columns" else np.float32, shape)
            parts[part].append(array)
    return Heads(known.kind, tuple(parts["weight"]), tuple(parts["bias"]), tuple(parts["columns"]) or None)


def _check_columns(heads: Heads, width: int) -> None:
    """A head reads coordinates of the layers so far."""
    for layer, columns in enumerate(heads.columns or ()):
        if not len(columns) or columns.min() < 0 or columns.max() >= (layer + 1) * width:
            raise ValueError(f"the head after layer {layer} reads coordinates that the model does not have by then")


def read_guarantee(stored: dict[str, Any] | None) -> Guarantee | None:
    """What :func:`~moescope.runtime.exit.rule.stored_guarantee` made. Raises KeyError, TypeError or ValueError where it is
    damaged."""
    return read_record(Guarantee, {**stored, "threshold": _threshold(stored["threshold"])}) if stored else None


def _threshold(stored: float | None) -> float:
    return float("inf") if stored is None else stored
