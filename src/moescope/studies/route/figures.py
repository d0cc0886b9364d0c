"""The figure of naming tasks: how many layers it takes, beside what no layer gives."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from moescope.report.registry import TableFigure, Tables
from moescope.report.style import BLUE, INK, SOFT, VERMILLION, band, legend, new_figure, shorten


def _by_layer(tables: Tables) -> Figure:
    table = tables["layers"].sort_values("layer")
    figure = new_figure(2.4)
    axes = figure.subplots()
    axes.plot(table["share"], table["accuracy"], color=BLUE, marker="o", label="nearest task, by the layers so far")
    band(axes, table["share"], table["low"], table["high"], BLUE)
    used = table[table["used"]]
    axes.scatter(used["share"], used["accuracy"], s=40, facecolor="none", edgecolor=INK, zorder=4, label="the router's layer")
    first = table.iloc[0]
    cue = f"{shorten(str(first['cue']), 40)} (no layer)"
    axes.axhline(first["cue_accuracy"], color=VERMILLION, lw=0.8, ls=(0, (4, 2)), zorder=1, label=cue)
    axes.axhline(first["chance"], color=SOFT, lw=0.8, zorder=1, label="chance")
    axes.set_xlim(0, float(np.max(table["share"])) * 1.05)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("share of layers read")
    axes.set_ylabel("prompts named rightly")
    legend(axes, columns=2)
    return figure


FIGURES: tuple[TableFigure, ...] = (
    (
        "layers",
        "layers",
        "Tasks named, by the layers read",
        "Share of test prompts whose nearest task is theirs, tasks counted alike, by a router fitted after each layer, with "
        "95 % intervals over groups; the ring is the router that is kept. Dashed, the best surface cue, which needs no layer; "
        "grey, chance, which is what any rule gives that does not look at the prompt.",
        _by_layer,
    ),
)
