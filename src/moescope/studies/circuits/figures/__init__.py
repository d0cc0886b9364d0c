"""The figures of a circuits study, of circuit formation over checkpoints, and of several studies side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from moescope.errors import InputError
from moescope.report.registry import Entry, drawable
from moescope.report.style import full_names, levels, look, of_task
from moescope.studies.circuits.figures import comparison, dashboard, extras, layers
from moescope.study.names import model_name, slug

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from moescope.study.result import StudyResult

_TASK_TABLES = (
    "accuracy",
    "neurons",
    "neuron_values",
    "projection",
    "controls",
    "depth",
    "layers",
    "dynamics",
    "scaling",
    "graded_controls",
)


def entries(result: StudyResult) -> Iterator[Entry]:
    """The comparison of tasks, a dashboard per task, the layer architecture, then what else the tables allow."""
    tables = result.tables
    tasks = tasks_of(result)
    model = model_name(result)
    full = full_names(tasks, 14)
    if comparison.drawable(tables):
        yield Entry(
            "comparison", "Tasks compared", comparison.CAPTION + full, partial(comparison.comparison, [(model, tables)])
        )
    taken: set[str] = set()
    for task in tasks:
        if dashboard.drawable(tables, task):
            name = f"dashboard-{slug(task)}"
            while name in taken:
                name += "_"
            taken.add(name)
            draw_task = partial(dashboard.dashboard, tables, task, model)
            yield Entry(
                name, f"Circuit dashboard: {task}", dashboard.CAPTION + full_names(_classes(result, task), 18), draw_task
            )
    shown = [t for t in tasks if layers.drawable(tables, t)]
    pages = [shown[i : i + layers.ROWS] for i in range(0, len(shown), layers.ROWS)]
    for number, page in enumerate(pages, 1):
        name = "layers" if len(pages) == 1 else f"layers-{number}"
        title = "Layer architecture" + (f" ({', '.join(page)})" if len(pages) > 1 else "")
        caption = layers.CAPTION + full_names(page, 14)
        yield Entry(name, title, caption, partial(layers.layers, tables, page))
    for entry in drawable(result, extras.FIGURES):
        yield replace(entry, caption=entry.caption + full)


def _classes(result: StudyResult, task: str) -> list[str]:
    """The classes that the dashboard of ``task`` names."""
    rows = of_task(result.tables.get("projection", result.tables.get("neuron_values")), task)
    return levels(rows, "class") if "class" in rows else []


def tasks_of(result: StudyResult) -> list[str]:
    """The tasks that the tables speak of, in order of appearance."""
    names: list[str] = []
    for table in _TASK_TABLES:
        frame = result.tables.get(table)
        if frame is not None and "task" in frame:
            names += [t for t in levels(frame, "task") if t not in names]
    return names


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
