"""The figures of experts in a routing-signatures study: whom they favour, and what they are chosen for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from moescope.report.hover import leads
from moescope.report.style import (
    FAINT,
    INK,
    SOFT,
    band,
    color,
    columns_for,
    errors,
    legend,
    letter,
    levels,
    name_rows,
    new_figure,
    shorten,
)
from moescope.report.texts import of_expert
from moescope.study.verdicts import ALPHA

Tables = Mapping[str, pd.DataFrame]
NamedFigure = tuple[str, tuple[str, ...], str, str, Callable[[Tables], Figure]]


def layer_axis(axes: Axes, frame: pd.DataFrame) -> None:
    """Name the layers of the rows of ``frame``, at most sixteen of them."""
    step = max(1, -(-len(frame) // 16))
    at = np.arange(0, len(frame), step)
    axes.set_xticks(at, [str(frame["layer"].iloc[i]) for i in at])
    axes.set_xlim(-0.6, len(frame) - 0.4)
    axes.set_xlabel("layer")


def favourites(tables: Tables) -> Figure:
    """Lift of every expert in every category, as one heat map a category."""
    frame = tables["experts"]
    categories = [c.removeprefix("share_") for c in frame.columns if c.startswith("share_")]
    layers = frame["layer"].drop_duplicates().tolist()
    figure = new_figure(0.8 + max(1.0, 0.11 * len(layers)) * -(-len(categories) // 2))
    grid = figure.subplots(-(-len(categories) // 2), 2, squeeze=False)
    wide = int(frame["expert"].max()) + 1
    image: Any = None
    for i, panel in enumerate(grid.flat):
        if i >= len(categories):
            panel.set_axis_off()
            continue
        with np.errstate(divide="ignore", invalid="ignore"):
            lift = np.log2(frame[f"share_{categories[i]}"].to_numpy() / frame["share"].to_numpy())
        values = np.full((len(layers), wide), np.nan)
        row = frame["layer"].map(layers.index).to_numpy()
        values[row, frame["expert"]] = np.clip(np.where(np.isfinite(lift), lift, np.where(np.isnan(lift), 0, -2)), -2, 2)
        image = panel.imshow(values, cmap="PuOr_r", vmin=-2, vmax=2, aspect="auto", interpolation="nearest")
        leads(image, [of_expert(layer, expert) for layer in layers for expert in range(wide)])
        sure = ((frame["p_family"] <= ALPHA) & (frame["category"] == categories[i])).to_numpy()
        panel.plot(frame["expert"][sure], row[sure], ls="none", marker="o", ms=1.8, color=INK, mew=0)
        step = max(1, -(-len(layers) // 8))
        panel.set_yticks(range(0, len(layers), step), layers[::step])
        panel.set_ylabel("layer")
        panel.set_xlabel("expert")
        panel.spines[:].set_visible(False)
        letter(panel, i, categories[i])
    bar = figure.colorbar(image, ax=grid, shrink=0.8, pad=0.02, ticks=[-2, -1, 0, 1, 2])
    bar.ax.set_yticklabels(["¼ or less", "½", "1", "2", "4 or more"])
    bar.outline.set_visible(False)
    return figure


def load(tables: Tables) -> Figure:
    """How each layer's load is spread, and what its busiest expert gets."""
    frame = tables["routing_load"]
    figure = new_figure(2.4)
    left, right = figure.subplots(1, 2)
    x = np.arange(len(frame))
    panels = (
        (left, "effective", "effective share of the experts", "Spread of the load"),
        (right, "most", "load of the busiest expert, fair shares", "Bottlenecks"),
    )
    for i, (panel, column, label, title) in enumerate(panels):
        spread = errors(frame[column], frame[f"{column}_low"], frame[f"{column}_high"])
        panel.errorbar(x, frame[column], yerr=spread, color=color(0), marker="o", ls="none", label="measured")
        panel.plot(x, frame[f"balanced_{column}"], color=SOFT, marker="_", ls="none", ms=9, label="balanced routing")
        layer_axis(panel, frame)
        panel.set_ylabel(label)
        panel.set_ylim(bottom=0)
        letter(panel, i, title)
    legend(left)
    return figure


