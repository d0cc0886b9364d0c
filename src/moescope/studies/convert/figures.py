"""The figure of a conversion: quality over the activated share, and speed beside its ceiling."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from moescope.report.registry import Entry
from moescope.report.style import (
    BLUE,
    FAINT,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    SOFT,
    VERMILLION,
    legend,
    letter,
    log_scale,
    name_axis,
    new_figure,
)

if TYPE_CHECKING:
    from moescope.study.result import StudyResult

Tables = Mapping[str, pd.DataFrame]

_KINDS = (  # kind in the table, label, colour, marker
    ("converted", "this split", BLUE, "o"),
    ("random", "random split", ORANGE, "s"),
    ("static", "static pruning, no router", VERMILLION, "^"),
    ("8-bit", "8-bit weights, by bytes", GREEN, "D"),
    ("oracle routing", "this split, best choice", SKY, "*"),
    ("oracle neurons", "single neurons, best choice", PURPLE, "P"),
)
# hollow, of the same colour
_AFTER = (
    ("refitted", ":", {"converted": "refit", "random": "random refit", "static": "static refit"}),
    ("tuned", "--", {"converted": "tuned", "random": "random tuned", "static": "static tuned"}),
)
_RUNNERS = (("moescope", BLUE), ("grouped_mm", SKY))
CAPTION = (
    "What the conversion costs and gains. Left: perplexity on held-out text over the share of the MLPs' weights that work on a "
    "token, router included, and of the bytes that 8-bit weights read; the dense model as a line; hollow, what was refitted or "
    "fine-tuned for one share, at this share and others; star and cross, what the best choice of experts and of single neurons "
    "would lose. Middle: KL divergence from the original. Right: speed-up over the dense model end to end for each kind of "
    "work, a tick where the weights alone set the ceiling."
)


def entries(result: StudyResult) -> Iterator[Entry]:
    """The frontier, with speed where it was measured."""
    if "frontier" in result.tables:
        yield Entry("frontier", "Quality and speed of the conversion", CAPTION, partial(frontier, result.tables))


def frontier(tables: Tables) -> Figure:
    timed = "speed" in tables
    figure = new_figure(2.4)
    axes = figure.subplots(1, 3 if timed else 2)
    table = tables["frontier"]
    _curves(axes[0], table, "perplexity", "perplexity, held-out")
    dense = table["perplexity"] / (1 + table["rise"])
    axes[0].axhline(float(dense.iloc[0]), color=SOFT, lw=0.8, ls=(0, (4, 2)), zorder=1, label="dense")
    log_scale(axes[0], "y")
    legend(axes[0])
    letter(axes[0], 0, "quality")
    _curves(axes[1], table[table["kl"] > 0], "kl", "KL to the original, nats per token")
    letter(axes[1], 1, "distance from the original")
    if timed:
        _speed(axes[2], tables["speed"])
        letter(axes[2], 2, "speed-up over dense")
    return figure


def _curves(axes: Axes, table: pd.DataFrame, column: str, label: str) -> None:
    for kind, name, color, marker in _KINDS:
        rows = table[table["kind"] == kind].sort_values("share")
        if len(rows):
            axes.plot(rows["share"], rows[column], color=color, marker=marker, label=name)
        for word, style, kinds in _AFTER:
            rows = table[table["kind"] == kinds.get(kind)].sort_values("share")
            if len(rows):
                look: dict[str, Any] = {"color": color, "marker": marker, "mfc": "white", "ls": style}
                axes.plot(rows["share"], rows[column], label=f"{name}, {word}", **look)
    axes.set_xlabel("active share of MLP weights")
    axes.set_ylabel(label)
    axes.set_xlim(0, None)


def _speed(axes: Axes, table: pd.DataFrame) -> None:
    works = list(dict.fromkeys(table["workload"]))
    places = np.arange(len(works))
    runners = [(name, color) for name, color in _RUNNERS if (table["runner"] == name).any()]
    width = 0.8 / max(1, len(runners))
    for i, (name, color) in enumerate(runners):
        rows = table[table["runner"] == name].set_index("workload").loc[works]
        x = places + (i - (len(runners) - 1) / 2) * width
        axes.bar(x, rows["speedup"], width * 0.9, color=color, label=name)
        axes.hlines(rows["ceiling"], x - width / 2, x + width / 2, color=SOFT, lw=1, label="ceiling" if i == 0 else "")
    axes.axhline(1, color=FAINT, lw=0.8, zorder=0)
    name_axis(axes, [str(w) for w in works])
    axes.set_ylabel("times dense")
    legend(axes)
