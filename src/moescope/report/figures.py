"""The figures of a result by name, drawn from its tables, and as PNG and SVG.

A figure whose tables are missing does not exist; a panel whose table is missing is left out.

Each kind of study has its own module of figures. To add one: write ``report/KIND.py`` with a function
``entries(result) -> Iterator[Entry]`` that yields the figures which the result's tables allow, in the order in which the
report shows them, and enter it in :data:`MODULES`. ``Entry.draw`` is called inside :func:`moescope.report.style.look`;
make its figure with :func:`moescope.report.style.new_figure`, and take colours, markers and letters from there too. The
HTML page, ``StudyResult.figures()`` and ``save`` then show it without further change.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from moescope.errors import InputError
from moescope.report.style import look

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from moescope.result import StudyResult

# Kind of result -> module with `entries`; by name, so that a kind's module is imported only for its own results.
MODULES = {
    "circuits": "moescope.report.circuits",
    "convert": "moescope.report.convert",
    "dynamics": "moescope.report.circuits",
    "distill": "moescope.report.distill",
    "exit": "moescope.report.exits",
    "prune": "moescope.report.steering",
    "robustness": "moescope.report.steering",
    "signatures": "moescope.report.signatures",
    "steer": "moescope.report.steering",
    "transfer": "moescope.report.steering",
}
PNG_DPI = 200


@dataclass(frozen=True)
class Entry:
    """One figure that can be drawn. ``caption`` says in words what it shows, for a reader who cannot see it too."""

    name: str
    title: str
    caption: str
    draw: Callable[[], Figure]


@dataclass(frozen=True)
class Image:
    """One figure as files."""

    png: bytes
    svg: bytes


def entries(result: StudyResult) -> list[Entry]:
    """Every figure that the tables of ``result`` allow, in the order in which a report shows them."""
    if result.kind not in MODULES:
        return []
    return list(import_module(MODULES[result.kind]).entries(result))


def available(result: StudyResult) -> list[str]:
    """The names of the figures that can be drawn."""
    return [e.name for e in entries(result)]


def draw(result: StudyResult, name: str) -> Figure:
    """Draw the figure ``name``; ``dashboard`` and ``layers`` stand for the first of their kind.

    Raises:
        InputError: there is no such figure; the message names those that can be drawn.
    """
    found = entries(result)
    for entry in (*(e for e in found if e.name == name), *(e for e in found if e.name.rsplit("-", 1)[0] == name)):
        with look():
            return entry.draw()
    names = ", ".join(e.name for e in found) or "none"
    raise InputError(f"this result has no figure {name!r}; it can draw: {names}")


def compare(results: Sequence[StudyResult]) -> Figure:
    """Several results of the circuits study, one row each: accuracy, cross-task matrix, specialization, overlap.

    The counterpart of the source's multi-model comparison (Choi 2025, figure 1).

    Raises:
        InputError: none of the results has a table that the figure shows.
    """
    from moescope.report import comparison

    rows = [r for r in results if comparison.drawable(r.tables)]
    if not rows:
        raise InputError("no result to compare: each needs an accuracy, a cross_task or an overlap table")
    with look():
        return comparison.comparison([(model_name(r), r.tables) for r in rows])


def rendered(result: StudyResult, name: str) -> Image:
    """The figure ``name`` as PNG (200 dots per inch) and SVG (text drawn as paths)."""
    return render(draw(result, name))


def render(figure: Figure) -> Image:
    """``figure`` as PNG and SVG; the bytes are the same for the same figure."""
    png, svg = io.BytesIO(), io.BytesIO()
    with look():
        figure.savefig(png, format="png", dpi=PNG_DPI, metadata={"Software": "moescope"})
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": "moescope"})
    return Image(png.getvalue(), svg.getvalue())


def save_figure(figure: Figure, folder: str | Path, name: str) -> tuple[Path, Path]:
    """Write ``folder/name.png`` and ``folder/name.svg``, each whole or not at all; what was there is replaced.

    Returns:
        The two paths.

    Raises:
        InputError: ``folder`` is a file, or the disk is full or not writable.
    """
    folder, image = Path(folder), render(figure)
    paths = (folder / f"{name}.png", folder / f"{name}.svg")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, data in zip(paths, (image.png, image.svg), strict=True):
            draft = path.with_name(f".{path.name}.partial")
            try:
                draft.write_bytes(data)
                os.replace(draft, path)
            finally:
                draft.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{folder} could not be written ({reason}); free some space or name another folder") from error
    return paths


def model_name(result: StudyResult) -> str:
    """The model's name from ``meta``, where it is text or a mapping with ``name``."""
    model = result.meta.get("model")
    if isinstance(model, dict):
        model = model.get("name")
    return str(model) if model else "model"


def slug(text: str) -> str:
    """``text`` as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_").lower() or "task"
