"""The figures of the studies that put experts to use: steering, pruning, robustness, transfer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from moescope.report.figures import Entry
from moescope.report.style import (
    BLUE,
    FAINT,
    INK,
    ORANGE,
    SOFT,
    color,
    errors,
    full_names,
    heat_cells,
    legend,
    letter,
    levels,
    marker,
    name_rows,
    new_figure,
    shorten,
)

if TYPE_CHECKING:
    from moescope.result import StudyResult

Tables = dict[str, pd.DataFrame]
_NAMES = ("steering", "category", "change", "criterion")  # columns with names that a figure may have to cut
_PANELS = 6  # steerings shown; the table has all


def entries(result: StudyResult) -> Iterator[Entry]:
    """Effects, pruning, changes, search, layers: those whose table is there."""
    for name, table, title, caption, draw in _FIGURES:
        frame = result.tables.get(table, pd.DataFrame())
        if len(frame):
            names = [n for c in _NAMES if c in frame for n in levels(frame, c)]
            yield Entry(name, title, caption + full_names(names, 16), partial(draw, result.tables))


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


def _changes(tables: Tables) -> Figure:
    frame = tables["changes"].iloc[::-1]
    figure = new_figure(0.9 + 0.25 * len(frame))
    left, right = figure.subplots(1, 2, sharey=True)
    y = np.arange(len(frame))
    for axes, name, ink in ((left, "relative", BLUE), (right, "flips", ORANGE)):
        span = errors(frame[name], frame[f"{name}_low"], frame[f"{name}_high"])
        axes.errorbar(frame[name], y, xerr=span, color=ink, marker="o", ls="none")
        axes.axvline(0, color=FAINT, lw=0.8, zorder=0)
    left.axvline(1, color=SOFT, lw=0.8, ls="--", zorder=0)
    name_rows(left, [str(c) for c in frame["change"]], room=0.6)
    left.set_xlabel("distance moved / distance within a category")
    right.set_xlabel("share of prompts whose category flips")
    letter(left, 0, "How far signatures move")
    letter(right, 1, "How often the monitor's answer flips")
    return figure


def _search(tables: Tables) -> Figure:
    frame = tables["attack"].sort_values("margin", ascending=False).reset_index(drop=True)
    figure = new_figure(2.5)
    axes = figure.subplots()
    columns = {"margin": "no suffix", "one_random": "one random suffix", "best_random": "best random", "search": "searched"}
    for i, (column, label) in enumerate(columns.items()):
        axes.plot(frame.index, frame[column], color=[INK, SOFT, BLUE, ORANGE][i], marker=marker(i), ls="none", label=label)
    axes.axhline(0, color=FAINT, lw=0.8, zorder=0)
    axes.set_xlabel("prompts, by their margin without a suffix")
    axes.set_ylabel("log odds of the true category")
    legend(axes, columns=4)
    letter(axes, 0, "Below zero the monitor is fooled")
    return figure


def _layers(tables: Tables) -> Figure:
    frame = tables["similarity"].dropna(subset=["layer_a", "layer_b"])
    table = frame.pivot(index="layer_a", columns="layer_b", values="rho")
    figure = new_figure(0.9 + 0.3 * min(12, len(table)), width=4.6)
    axes = figure.subplots()
    heat_cells(axes, table.to_numpy(), 0.0, 1.0)
    for set_ticks, numbers in ((axes.set_xticks, table.columns), (axes.set_yticks, table.index)):
        step = max(1, -(-len(numbers) // 12))
        set_ticks(range(0, len(numbers), step), [str(int(n)) for n in numbers[::step]])
    axes.set_xlabel("layer of B")
    axes.set_ylabel("layer of A")
    letter(axes, 0, "Spearman of the prompts' similarities")
    return figure


_FIGURES: tuple[tuple[str, str, str, str, Callable[[Tables], Figure]], ...] = (
    (
        "effects",
        "effects",
        "Effect of steering on the loss",
        "Change of loss by category of text with 95 % intervals over documents (orange: the category meant), and in grey the "
        "range of the same steering of random experts of the same layers and like usage.",
        _effects,
    ),
    (
        "pruning",
        "pruning",
        "Loss added by leaving experts out",
        "Loss added by share of experts left out, by criterion, with 95 % intervals over documents; random experts dashed.",
        _pruning,
    ),
    (
        "changes",
        "changes",
        "How far changes of a prompt move its routing",
        "Left: mean distance between a prompt's signatures before and after each change, as a multiple of the distance between "
        "two prompts of a category (dashed: 1). Right: share of prompts that a monitor then calls something else. Bars: 95 % "
        "intervals.",
        _changes,
    ),
    (
        "search",
        "attack",
        "A search for suffixes that fool the monitor",
        "Log odds of the true category for every attacked prompt: without a suffix, with one random suffix, with the best of "
        "many random ones, and with the one that a search of as many tries found.",
        _search,
    ),
    (
        "layers",
        "similarity",
        "Which layers of two models group prompts alike",
        "Spearman correlation of the similarities between prompts, for every layer of A with every layer of B.",
        _layers,
    ),
)
