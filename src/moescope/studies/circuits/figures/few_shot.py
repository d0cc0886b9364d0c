"""Learning curves of a task on the neurons of other tasks' circuits."""

from __future__ import annotations

from matplotlib.figure import Figure

from moescope.report.registry import Tables
from moescope.report.style import (
    BLUE,
    FAINT,
    GREEN,
    VERMILLION,
    legend_below,
    letter,
    levels,
    log_scale,
    new_figure,
    shorten,
)  # fmt: skip
from moescope.studies.circuits.figures.curves import beside_random

CAPTION = (
    "Balanced accuracy of one ridge classifier on a further task, over the number of its labels: on the neurons of the other "
    "tasks' circuits (with their 95 % interval over groups and draws of labels), on as many neurons of the largest variance, "
    "and on all of them; the grey band holds 95 % of sets of random neurons of the circuits' layers. The line below is a guess."
)
_METHODS = (
    ("circuits", "other tasks' circuits", VERMILLION, "o"),
    ("full_probe", "all neurons", BLUE, "D"),
    ("top_variance", "largest variance", GREEN, "s"),
)


def few_shot(tables: Tables) -> Figure:
    frame = tables["few_shot"]
    figure = new_figure(2.3, 3.6)
    axes = figure.subplots()
    by_method = {name: frame[frame["method"] == name].sort_values("labels") for name in levels(frame, "method")}
    beside_random(axes, by_method, "labels", "value", _METHODS, "sets")
    axes.axhline(float(tables["few_shot_area"]["chance"].iloc[0]), color=FAINT, lw=0.8, zorder=0)
    log_scale(axes, "x")
    sizes = sorted(frame["labels"].unique())
    axes.set_xticks(sizes, [str(n) for n in sizes], minor=False)
    axes.set_xticks([], minor=True)
    axes.set_xlabel("labels")
    axes.set_ylabel("balanced accuracy")
    letter(axes, 0, shorten(str(frame["task"].iloc[0]), 24))
    legend_below(axes)
    return figure
