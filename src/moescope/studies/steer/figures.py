"""The figure of steering."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from moescope.report.registry import TableFigure, Tables
from moescope.report.style import BLUE, FAINT, ORANGE, SOFT, errors, legend, letter, levels, name_rows, new_figure

_PANELS = 6  # steerings shown; the table has all


def _effects(tables: Tables) -> Figure:
    frame = tables["effects"]
    frame = frame[(frame["match"] == "overall") & (frame["category"] != "selectivity")]
    names = levels(frame, "steering")[:_PANELS]
    columns = min(2, len(names))
    rows = -(-len(names) // columns)
    figure = new_figure(rows * (0.9 + 0.22 * frame["category"].nunique()))
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True)
    for index, axes in enumerate(panels.flat):
        if index >= len(names):
            axes.set_axis_off()
            continue
        own = frame[frame["steering"] == names[index]].iloc[::-1]
        y = np.arange(len(own))
        axes.hlines(y, own["random_low"], own["random_high"], color=FAINT, lw=6, label="95 % of random sets")
        axes.plot(own["random_mean"], y, color=SOFT, marker="|", ls="none", ms=8)
        inks = [ORANGE if target else BLUE for target in own["target"]]
        for at, ink, row in zip(y, inks, own.to_dict("records"), strict=True):
            span = errors([row["effect"]], [row["low"]], [row["high"]])
            axes.errorbar(row["effect"], at, xerr=span, color=ink, marker="o")
        axes.axvline(0, color=FAINT, lw=0.8, zorder=0)
        name_rows(axes, [str(c) for c in own["category"]])
        axes.set_ylim(-0.6, len(own) - 0.4)
        axes.set_xlabel("change of loss, nats a token")
        letter(axes, index, names[index])
    legend(panels.flat[0])
    return figure


FIGURES: tuple[TableFigure, ...] = (
    (
        "effects",
        "effects",
        "Effect of steering on the loss",
        "Change of loss by category of text with 95 % intervals over documents (orange: the category meant), and in grey the "
        "range of the same steering of random experts that are used as much.",
        _effects,
    ),
)
