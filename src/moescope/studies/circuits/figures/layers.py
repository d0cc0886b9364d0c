"""Where in the model a task's neurons lie. Counterpart of the source's layer-architecture figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from moescope.report.hover import leads
from moescope.report.style import (
    BLUE,
    FAINT,
    INK,
    ORANGE,
    SKY,
    SOFT,
    VERMILLION,
    heading,
    layer_axis,
    legend,
    letter,
    new_figure,
    of_task,
)
from moescope.report.texts import of_neuron

Tables = Mapping[str, pd.DataFrame]
ROWS = 3  # tasks on one page
CAPTION = (
    "Per task: divergence in each layer (largest, 99th percentile, mean) with the 5 % family-wise permutation threshold; how "
    "many of the top 10 and top 100 neurons lie in each layer beside an even spread, with the circuit's mean layer and the "
    "range of 95 % of random sets' means; and the coordinates of the top ten, where a line joins one coordinate that recurs "
    "over layers. In the residual stream the skip connection carries a coordinate through the layers, so such a column is one "
    "thing seen several times."
)

_ROW_HEIGHT = 2.1


def drawable(tables: Tables, task: str) -> bool:
    return len(of_task(tables.get("layers"), task)) > 0


def layers(tables: Tables, tasks: Sequence[str]) -> Figure:
    """One row per task: divergence by layer, counts of top neurons by layer, functional columns."""
    columns = of_top(tables, tasks)
    width = 3 if columns else 2
    figure = new_figure(_ROW_HEIGHT * len(tasks) + 0.15)
    grid = figure.subplots(len(tasks), width, squeeze=False)
    for i, task in enumerate(tasks):
        _divergence(grid[i, 0], tables, task, i == 0)
        _counts(grid[i, 1], tables, task, i == 0)
        letter(grid[i, 0], i * width, "Divergence by layer")
        letter(grid[i, 1], i * width + 1, "Where the top neurons lie")
        if columns:
            _columns(grid[i, 2], tables, task)
            letter(grid[i, 2], i * width + 2, _columns_title(tables, task))
        if len(tasks) > 1:
            heading(grid[i, 0], task)
    return figure


def of_top(tables: Tables, tasks: Sequence[str]) -> bool:
    """Whether the neurons of any of ``tasks`` are known one by one."""
    return any(len(of_task(tables.get("neurons"), t)) for t in tasks)


def _divergence(axes: Axes, tables: Tables, task: str, named: bool) -> None:
    rows = of_task(tables["layers"], task).sort_values("layer")
    for column, label, ink, mark in (
        ("max_divergence", "largest", BLUE, "o"),
        ("q99", "99th percentile", SKY, "s"),
        ("mean_divergence", "mean", SOFT, "^"),
    ):
        axes.plot(rows["layer"], rows[column], color=ink, marker=mark if len(rows) <= 32 else None, ms=3, label=label)
    neurons = of_task(tables.get("neurons"), task)
    if len(neurons) and "threshold_5pct" in neurons and np.isfinite(neurons["threshold_5pct"].iloc[0]):
        axes.axhline(neurons["threshold_5pct"].iloc[0], color=VERMILLION, lw=1, ls="--", label="5 % family-wise")
    axes.set_ylim(0, None)
    axes.set_ylabel("divergence |Δμ| / σ")
    layer_axis(axes, int(rows["layer"].max()) + 1)
    if named:
        legend(axes, columns=2)


def _counts(axes: Axes, tables: Tables, task: str, named: bool) -> None:
    rows = of_task(tables["layers"], task).sort_values("layer")
    total = {c: max(1, int(rows[c].sum())) for c in ("count_top10", "count_top100")}
    for j, (column, ink) in enumerate((("count_top100", SKY), ("count_top10", BLUE))):
        share = rows[column] / total[column]
        axes.bar(rows["layer"] + (j - 0.5) * 0.38, share, 0.36, color=ink, label=f"top {total[column]}")
    axes.axhline(1 / len(rows), color=INK, lw=0.8, ls="--", label="even spread")
    span = of_task(tables.get("depth_range"), task)
    if len(span):
        row = span.iloc[0]
        strip: dict[str, Any] = {"lw": 4, "color": ORANGE, "solid_capstyle": "butt", "clip_on": False, "zorder": 3}
        axes.plot([row["random_low"], row["random_high"]], [0, 0], label="mean layer, random sets", **strip)
        point: dict[str, Any] = {
            "marker": "v",
            "ms": 5,
            "color": VERMILLION,
            "mec": "white",
            "ls": "none",
            "clip_on": False,
            "zorder": 4,
        }
        axes.plot([row["mean_layer"]], [0], label="mean layer, circuit", **point)
    axes.set_ylabel("share of the neurons")
    layer_axis(axes, int(rows["layer"].max()) + 1)
    if named:
        legend(axes, columns=2)


def _columns(axes: Axes, tables: Tables, task: str) -> None:
    """Layer by coordinate of the top ten; one row per coordinate, the best neuron's first."""
    rows = of_task(tables.get("neurons"), task)
    if rows.empty:
        axes.set_axis_off()
        return
    rows = rows[rows["rank"] <= 10].sort_values("rank")
    order = list(dict.fromkeys(rows["neuron"]))
    for y, neuron in enumerate(order):
        here = rows[rows["neuron"] == neuron].sort_values("layer")
        if len(here) > 1:
            axes.plot(here["layer"], [y] * len(here), color=ORANGE, lw=2.2, zorder=1, solid_capstyle="round")
        points = axes.scatter(here["layer"], [y] * len(here), s=20, color=BLUE, zorder=2, lw=0)
        leads(points, [of_neuron(task, layer, neuron) for layer in here["layer"]])
    axes.set_yticks(range(len(order)), [f"N{n}" for n in order], fontsize=6)
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", color=FAINT, lw=0.3)
    by_layer = of_task(tables["layers"], task)
    layer_axis(axes, int(by_layer["layer"].max()) + 1)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))


def _columns_title(tables: Tables, task: str) -> str:
    rows = of_task(tables.get("columns"), task)
    if rows.empty or rows[["distinct_coordinates", "clusters"]].iloc[0].isna().any():
        return "Coordinates of the top ten"
    return f"Top ten: {int(rows['distinct_coordinates'].iloc[0])} coordinates, {int(rows['clusters'].iloc[0])} clusters"
