"""Figures of tasks of more than two classes: what each class is taken for, and each class beside what a word would tell."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from moescope.report.registry import Tables
from moescope.report.style import (
    BLUE,
    GREEN,
    VERMILLION,
    WIDTH,
    columns_for,
    errors,
    heat_cells,
    legend_below,
    letter,
    levels,
    name_axis,
    name_rows,
    new_figure,
    of_task,
    shorten,
)  # fmt: skip

CONFUSION = (
    "What the circuit of K neurons takes each class for on held-out texts, classes weighed alike: of the texts of a row's "
    "class, the share that is named as the column's. On the diagonal is what is named rightly."
)
EACH = (
    "Each class against the rest: balanced accuracy of a circuit of its own, sought for that question in the training folds, "
    "and of the trivial cue that is chosen for it there (chance is one half); beside them the share of its texts that the "
    "task's one circuit names rightly (chance, dotted, is one over the number of classes). Bars are 95 % intervals."
)


def confusion(tables: Tables) -> Figure:
    frame = tables["confusion"]
    tasks = levels(frame, "task")
    across = columns_for(len(tasks), 3)
    down = -(-len(tasks) // across)
    side = max(1.6, 0.3 * max(of_task(frame, task)["class"].nunique() for task in tasks) + 0.7)
    figure = new_figure(side * down + 0.3, min(WIDTH, (side + 0.9) * across))
    grid = figure.subplots(down, across, squeeze=False).ravel()
    for i, task in enumerate(tasks):
        rows = of_task(frame, task)
        names = levels(rows, "class")
        matrix = rows.pivot_table(index="class", columns="predicted", values="share").reindex(index=names, columns=names)
        heat_cells(grid[i], matrix.to_numpy(float), 0.0, 1.0)
        name_axis(grid[i], names, 8)
        name_rows(grid[i], names)
        grid[i].set_xlabel("named")
        letter(grid[i], i, shorten(task, 24))
    for axes in grid[len(tasks) :]:
        axes.set_axis_off()
    return figure


def each_class(tables: Tables) -> Figure:
    frame = tables["each_class"]
    tasks = levels(frame, "task")
    most = max(len(of_task(frame, task)) for task in tasks)
    figure = new_figure((0.22 * most + 0.8) * len(tasks) + 0.3)
    grid = figure.subplots(len(tasks), 1, squeeze=False).ravel()
    for i, (axes, task) in enumerate(zip(grid, tasks, strict=True)):
        rows = of_task(frame, task)
        places = np.arange(len(rows))
        recall = (rows["recall"], rows["recall_low"], rows["recall_high"])
        marks = [(*recall, GREEN, "D", "share named rightly by the task's circuit", 0.2)]
        if "own" in rows and rows["own"].notna().any():
            own = (rows["own"], 0.5 + rows["own_low"], 0.5 + rows["own_high"])
            marks.append((*own, BLUE, "o", "its own circuit", -0.2))
            axes.plot(rows["cue_own"], places, "s", color=VERMILLION, ms=4, label="its best trivial cue")
            axes.axvline(0.5, color=BLUE, lw=0.6, ls=":")
        for value, low, high, ink, mark, label, shift in marks:
            bars = errors(list(value), list(low), list(high))
            axes.errorbar(value, places + shift, xerr=bars, fmt=mark, color=ink, ms=4, elinewidth=1, label=label)
        axes.axvline(1 / len(rows), color=GREEN, lw=0.6, ls=":")
        name_rows(axes, [shorten(str(name), 18) for name in rows["class"]], room=1.0)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(0, 1.02)
        letter(axes, i, shorten(task, 30))
    grid[-1].set_xlabel("balanced accuracy, or share of the class")
    legend_below(grid[-1])
    return figure
