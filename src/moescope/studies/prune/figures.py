"""The figures of pruning: what is lost by bytes saved, and on which text."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from moescope.report.registry import TableFigure, Tables
from moescope.report.style import (
    SOFT,
    color,
    errors,
    legend,
    legend_below,
    letter,
    levels,
    marker,
    name_axis,
    new_figure,
    shorten,
)

_BITS = ("8-bit", "4-bit")


def _pruning(tables: Tables) -> Figure:
    frame = tables["pruning"]
    figure = new_figure(3.0, width=5.4)
    axes = figure.subplots()
    for i, name in enumerate(levels(frame, "criterion")):
        rows = frame[frame["criterion"] == name].sort_values("ratio")
        ink, dash = (SOFT, "--" if name == "random" else ":") if name in ("random", *_BITS) else (color(i), "-")
        label = f"{name} weights" if name in _BITS else shorten(name, 40)
        span = errors(rows["effect"], rows["low"], rows["high"])
        axes.errorbar(100 * (1 - rows["bytes"]), rows["effect"], yerr=span, color=ink, ls=dash, marker=marker(i), label=label)
    axes.axhline(0, color=SOFT, lw=0.8, zorder=0)
    axes.set_xlabel("bytes of the experts saved, %")
    axes.set_ylabel("loss added, nats a token")
    legend_below(axes, columns=4)
    letter(axes, 0, "What is lost by what is saved")
    return figure


def _domains(tables: Tables) -> Figure:
    frame = tables["domains"]
    names = levels(frame, "category")
    ratios = sorted(frame.loc[~frame["criterion"].isin(_BITS), "ratio"].unique())
    figure = new_figure(2.6, width=5.4)
    axes = figure.subplots()
    first = frame["criterion"].iloc[0]
    width = 0.8 / max(1, len(ratios))
    for i, ratio in enumerate(ratios):
        rows = frame[(frame["criterion"] == first) & (frame["ratio"] == ratio)].set_index("category").reindex(names)
        x = np.arange(len(names)) + (i - (len(ratios) - 1) / 2) * width
        span = errors(rows["effect"], rows["low"], rows["high"])
        axes.bar(x, rows["effect"], width * 0.9, color=color(i), yerr=span, label=f"{ratio:.1%} left out")
    axes.axhline(0, color=SOFT, lw=0.8)
    chose = frame.drop_duplicates("category").set_index("category")["chose"]
    name_axis(axes, [shorten(n, 24) if chose[n] else f"{shorten(n, 18)} (other)" for n in names], length=24)
    axes.set_ylabel("loss added, nats a token")
    legend(axes)
    letter(axes, 0, f"By text, experts chosen by {shorten(str(first), 24)}")
    return figure


FIGURES: tuple[TableFigure, ...] = (
    (
        "pruning",
        "pruning",
        "Loss by bytes saved",
        "Loss added over the share of the experts' bytes that is saved (of 16-bit weights), by criterion, with 95 % intervals "
        "over documents; random experts dashed; weights rounded to 8 and 4 bits dotted.",
        _pruning,
    ),
    (
        "domains",
        "domains",
        "Loss by category of text",
        "Loss added on held-out text of each category, with 95 % intervals over documents; other: its text did not choose the "
        "experts.",
        _domains,
    ),
)
