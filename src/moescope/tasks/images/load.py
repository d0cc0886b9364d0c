"""Images as a task: a folder with a subfolder for each class, a table with a column of paths, or a preset."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moescope.errors import InputError, Note
from moescope.files.image import SUFFIXES
from moescope.files.names import inside
from moescope.tasks.build import require_classes, take_groups
from moescope.tasks.images.digits import digit_rows, made_rows
from moescope.tasks.images.task import ImageTask, surface_of
from moescope.tasks.labels import encode_labels, missing
from moescope.tasks.sources import Rows
from moescope.tasks.spec import TaskSpec, check_options
from moescope.types import Example

COLUMN = "image"
TABLE = (COLUMN, "label", "group", "positive", "limit", "encoding")
"""options of a table with a column of paths"""


@dataclass(frozen=True)
class ImagePreset:
    """A task of images known by name; ``rows`` gives records of ``image`` (a path), ``label`` and ``group``."""

    name: str
    about: str
    licence: str
    source: str
    rows: Callable[[], Rows]


_SOURCE = "Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, UCI), with scikit-learn"
IMAGE_PRESETS = {
    p.name: p
    for p in (
        ImagePreset("digits", "600 handwritten digits that no embedded model has seen", "CC-BY-4.0", _SOURCE, digit_rows),
        ImagePreset(
            "digits-made",
            "the same 600 beside 600 that the embedded diffusion transformer made: real against generated",
            "CC-BY-4.0",
            f"{_SOURCE}; and dit-digits",
            made_rows,
        ),
    )
}


def preset_images(spec: TaskSpec, limit: int | None, seed: int) -> ImageTask:
    """A task of :data:`IMAGE_PRESETS`."""
    check_options(spec, ("positive", "limit"))
    preset = IMAGE_PRESETS[spec.source]
    source = f"preset {preset.name} ({preset.source})"
    return _task(preset.rows(), spec, spec.name or preset.name, source, limit, seed, licence=preset.licence, group="group")


def folder_images(folder: Path, spec: TaskSpec, limit: int | None, seed: int) -> ImageTask | None:
    """Each subfolder is a class of that name; None where no subfolder holds an image.

    Raises:
        InputError: an image is a link that leads out of the folder, is damaged, or there is one class only.
    """
    records: list[dict[str, object]] = []
    left: Counter[str] = Counter()
    for part in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")):
        for path in sorted(part.iterdir()):
            if path.name.startswith("."):
                continue
            if path.suffix.lower() not in SUFFIXES:
                left[path.suffix.lower() or "without suffix"] += 1
                continue
            _within(path, folder, str(path))
            records.append({COLUMN: str(path), "label": part.name})
    if not records:
        return None
    check_options(spec, ("positive", "limit"))
    if left:
        told = ", ".join(f"{n} {kind}" for kind, n in sorted(left.items()))
        warnings.warn(f"{folder}: left out what is no image by its name ({told})", Note, stacklevel=3)
    rows = Rows(records, [COLUMN, "label"], f"folder {folder}", "image", list(range(1, len(records) + 1)))
    return _task(rows, spec, spec.name or folder.resolve().name, f"folder {folder.resolve().name}", limit, seed)


def table_images(
    rows: Rows, spec: TaskSpec, name: str, source: str, base: Path | None, limit: int | None, seed: int
) -> ImageTask:
    """Of a table whose column ``image=`` holds paths, relative to the folder ``base`` of the table and inside it; of a table in
    memory (None) wherever they lead.

    Raises:
        InputError: a column is missing, a path leads out of the folder, or an image is damaged.
    """
    options = spec.options
    column, label = options[COLUMN], options.get("label", "label")
    for key, wanted in ((COLUMN, column), ("label", label), ("group", options.get("group"))):
        if wanted is not None and wanted not in rows.columns:
            raise InputError(f"{rows.origin}: no column {wanted!r}; columns: {', '.join(rows.columns)}; choose one with {key}=")
    records = [{**r, COLUMN: _path(r.get(column), column, rows.where(i), base)} for i, r in enumerate(rows.records)]
    placed = Rows(records, [*rows.columns, COLUMN], rows.origin, rows.place, rows.numbers, rows.class_names)
    return _task(placed, spec, name, source, limit, seed, label=label, group=options.get("group"))


def check_table(spec: TaskSpec) -> None:
    """That the options are those of a table with a column of paths.

    Raises:
        InputError: one is not; named by itself where it is a text beside the image, which a vision-language model is asked.
    """
    worded = next((key for key in ("text", "template") if key in spec.options), None)
    if worded is not None:
        raise InputError(
            f"task {spec.text!r}: image= and {worded}= in one row is a question to a vision-language model about an image, "
            "which is not supported; give one of the two"
        )
    check_options(spec, TABLE)


def _path(value: object, column: str, where: str, base: Path | None) -> str:
    if missing(value) or not isinstance(value, str | os.PathLike):
        raise InputError(f"{where}: column {column!r} names no image; write the path of one or drop the row")
    if base is None:
        return os.fspath(value)
    try:
        path = base / inside(os.fspath(value).removeprefix("./"))
    except ValueError as error:
        raise InputError(
            f"{where}: column {column!r}: {error}; write the path relative to the table's folder, in plain letters"
        ) from error
    _within(path, base, where)
    return str(path)


def _within(path: Path, folder: Path, where: str) -> None:
    """Raises InputError where a link leads out of the folder."""
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{where}: a link leads out of {folder}; copy the image there")


def _task(
    rows: Rows,
    spec: TaskSpec,
    name: str,
    source: str,
    limit: int | None,
    seed: int,
    *,
    label: str = "label",
    group: str | None = None,
    licence: str | None = None,
) -> ImageTask:
    """Every image that is kept is decoded once; those of equal pixels share a group."""
    labels, classes = encode_labels(rows, label, spec.options.get("positive"))
    given = [str(r[group]) if group else str(i) for i, r in enumerate(rows.records)]
    keep = np.arange(len(labels))
    if limit is not None:
        keep = take_groups(np.array(labels), np.array(given), limit, seed)
        require_classes([labels[i] for i in keep], len(classes), f"task {spec.text!r}")
    paths = [str(rows.records[i][COLUMN]) for i in keep]
    double = next((path for path, n in Counter(paths).items() if n > 1), None)
    if double is not None:
        raise InputError(f"{rows.origin}: {double} is listed twice; keep one row of it")
    surface = {path: surface_of(path) for path in paths}
    examples = tuple(
        Example(path, labels[i], given[i] if group else surface[path].content[:16]) for path, i in zip(paths, keep, strict=True)
    )
    _tell(rows.origin, [(surface[e.text].content, e.label) for e in examples])
    made = ImageTask(name, examples, classes, source, licence, surface=surface)
    return made.hashed()


def _tell(origin: str, found: list[tuple[str, int]]) -> None:
    """A note where one image is of two classes."""
    classes: dict[str, set[int]] = {}
    for content, label in found:
        classes.setdefault(content, set()).add(label)
    mixed = sum(len(labels) > 1 for labels in classes.values())
    if mixed:
        warnings.warn(
            f"{origin}: {mixed} images lie in more than one class; they are kept on one side of every split", Note, stacklevel=4
        )
