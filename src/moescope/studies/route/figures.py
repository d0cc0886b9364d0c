"""Figures of naming tasks: how many layers it takes, what acting on it saves, and what follows where it is replaced."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from moescope.report.registry import TableFigure, Tables
from moescope.report.style import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    SOFT,
    VERMILLION,
    band,
    errors,
    legend,
    legend_below,
    letter,
    levels,
    name_rows,
    new_figure,
    shorten,
)
from moescope.studies.route.settings import BAG, FULL, PROBE, ROUTED, TOLD

_WAYS = (  # way of answering, colour, marker
    (ROUTED, BLUE, "o"),
    (TOLD, GREEN, "^"),
    (BAG, VERMILLION, "s"),
    (PROBE, PURPLE, "D"),
    (FULL, INK, "P"),
)


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


def _stream(tables: Tables) -> Figure:
    stream, frontier = tables["stream"].set_index("way"), tables["stream_frontier"]
    figure = new_figure(2.9)
    left, right = figure.subplots(1, 2)
    for way, ink, marker in _WAYS:
        curve = frontier[frontier["way"] == way].sort_values("share")
        if len(curve):
            left.plot(1 - curve["share"], curve["lost"], color=ink, lw=1)
        at = stream.loc[way]
        fill = ink if at["promised"] else "white"
        look = {"color": ink, "marker": marker, "ls": "none", "markerfacecolor": fill, "ms": 5, "zorder": 4}
        left.plot(1 - at["share"], at["lost"], label=way, clip_on=False, **look)
        x, y = (errors([at[of]], [at[low]], [at[high]]) for of, low, high in _SPANS)
        right.errorbar(at["speedup"], at["accuracy"], xerr=x, yerr=y, elinewidth=0.8, **look)
    risk = float(frontier["risk"].iloc[0])
    left.axhline(risk, color=SOFT, lw=0.8, ls=(0, (4, 2)), zorder=1, label="risk asked for")
    left.set_xlim(0, 1)
    left.set_ylim(0, max(2.5 * risk, 1.3 * float(stream["lost"].max())))
    left.set_xlabel("share of layers saved")
    left.set_ylabel("share of texts lost")
    right.axvline(1, color=SOFT, lw=0.8, zorder=1)
    # of few texts an interval is so wide that no mark would be told from another
    right.set_xlim(0, 1.2 * float(np.minimum(stream["speedup_high"], 1.6 * stream["speedup"]).max()))
    right.set_xlabel("speed-up over full depth with the task told")
    right.set_ylabel("right task and class")
    letter(left, 0, "risk against layers saved")
    letter(right, 1, "right answers on the clock")
    legend_below(left, columns=3)
    return figure


_SPANS = (("speedup", "speedup_low", "speedup_high"), ("accuracy", "low", "high"))
_QUANTITIES = (  # column, title, label
    ("told", "the task's own circuit", "share of its reading left"),
    ("way", "the next task's circuit", "way to its own texts"),
    ("named", "a probe of what is written later", "texts named as the next task's"),
)


def _causal(tables: Tables) -> Figure:
    changes, unmoved = tables["causal_changes"], tables["causal"][tables["causal"]["change"] == "none"]
    kinds = levels(changes, "early")
    figure = new_figure(0.9 + 0.55 * len(kinds))
    for index, (axes, (column, title, label)) in enumerate(zip(figure.subplots(1, 3), _QUANTITIES, strict=True)):
        for at, early in enumerate(reversed(kinds)):
            _dots(axes, changes[changes["early"] == early].set_index("change")[column], at)
        axes.axvline(unmoved[column].mean(), color=SOFT, lw=0.8, zorder=1)
        name_rows(axes, [*reversed(kinds)] if index == 0 else [""] * len(kinds))
        axes.set_ylim(-0.6, len(kinds) - 0.4)
        axes.set_xlabel(label)
        letter(axes, index, title)
    legend_below(figure.axes[0], columns=3)
    return figure


def _dots(axes: Axes, values: pd.Series, at: int) -> None:
    random = values.loc[["random"]].to_numpy()
    spread = np.random.default_rng(0).uniform(-0.22, 0.22, len(random))
    label = {"random": "at random, as far", "third": "towards a third task, as far", "next": "towards the next task"}
    first = at == 0
    axes.scatter(random, at + spread, s=5, color=SOFT, alpha=0.6, lw=0, label=label["random"] if first else None)
    for change, ink, marker in (("third", ORANGE, "s"), ("next", BLUE, "o")):
        if change in values.index:
            axes.plot(values[change], at, color=ink, marker=marker, ms=5, ls="none", label=label[change] if first else None)


_SETS = (  # column, label, colour, marker
    ("random", "as many at random", SOFT, "P"),
    ("others", "as many of another task", ORANGE, "s"),
    ("shared", "as many that all tasks use", VERMILLION, "^"),
    ("own", "the task's own experts", BLUE, "o"),
)


def _experts(tables: Tables) -> Figure:
    rises, confidence = tables["experts"].iloc[::-1], tables["experts_confidence"]
    figure = new_figure(1.5 + 0.28 * len(rises))
    left, right = figure.subplots(1, 2)
    y = np.arange(len(rises))
    for column, label, ink, marker in _SETS:
        left.plot(rises[column], y, color=ink, marker=marker, ls="none", ms=4.5, label=label)
    span = errors(rises["own"], rises["low"], rises["high"])
    left.errorbar(rises["own"], y, xerr=span, color=BLUE, ls="none", elinewidth=0.8)
    left.axvline(0, color=SOFT, lw=0.8, zorder=1)
    name_rows(left, [str(task) for task in rises["task"]])
    left.set_ylim(-0.6, len(rises) - 0.4)
    left.set_xlabel("rise of the loss, nats a token")
    right.plot(confidence["acted"], confidence["lost"], color=BLUE)
    used = confidence[confidence["used"]]
    right.scatter(used["acted"], used["lost"], s=40, facecolor="none", edgecolor=INK, zorder=4, clip_on=False)
    right.set_xlim(0, 1)
    right.set_ylim(0, max(0.05, 1.2 * float(confidence["lost"].max())))
    right.set_xlabel("texts that go on with their named task's experts")
    right.set_ylabel("share of texts lost")
    letter(left, 0, f"{rises['left_out'].iloc[0]:.0%} of later layers' experts left out")
    letter(right, 1, "by how sure the router is")
    legend_below(left, columns=4)
    return figure


FIGURES: tuple[TableFigure, ...] = (
    (
        "stream",
        "stream_frontier",
        "The mixed stream: what acting on the task's name saves",
        "Left: texts of all tasks, mixed, that are lost against full depth with the task told, mistakes of naming included, "
        "over the share of layers saved; curves, at every confidence or depth on test texts; marks, where calibration for the "
        "dashed risk puts each way of answering, hollow where that risk allows it nothing. Right: on the clock, one text at a "
        "time, with 95 % intervals.",
        _stream,
    ),
    (
        "experts",
        "experts",
        "A task's experts alone",
        "Left: by how much test texts' own loss rises where experts behind the router's layer are left out, with 95 % "
        "intervals over groups for the task's own. Right: texts that lose more than is tolerated, over those that go on with "
        "their named task's experts, the surest first; the ring is where calibration stops.",
        _experts,
    ),
    (
        "causal",
        "causal_changes",
        "The next task's early identification put in",
        "Each point is one change of the stream after the router's layer, the mean over texts of the tasks that count: towards "
        "the next task (blue), as far towards a third (orange), and as far at random (grey). The line is where unmoved texts "
        "are. Were the early layer a router, blue would lie left of grey in a, and right of grey and orange in b.",
        _causal,
    ),
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
