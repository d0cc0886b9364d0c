"""The figure of a choice of neurons: what is lost over the bytes that a token reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from moescope.report.registry import Entry
from moescope.report.style import BLUE, FAINT, GREEN, ORANGE, SKY, SOFT, VERMILLION, legend_below, letter, log_scale, new_figure

if TYPE_CHECKING:
    from moescope.study.result import StudyResult

Tables = Mapping[str, pd.DataFrame]

_WAYS = (  # method in the table, label, colour, marker, line
    ("planes", "low bits choose", BLUE, "o", "-"),
    ("oracle", "oracle (a bound)", SOFT, "x", ":"),
    ("gate-first", "gate first", ORANGE, "s", "-"),
    ("up-first", "up first", ORANGE, "^", "--"),
    ("cats", "CATS", SKY, "s", "-"),
    ("teal", "TEAL", SKY, "^", "--"),
    ("wina", "WINA", SKY, "v", ":"),
    ("rotated", "rotated inputs", SKY, "d", "-."),
    ("static", "same neurons always", VERMILLION, "^", "-"),
    ("random", "neurons at random", VERMILLION, "x", "none"),
    ("another token", "another token's choice", VERMILLION, "o", "none"),
    ("file", "the file's own codes", GREEN, "*", "none"),
)
CAPTION = (
    "What choosing neurons costs. Left: rise of perplexity on held-out text over the bytes of the MLPs' weights that a token "
    "reads, of those of 16-bit weights, for every way of choosing; green, all weights rounded to few bits, and the codes of "
    "the file that the model came from: a way is worth something below them alone. Right: KL divergence from the original. "
    "Bars: 95 % intervals of the low bits' choice, paired; the grey line is a rise of 1 %. "
    "A rise of nought or below is drawn at the foot. Where the clock ran, a third panel has the rise over tokens per second, "
    "one at a time, of what has a kernel, as a multiple of plain 8-bit weights': right of the line is faster; bars: 95 % "
    "intervals over turns."
)
_FOOT = 1e-4


def entries(result: StudyResult) -> Iterator[Entry]:
    """The frontier."""
    if "frontier" in result.tables:
        yield Entry("frontier", "Quality over the bytes that a token reads", CAPTION, partial(frontier, result.tables))


def frontier(tables: Tables) -> Figure:
    table = tables["frontier"]
    timed = "over_8_bits" in table and bool(table["over_8_bits"].notna().any())
    figure = new_figure(3.6)
    axes = figure.subplots(1, 3 if timed else 2)
    _curves(axes[0], table, "rise", "rise of perplexity, held-out")
    letter(axes[0], 0, "quality")
    _curves(axes[1], table, "kl", "KL to the original, nats per token")
    letter(axes[1], 1, "distance from the original")
    if timed:
        _clock(axes[2], table[table["over_8_bits"].notna()])
        letter(axes[2], 2, "on the clock")
    legend_below(axes[0])
    return figure


def _clock(axes: Axes, table: pd.DataFrame) -> None:
    for names, color, marker, line in ((("planes",), BLUE, "o", "-"), (("8-bit", "4-bit"), GREEN, "D", "none")):
        rows = table[table["method"].isin(names)].sort_values("share")
        axes.plot(rows["over_8_bits"], _drawn(rows["rise"]), color=color, marker=marker, ls=line)
        axes.hlines(_drawn(rows["rise"]), rows["over_8_bits_low"], rows["over_8_bits_high"], color=color, lw=1)
    own = table[table["method"] == "original"]
    axes.plot(own["over_8_bits"], _drawn(own["rise"]), color=SOFT, marker="s", ls="none")
    for row in table[table["method"] != "planes"].to_dict("records"):
        at = (row["over_8_bits"], float(_drawn(row["rise"])))
        axes.annotate(str(row["method"]), at, color=SOFT, fontsize=6, xytext=(3, 3), textcoords="offset points")
    axes.axvline(1, color=FAINT, lw=0.8, zorder=0)
    log_scale(axes, "y")
    axes.set_xlabel("tokens per second, of 8-bit weights'")
    axes.set_ylabel("rise of perplexity, held-out")


def _curves(axes: Axes, table: pd.DataFrame, column: str, label: str) -> None:
    for method, name, color, marker, line in _WAYS:
        rows = table[table["method"] == method].sort_values("bytes")
        if len(rows):
            axes.plot(rows["bytes"], _drawn(rows[column]), color=color, marker=marker, ls=line, label=name)
    own = table[table["method"] == "planes"].sort_values("bytes")
    if column == "rise":
        axes.vlines(own["bytes"], _drawn(own["low"]), _drawn(own["high"]), color=BLUE, lw=1)
    rows = table[table["method"].str.match(r"[\d/]+-bit$")].sort_values("bytes")
    axes.plot(rows["bytes"], _drawn(rows[column]), color=GREEN, marker="D", label="plain weights, 3 to 8 bits")
    if column == "kl":
        for row in rows.to_dict("records"):
            at, name = (row["bytes"], float(_drawn(row[column]))), str(row["method"])
            place, side = ((-4, -8), "right") if "/" in name else ((3, 3), "left")
            axes.annotate(name, at, color=GREEN, fontsize=6, xytext=place, ha=side, textcoords="offset points")
    else:
        axes.axhline(0.01, color=FAINT, lw=0.8, zorder=0)
    log_scale(axes, "y")
    axes.set_xlabel("MLP bytes a token reads, of 16-bit weights")
    axes.set_ylabel(label)


def _drawn(values: pd.Series | float) -> np.ndarray:
    found: np.ndarray = np.maximum(np.asarray(values, float), _FOOT)
    return found
