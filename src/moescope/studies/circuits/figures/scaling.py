"""A circuit over models of several sizes."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from moescope.report.registry import Tables
from moescope.report.style import SOFT, color, legend_below, letter, levels, log_scale, marker, new_figure, of_task, shorten

CAPTION = (
    "Balanced accuracy of the circuit over the number of parameters beside the input embedding, with the untrained twins "
    "(dotted) and the best trivial cue (grey); the share of the depth before the decision; and how much of the circuit is "
    "found again on other texts. The thin line is the least-squares slope, whose interval stands in the table."
)
_PANELS = (
    ("accuracy", "balanced", "balanced accuracy", "Accuracy"),
    ("depth", "depth", "share of the depth", "Depth of decision"),
    ("self_overlap", "self_overlap", "found again, beyond chance", "The same on other texts"),
)


def scaling(tables: Tables) -> Figure:
    frame = tables["scaling"]
    tasks = levels(frame, "task")
    figure = new_figure(2.3 + 0.1 * len(tasks))
    grid = figure.subplots(1, len(_PANELS), squeeze=False)[0]
    for i, (axes, (quantity, column, label, title)) in enumerate(zip(grid, _PANELS, strict=True)):
        for j, task in enumerate(tasks):
            rows = of_task(frame, task).sort_values("parameters")
            millions = rows["parameters"] / 1e6
            axes.plot(millions, rows[column], marker(j), color=color(j), label=shorten(task, 20))
            if quantity == "accuracy":
                axes.plot(millions, rows["cue"], color=SOFT, lw=0.9, label="trivial cue" if j == 0 else None)
                if "twin" in rows:
                    said = "untrained twins" if j == 0 else None
                    axes.plot(millions, rows["twin"], ":", color=color(j), lw=1, label=said)
            _line(axes, rows, column, tables["scaling_trends"].query("task == @task and quantity == @quantity"), color(j))
        log_scale(axes, "x")
        axes.set_xlabel("million parameters beside the embedding")
        axes.set_ylabel(label)
        letter(axes, i, title)
    legend_below(grid[0])
    return figure


def _line(axes: Axes, rows: pd.DataFrame, column: str, trends: pd.DataFrame, ink: str) -> None:
    known = rows.dropna(subset=[column])
    if not len(trends) or not len(known):
        return
    x = np.log10(known["parameters"].to_numpy(float))
    axes.plot(10**x / 1e6, known[column].mean() + float(trends["slope"].iloc[0]) * (x - x.mean()), color=ink, lw=0.7)
