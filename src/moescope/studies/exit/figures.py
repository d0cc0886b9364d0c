"""The figure of an early exit: accuracy over the share of layers, and over measured time."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from moescope.report.registry import Entry
from moescope.report.style import BLUE, GREEN, INK, ORANGE, SOFT, VERMILLION, band, legend, letter, new_figure, of_task, shorten
from moescope.study.names import slug

if TYPE_CHECKING:
    from moescope.study.result import StudyResult

_CURVES = (  # curve in the table, label, colour, marker
    ("threshold", "exit by confidence", BLUE, ""),
    ("fixed depth", "every row at one depth", ORANGE, "s"),
    ("circuit per depth", "circuit chosen per depth", GREEN, "^"),
)
CAPTION = (
    "Accuracy on test rows over the share of layers run (left) and over time at batch 1 relative to full depth (right). The "
    "ring is the threshold that the guarantee allows; dashed, the best surface cue, which needs no layer. Bands are 95 % "
    "intervals over groups."
)


def entries(result: StudyResult) -> Iterator[Entry]:
    """A frontier for each task."""
    if "frontier" not in result.tables:
        return
    table = result.tables["frontier"]
    for task in dict.fromkeys(table["task"]):
        cue = of_task(result.tables.get("surface"), task)
        yield Entry(f"frontier-{slug(task)}", f"Early exit: {task}", CAPTION, partial(frontier, of_task(table, task), cue))


def frontier(table: pd.DataFrame, surface: pd.DataFrame) -> Figure:
    figure = new_figure(2.6)
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, column, label in ((left, "share", "share of layers run"), (right, "time", "time, full depth = 1")):
        _panel(axes, table, column, surface)
        axes.set_xlabel(label)
        axes.set_xlim(0, None)
    left.set_ylabel("accuracy on test rows")
    letter(left, 0, "by layers")
    letter(right, 1, "on the clock")
    legend(left, columns=2)
    return figure


def _panel(axes: Axes, table: pd.DataFrame, column: str, surface: pd.DataFrame) -> None:
    for curve, label, color, marker in _CURVES:
        rows = table[table["curve"] == curve].sort_values(column)
        axes.plot(rows[column], rows["accuracy"], color=color, marker=marker, label=label)
        if curve == "threshold":
            band(axes, rows[column], rows["low"], rows["high"], color)
    ring = table[table["calibrated"]]
    axes.scatter(ring[column], ring["accuracy"], s=40, facecolor="none", edgecolor=INK, zorder=4, label="with the guarantee")
    if len(surface):
        cue = surface.iloc[0]
        label = f"{shorten(cue['cue'], 40)} (no layer)"
        axes.axhline(cue["accuracy"], color=VERMILLION, lw=0.8, ls=(0, (4, 2)), zorder=1, label=label)
    full = table[table["curve"] == "fixed depth"].sort_values("share").iloc[-1]
    axes.axhline(full["accuracy"], color=SOFT, lw=0.8, zorder=1, label="full depth")
