"""The figure of pruning."""

from __future__ import annotations

from matplotlib.figure import Figure

from moescope.report.registry import TableFigure, Tables
from moescope.report.style import SOFT, color, errors, legend, letter, levels, marker, new_figure, shorten


def _pruning(tables: Tables) -> Figure:
    frame = tables["pruning"]
    figure = new_figure(2.5, width=4.6)
    axes = figure.subplots()
    for i, name in enumerate(levels(frame, "criterion")):
        rows = frame[frame["criterion"] == name].sort_values("ratio")
        ink, dash = (SOFT, "--") if name == "random" else (color(i), "-")
        x = 100 * rows["ratio"] + (i - 1.5) * 0.4
        span = errors(rows["effect"], rows["low"], rows["high"])
        axes.errorbar(x, rows["effect"], yerr=span, color=ink, ls=dash, marker=marker(i), label=shorten(name, 40))
    axes.set_xlabel("experts left out, % of every layer")
    axes.set_ylabel("loss added, nats a token")
    legend(axes, columns=2)
    letter(axes, 0, "What pruning costs")
    return figure


FIGURES: tuple[TableFigure, ...] = (
    (
        "pruning",
        "pruning",
        "Loss added by leaving experts out",
        "Loss added by share of experts left out, by criterion, with 95 % intervals over documents; random experts dashed.",
        _pruning,
    ),
)
