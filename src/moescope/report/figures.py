"""The figures of a result by name, drawn from its tables, and as PNG and SVG.

A figure whose tables are missing does not exist; a panel whose table is missing is left out.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from moescope.errors import InputError
from moescope.report import comparison, dashboard, extras, layers
from moescope.report.style import levels, look

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from moescope.result import StudyResult

_TASK_TABLES = ("accuracy", "neurons", "neuron_values", "projection", "controls", "depth", "layers")
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


def tasks_of(result: StudyResult) -> list[str]:
    """The tasks that the tables speak of, in order of appearance."""
    names: list[str] = []
    for table in _TASK_TABLES:
        frame = result.tables.get(table)
        if frame is not None and "task" in frame:
            names += [t for t in levels(frame, "task") if t not in names]
    return names


def entries(result: StudyResult) -> list[Entry]:
    """Every figure that the tables of ``result`` allow, in the order in which a report shows them."""
    return list(_entries(result))


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
    rows = [r for r in results if comparison.drawable(r.tables)]
    if not rows:
        raise InputError("no result to compare: each needs an accuracy, a cross_task or an overlap table")
    with look():
        return comparison.comparison([(model_name(r), r.tables) for r in rows])


def rendered(result: StudyResult, name: str) -> Image:
    """The figure ``name`` as PNG (200 dots per inch) and SVG (text stays text)."""
    return render(draw(result, name))


def render(figure: Figure) -> Image:
    """``figure`` as PNG and SVG; the bytes are the same for the same figure."""
    png, svg = io.BytesIO(), io.BytesIO()
    with look():
        figure.savefig(png, format="png", dpi=PNG_DPI, metadata={"Software": "moescope"})
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": "moescope"})
    return Image(png.getvalue(), svg.getvalue())


def model_name(result: StudyResult) -> str:
    """The model's name from ``meta``, where it is text or a mapping with ``name``."""
    model = result.meta.get("model")
    if isinstance(model, dict):
        model = model.get("name")
    return str(model) if model else "model"


def slug(text: str) -> str:
    """``text`` as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_").lower() or "task"


def _entries(result: StudyResult) -> Iterator[Entry]:
    tables = result.tables
    tasks = tasks_of(result)
    model = model_name(result)
    if comparison.drawable(tables):
        yield Entry("comparison", "Tasks compared", comparison.CAPTION, partial(comparison.comparison, [(model, tables)]))
    taken: set[str] = set()
    for task in tasks:
        if dashboard.drawable(tables, task):
            name = f"dashboard-{slug(task)}"
            while name in taken:
                name += "_"
            taken.add(name)
            draw_task = partial(dashboard.dashboard, tables, task, result.meta)
            yield Entry(name, f"Circuit dashboard: {task}", dashboard.CAPTION, draw_task)
    shown = [t for t in tasks if layers.drawable(tables, t)]
    pages = [shown[i : i + layers.ROWS] for i in range(0, len(shown), layers.ROWS)]
    for number, page in enumerate(pages, 1):
        name = "layers" if len(pages) == 1 else f"layers-{number}"
        title = "Layer architecture" + (f" ({', '.join(page)})" if len(pages) > 1 else "")
        yield Entry(name, title, layers.CAPTION, partial(layers.layers, tables, page))
    for figure in extras.FIGURES:
        if figure.drawable(tables):
            yield Entry(figure.name, figure.title, figure.caption, partial(figure.draw, tables))
