"""The figures of robustness: changes of a prompt, and the search for suffixes."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from moescope.report.registry import TableFigure, Tables
from moescope.report.style import BLUE, FAINT, INK, ORANGE, SOFT, errors, legend, letter, marker, name_rows, new_figure


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


def _monitor(tables: Tables) -> Figure:
    frame = tables["monitor"].iloc[::-1]
    figure = new_figure(0.9 + 0.28 * len(frame))
    left, right = figure.subplots(1, 2, sharey=True)
    y = np.arange(len(frame))
    for axes, name, ink in ((left, "misses", BLUE), (right, "alarms", ORANGE)):
        span = errors(frame[name], frame[f"{name}_low"], frame[f"{name}_high"])
        axes.errorbar(frame[name], y, xerr=span, color=ink, marker="o", ls="none")
        axes.axvline(0, color=FAINT, lw=0.8, zorder=0)
    left.axvline(float(frame["risk"].iloc[0]), color=SOFT, lw=0.8, ls="--", zorder=0)
    names = [f"{m} ({s:.0%})" for m, s in zip(frame["monitor"], frame["second_stage"], strict=True)]
    name_rows(left, names, room=0.6)
    left.set_xlabel("share of the category's prompts missed")
    right.set_xlabel("share of other prompts flagged")
    letter(left, 0, "The promise (dashed) and what came")
    letter(right, 1, "What it costs in alarms")
    return figure


FIGURES: tuple[TableFigure, ...] = (
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
        "monitor",
        "monitor",
        "A monitor in two stages beside its rivals",
        "Each with the same promise on misses (dashed), every prompt judged by the turn that had not seen its group. In "
        "brackets the share of prompts for which the whole model is run. Bars: 95 % intervals.",
        _monitor,
    ),
)
