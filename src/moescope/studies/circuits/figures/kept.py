"""How much of the effect neurons carry when everything else is replaced, beside random ones."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from moescope.report.registry import Tables
from moescope.report.style import (
    BLUE,
    FAINT,
    GREEN,
    SOFT,
    VERMILLION,
    WIDTH,
    columns_for,
    legend_below,
    letter,
    levels,
    log_scale,
    new_figure,
    of_task,
    shorten,
)  # fmt: skip
from moescope.studies.circuits.figures.curves import beside_random

CAPTION = (
    "Everything but the first k neurons of an order is replaced in the running model, at the final token and in every layer of "
    "the site, by the mean or by another text's values: how much of the effect is left (faithfulness: 0 with nothing kept, 1 "
    "with all), over the share kept. Orders: the circuit (by divergence, with its 95 % interval over groups), the largest "
    "variance, gradient × activation; the grey band holds 95 % of random orders of the same layers. The dotted line is 90 % of "
    "the effect. With the mean in their place the vector is shorter and the rest weighs more: a curve may rise above 1."
)
_TARGETS = {"answer_logodds": "own answer, odds", "answer_accuracy": "own answer, accuracy", "probe_accuracy": "probe"}
_ORDERS = (
    ("circuit", "circuit", VERMILLION, "o"),
    ("attribution", "gradient × activation", BLUE, "D"),
    ("top_variance", "largest variance", GREEN, "s"),
)


def kept(tables: Tables) -> Figure:
    frame = tables["kept"]
    panels = [
        (rows[rows["mode"] == mode], str(target), str(mode))
        for task in levels(frame, "task")
        for target, rows in of_task(frame, task).groupby("target", sort=False)
        if target != "answer_accuracy"
        for mode in levels(rows, "mode")
    ]
    across = columns_for(len(panels), 2)
    down = -(-len(panels) // across)
    figure = new_figure(2.0 * down + 0.25, min(WIDTH, 3.6 * across))
    grid = figure.subplots(down, across, squeeze=False).ravel()
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    for i, (axes, (rows, target, mode)) in enumerate(zip(grid, panels, strict=False)):
        _curves(axes, rows)
        letter(axes, i, f"{shorten(str(rows['task'].iloc[0]), 16)}: {_TARGETS[target]}, {mode}")
    legend_below(grid[0])
    return figure


def _curves(axes: Axes, rows: pd.DataFrame) -> None:
    by_order = {str(order): own.sort_values("k") for order, own in rows.groupby("order")}
    beside_random(axes, by_order, "share", "faithfulness", _ORDERS, "orders")
    for height, style in ((0.0, "-"), (0.9, ":"), (1.0, "-")):
        axes.axhline(height, color=SOFT if style == ":" else FAINT, lw=0.8, ls=style, zorder=0)
    log_scale(axes, "x")
    axes.set_xlabel("share kept")
    axes.set_ylabel("faithfulness")