def overflow(tables: Tables) -> Figure:
    """What experts with a capacity drop, a panel for each size of batch."""
    frame = tables["overflow"]
    sizes = sorted(frame["tokens"].unique())
    figure = new_figure(2.4)
    for i, (panel, size) in enumerate(zip(figure.subplots(1, len(sizes), squeeze=False, sharey=True).flat, sizes, strict=True)):
        rows = frame[frame["tokens"] == size].sort_values("capacity_factor")
        spread = errors(rows["dropped"], rows["low"], rows["high"])
        panel.errorbar(rows["capacity_factor"], rows["dropped"], yerr=spread, color=color(0), marker="o", label="measured")
        panel.plot(rows["capacity_factor"], rows["uniform"], color=SOFT, ls="--", label="uniform router")
        band(panel, rows["capacity_factor"], rows["uniform_low"], rows["uniform_high"], SOFT)
        panel.set_xlabel("capacity of an expert, fair shares")
        panel.set_ylim(bottom=0)
        letter(panel, i, f"{size} tokens in a batch")
        if i == 0:
            panel.set_ylabel("share of choices dropped")
            legend(panel)
    return figure


def cards(tables: Tables) -> Figure:
    """The tokens of up to eight experts."""
    tokens, categories = tables["expert_tokens"], tables["expert_categories"]
    keys = categories[["layer", "expert"]].drop_duplicates().itertuples(index=False, name=None)
    shown = [key for key in keys if len(_of(tokens, key))][:8]
    across = columns_for(len(shown))
    rows = -(-len(shown) // across)
    figure = new_figure(0.3 + 1.75 * rows)
    grid = figure.subplots(rows, across, squeeze=False)
    kinds = levels(categories, "category")
    for i, panel in enumerate(grid.flat):
        if i >= len(shown):
            panel.set_axis_off()
            continue
        best = _of(tokens, shown[i]).iloc[::-1]
        y = np.arange(len(best))
        overall = float((best["rate"] / best["lift"]).iloc[0])
        spread = errors(best["rate"], best["low"] * overall, best["high"] * overall)
        panel.axvline(overall, color=FAINT, lw=1, zorder=0, label="any token")
        panel.errorbar(best["rate"], y, xerr=spread, color=SOFT, marker="o", ls="none")
        panel.set_xlim(0, 1.05)
        panel.set_xticks([0, 0.5, 1])
        own = _of(categories, shown[i])
        kind = str(own.loc[own["lift"].idxmax(), "category"])
        panel.tick_params(axis="y", colors=color(kinds.index(kind)))
        name_rows(panel, [_visible(str(t)) for t in best["token"]], room=0.4, size=5.5)
        letter(panel, i, f"layer {shown[i][0]}, expert {shown[i][1]}: {shorten(kind, 14)}")
        if i // across == rows - 1 or i + across >= len(shown):
            panel.set_xlabel("share of its places sent here")
        if i == 0:
            legend(panel)
    return figure


def _visible(token: str) -> str:
    """A token as text in which spaces and line ends can be seen."""
    return token.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥")


def _of(frame: pd.DataFrame, key: tuple[int, int]) -> pd.DataFrame:
    return frame[(frame["layer"] == key[0]) & (frame["expert"] == key[1])]


EXPERT_FIGURES: tuple[NamedFigure, ...] = (
    (
        "experts",
        ("experts",),
        "Which experts each category favours",
        "Share of a category's routing beside the share of all prompts, by layer and expert; a dot marks the favourite "
        "category of an expert that tells categories apart (family-wise p < 0.05).",
        favourites,
    ),
    (
        "load",
        ("routing_load",),
        "How the load is spread over the experts",
        "Effective share of a layer's experts and load of its busiest one (95 %), beside balanced routing of as many tokens.",
        load,
    ),
    (
        "overflow",
        ("overflow",),
        "What experts with a capacity would drop",
        "Share of the choices beyond an expert's capacity, by capacity in fair shares and by tokens of a batch (95 %); dashed, "
        "with what 95 % of draws lie between, under a uniform router.",
        overflow,
    ),
    (
        "cards",
        ("expert_tokens", "expert_categories"),
        "What the strongest experts are chosen for",
        "How often the tokens that an expert takes most were sent to it (95 % intervals), beside its share of all tokens "
        "(line); the colour and the heading give the category of prompts that favours it most.",
        cards,
    ),
)
