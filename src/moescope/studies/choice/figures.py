"""The figures of a choice of neurons: what is chosen together by layer, and what circuits and choice share."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from moescope.report.registry import TableFigure, Tables
from moescope.report.style import (
    BLUE,
    FAINT,
    ORANGE,
    SOFT,
    errors,
    layer_axis,
    legend,
    legend_below,
    letter,
    name_rows,
    new_figure,
)

_LINES = (
    ("", "on all tokens", BLUE, "o", "-"),
    ("rates_", "dealt out anew", SOFT, "x", ":"),
    ("recurring_", "on tokens that recur", ORANGE, "s", "-"),
    ("tokens_", "dealt out among equal tokens", ORANGE, "x", ":"),
)

_NULLS = (
    ("layers", "random neurons of the same layers", SOFT, "x"),
    ("often", "chosen as often", ORANGE, "s"),
    ("permuted", "permuted labels", FAINT, "^"),
)


def _together(tables: Tables) -> Figure:
    frame = tables["together"]
    figure = new_figure(2.8)
    names = (("pairs", "correlation of correlations", "Pairs"), ("groups", "mean correlation within, less between", "Groups"))
    for i, (axes, (column, label, title)) in enumerate(zip(figure.subplots(1, 2), names, strict=True)):
        for prefix, said, ink, mark, dash in _LINES:
            if f"{prefix}{column}" in frame:
                axes.plot(frame["layer"], frame[f"{prefix}{column}"], color=ink, marker=mark, ls=dash, ms=3, label=said)
        axes.axhline(0, color=FAINT, lw=0.8, zorder=0)
        layer_axis(axes, len(frame))
        axes.set_ylabel(label)
        letter(axes, i, title)
        if not i:
            legend_below(axes, columns=2)
    return figure


def _circuits(tables: Tables) -> Figure:
    frame = tables["circuits"].iloc[::-1]
    figure = new_figure(1.1 + 0.5 * len(frame), width=5.4)
    axes = figure.subplots()
    y = np.arange(len(frame))
    axes.plot(frame["shared"], y, color=BLUE, marker="o", ls="none", label="circuit and choice")
    for step, (name, said, ink, mark) in enumerate(_NULLS, 1):
        span = errors(frame[name], frame[f"{name}_low"], frame[f"{name}_high"])
        axes.errorbar(frame[name], y - 0.15 * step, xerr=span, color=ink, marker=mark, ls="none", label=said)
    name_rows(axes, frame["task"].tolist())
    axes.set_ylim(-0.8, len(frame) - 0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel("share of the circuit's neurons")
    legend(axes)
    letter(axes, 0, "Circuit neurons whose choice differs between classes")
    return figure


FIGURES: tuple[TableFigure, ...] = (
    (
        "together",
        "together",
        "Which neurons are chosen together, on other texts",
        "By layer: how alike two halves of the texts are in which neurons are chosen together (left, over pairs; right, by "
        "groups found on the other half), beside choices dealt out anew among all tokens, and among equal ones.",
        _together,
    ),
    (
        "circuits",
        "circuits",
        "Circuits, and neurons whose choice differs between classes",
        "Share of a task's circuit neurons that are among as many whose choice differs most between its classes on other "
        "texts, beside random neurons of the same layers, those that are chosen as often, and permuted labels (95 % of draws).",
        _circuits,
    ),
)
