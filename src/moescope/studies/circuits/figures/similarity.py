"""Trees of tasks, by their circuits and by their texts, and the one over the other."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.cluster.hierarchy import dendrogram, linkage
from scipy.spatial.distance import squareform

from moescope.report.registry import Tables
from moescope.report.style import BLUE, FAINT, SOFT, WIDTH, letter, name_rows, new_figure

CAPTION = (
    "Which tasks are alike. (a) by their circuits: what two tasks' circuits share between halves of the texts beyond chance, "
    "of what each so shares with itself (joined at the mean of all pairs, scale 1 - likeness); (b) by their vocabulary (cosine "
    "of mean tf-idf weights); (c) the one over the other, a point a pair. A circuit that does not repeat itself between halves "
    "is like none."
)


def similarity(tables: Tables) -> Figure:
    frame = tables["similarity"]
    names = list(dict.fromkeys([*frame["task_a"], *frame["task_b"]]))
    figure = new_figure(max(1.9, 0.2 * len(names) + 0.9), WIDTH)
    grid = figure.subplots(1, 3)
    for i, (column, title) in enumerate((("circuit", "By circuits"), ("vocabulary", "By vocabulary"))):
        apart = np.zeros((len(names), len(names)))
        for a, b, value in zip(frame["task_a"], frame["task_b"], frame[column], strict=True):
            i_a, i_b = names.index(a), names.index(b)
            apart[i_a, i_b] = apart[i_b, i_a] = 1 - np.clip(np.nan_to_num(value), 0.0, 1.0)
        _tree(grid[i], apart, names)
        letter(grid[i], i, title)
    grid[2].scatter(frame["vocabulary"], frame["circuit"], s=10, color=BLUE, lw=0)
    grid[2].axhline(0, color=FAINT, lw=0.8, zorder=0)
    grid[2].set_xlabel("likeness of vocabulary")
    grid[2].set_ylabel("likeness of circuits")
    letter(grid[2], 2, "Pairs")
    return figure


def _tree(axes: Axes, apart: np.ndarray, names: list[str]) -> None:
    drawn = dendrogram(linkage(squareform(apart, checks=False), "average"), no_plot=True)
    for y, x in zip(drawn["icoord"], drawn["dcoord"], strict=True):
        axes.plot(x, (np.array(y) - 5) / 10, color=SOFT, lw=1)
    name_rows(axes, [names[i] for i in drawn["leaves"]], room=0.3)
    axes.set_xlim(1.05, 0)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xlabel("1 - likeness")
