"""The figures of reach and of what carries a category."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from moescope.report.registry import TableFigure, Tables
from moescope.report.style import BLUE, INK, ORANGE, SOFT, color, legend, letter, levels, log_scale, new_figure, shorten


def _reach(tables: Tables) -> Figure:
    frame = tables["layers"]
    figure = new_figure(2.8)
    left, right = figure.subplots(1, 2)
    place = np.arange(len(frame))
    missing = frame["experts"] - frame["reached"]
    left.bar(place, frame["reached"] / frame["experts"], color=BLUE, label="reached")
    seen = (missing - frame["unseen"]) / frame["experts"]
    left.bar(place, seen, bottom=frame["reached"] / frame["experts"], color=ORANGE, label="too few tokens")
    left.bar(place, frame["unseen"] / frame["experts"], bottom=1 - frame["unseen"] / frame["experts"], color=INK, label="none")
    left.set_ylabel("share of the experts")
    left.set_ylim(0, 1.02)
    known = frame["needed"].notna() & frame["needed_high"].notna()
    at = place[known]
    rows = frame[known]
    right.errorbar(
        at,
        rows["needed"],
        yerr=[rows["needed"] - rows["needed_low"], rows["needed_high"] - rows["needed"]],
        color=BLUE,
        marker="o",
        ls="none",
        label="needed",
    )
    open_ = ~known
    if open_.any():
        right.plot(place[open_], frame[open_]["needed_low"], color=INK, marker="^", ls="none", label="at least (no upper end)")
    right.plot(place, frame["even_needed"], color=SOFT, marker="_", ms=9, ls="none", label="even router")
    log_scale(right, "y")
    right.set_ylabel("tokens needed")
    for axes in (left, right):
        axes.set_xticks(place, [str(n) for n in frame["layer"]], fontsize=6.5)
        axes.set_xlabel("layer")
    if len(frame[missing > 0]):
        legend(left, columns=3)
    legend(right, columns=2)
    letter(left, 0, "What this text reaches")
    letter(right, 1, "How much of it would reach all")
    return figure


def _carriers(tables: Tables) -> Figure:
    frame = tables["carriers"]
    figure = new_figure(2.6)
    axes = figure.subplots()
    told = frame[frame["carries"].astype(bool) & frame["lift"].notna()]
    axes.axhline(1, color=SOFT, lw=0.8, ls="--")
    rest = frame.drop(told.index)
    axes.plot(_spot(rest, frame), rest["lift"], color=SOFT, marker=".", ls="none", ms=3, label="no category")
    for i, name in enumerate(levels(told, "category")):
        rows = told[told["category"] == name]
        axes.plot(_spot(rows, frame), rows["lift"], color=color(i), marker="o", ls="none", ms=4, label=shorten(name, 24))
    numbers = sorted(frame["layer"].unique())
    axes.set_xticks([n + 0.5 for n in range(len(numbers))], [str(n) for n in numbers], fontsize=6.5)
    log_scale(axes, "y", 2)
    axes.set_xlabel("layer; its experts from left to right")
    axes.set_ylabel("share of the category's tokens\nover that of the others'")
    legend(axes, columns=3)
    letter(axes, 0, "Experts and the category that they receive most beyond the others")
    return figure


def _spot(rows: pd.DataFrame, frame: pd.DataFrame) -> np.ndarray:
    """Where experts stand along the axis: the layer's place, and within it the expert's number."""
    numbers = {n: i for i, n in enumerate(sorted(frame["layer"].unique()))}
    at = np.array([numbers[n] for n in rows["layer"]], dtype=float)
    return np.asarray(at + (rows["expert"].to_numpy() + 0.5) / (frame["expert"].max() + 1))


FIGURES: tuple[TableFigure, ...] = (
    (
        "reach",
        "layers",
        "How far the text reaches",
        "Left: share of each layer's experts that received enough tokens, too few, or none. Right: tokens of such text after "
        "which all experts have enough, with 95 % intervals over documents, beside an even router's; a triangle where experts "
        "were never reached, so that only a lower end follows.",
        _reach,
    ),
    (
        "carriers",
        "carriers",
        "Experts that carry a category",
        "Each expert's share of the tokens of the category that it receives most beyond the others, over its share of the "
        "others' tokens; coloured where whole texts with permuted categories do not give as much for any expert (family-wise).",
        _carriers,
    ),
)
