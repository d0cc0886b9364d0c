"""The figure of agreement: how far two recordings agree, layer by layer."""

from __future__ import annotations

from matplotlib.figure import Figure

from moescope.report.registry import TableFigure, Tables
from moescope.report.style import BLUE, INK, ORANGE, SOFT, band, layer_axis, legend_below, letter, new_figure


def _layers(tables: Tables) -> Figure:
    frame = tables["layers"]
    figure = new_figure(2.6)
    left, right = figure.subplots(1, 2)
    left.plot(frame["layer"], frame["shared"], color=BLUE, marker="o", ms=3, label="A and B")
    band(left, frame["layer"], frame["low"], frame["high"], BLUE)
    if "yardstick" in frame:
        left.plot(frame["layer"], frame["yardstick"], color=ORANGE, marker="s", ms=3, label="yardstick")
    left.plot(frame["layer"], frame["chance"], color=SOFT, ls="--", label="choices dealt out anew")
    left.set_ylim(0, 1.02)
    left.set_ylabel("share of a token's experts")
    legend_below(left, columns=2)
    right.bar(frame["layer"], frame["first"], color=INK, width=0.7)
    right.set_ylabel("share of all tokens")
    for axes in (left, right):
        layer_axis(axes, int(frame["layer"].max()) + 1)
    letter(left, 0, "How far A and B agree")
    letter(right, 1, "Where a token first differs")
    return figure


FIGURES: tuple[TableFigure, ...] = (
    (
        "layers",
        "layers",
        "Where two recordings part",
        "Left: share of a token's experts that both recordings sent it to, with the 95 % interval over sequences; beside it, "
        "where one was given, a recording that ought to agree, and what popularity alone gives. Right: share of all tokens "
        "whose experts first differ in each layer.",
        _layers,
    ),
)
