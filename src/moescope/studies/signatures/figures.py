"""The figures of a routing-signatures study."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from moescope.report.hover import says
from moescope.report.registry import Entry
from moescope.report.style import (
    BLUE,
    FAINT,
    INK,
    ORANGE,
    PURPLE,
    SOFT,
    VERMILLION,
    color,
    errors,
    full_names,
    heat_cells,
    legend,
    legend_below,
    letter,
    levels,
    log_scale,
    marker,
    name_axis,
    name_rows,
    new_figure,
    shorten,
)
from moescope.studies.signatures.expert_figures import EXPERT_FIGURES, NamedFigure, Tables, layer_axis
from moescope.study.verdicts import ALPHA

if TYPE_CHECKING:
    from moescope.study.result import StudyResult

_CUES = 4  # trivial cues shown beside the signature: the strongest


def entries(result: StudyResult) -> Iterator[Entry]:
    """Layers, random-routing curve, nulls, classification, maps, similarity matrix, experts."""
    for name, needed, title, caption, draw in _FIGURES:
        if all(len(result.tables.get(table, ())) for table in needed):
            yield Entry(name, title, caption + _categories(result.tables, needed), partial(draw, result.tables))


def _categories(tables: Tables, needed: tuple[str, ...]) -> str:
    """The categories in full, where a figure is about them and may have to cut them."""
    named = [tables[t] for t in (*needed, "signature_map") if "category" in tables.get(t, ())]
    return full_names(levels(named[0], "category"), 9) if named else ""


def _layers(tables: Tables) -> Figure:
    frame = tables["routing_layers"]
    figure = new_figure(2.5)
    left, right = figure.subplots(1, 2)
    x = np.arange(len(frame))
    left.plot(x, frame["within"], color=BLUE, marker="o", label="within categories")
    left.plot(x, frame["across"], color=VERMILLION, marker="s", label="across categories")
    nulls = tables.get("layer_nulls", pd.DataFrame(columns=["null"]))
    for (name, ink), style in zip((("uniform", SOFT), ("own counts reshuffled", INK)), ("--", ":"), strict=True):
        rows = nulls[nulls["null"] == name]
        if len(rows):
            left.plot(x, rows["within"], color=ink, lw=0.9, ls=style, label=f"random routing: {name}")
    left.set_ylabel("mean cosine of two prompts")
    layer_axis(left, frame)
    letter(left, 0, "Similarity by layer")
    legend(left)
    right.bar(x, frame["d"], color=[BLUE if p <= ALPHA else FAINT for p in frame["p_family"]], width=0.7)
    right.plot(x, frame["null_d_95"], color=INK, marker="_", ls="none", ms=9, label="95 % of label permutations")
    right.set_ylabel("Cohen's d, within over across")
    layer_axis(right, frame)
    letter(right, 1, f"Separation (blue: family-wise p ≤ {ALPHA:g})")
    legend(right)
    return figure


def _curve(tables: Tables) -> Figure:
    frame = tables["random_curve"]
    figure = new_figure(2.5, width=4.6)
    axes = figure.subplots()
    axes.plot(frame["tokens"], frame["closed_form"], color=SOFT, label="random routing, closed form")
    axes.plot(frame["tokens"], frame["simulated"], color=SOFT, marker="x", ls="none", label="random routing, simulated")
    if "within" in frame:
        axes.plot(frame["tokens"], frame["within"], color=BLUE, marker="o", label="within categories")
        axes.plot(frame["tokens"], frame["across"], color=VERMILLION, marker="s", label="across categories")
    log_scale(axes, "x", 2)
    axes.set_xticks(frame["tokens"], [str(t) for t in frame["tokens"]])
    axes.minorticks_off()
    axes.set_xlabel("tokens drawn from every prompt")
    axes.set_ylabel("mean cosine")
    legend(axes)
    letter(axes, 0, "Cosine by number of tokens")
    return figure


def _nulls(tables: Tables) -> Figure:
    frame = tables["routing_nulls"].iloc[::-1]
    inks = {"measured routing": BLUE, "same token reshuffled": PURPLE, "random model": ORANGE}
    figure = new_figure(0.9 + 0.25 * len(frame))
    left, right = figure.subplots(1, 2, sharey=True)
    y = np.arange(len(frame))
    left.hlines(y, frame["across"], frame["within"], color=FAINT, lw=1.5, zorder=1)
    left.plot(frame["within"], y, color=BLUE, marker="o", ls="none", label="within")
    left.plot(frame["across"], y, color=VERMILLION, marker="s", ls="none", label="across")
    name_rows(left, levels(frame, "null"), room=0.6)
    left.set_ylim(-0.6, len(frame) - 0.4)
    left.set_xlabel("mean cosine")
    letter(left, 0, "Within and across")
    legend(left, columns=2)
    for at, row in zip(y, frame.to_dict("records"), strict=True):
        ink = inks.get(str(row["null"]), SOFT)
        right.errorbar(
            row["d"],
            at,
            xerr=errors([row["d"]], [row["d_low"]], [row["d_high"]]),
            color=ink,
            marker="o",
        )
    right.axvline(0, color=FAINT, lw=0.8, zorder=0)
    right.set_xlabel("Cohen's d (95 % of draws)")
    letter(right, 1, "Separation that each null leaves")
    return figure


def _classification(tables: Tables) -> Figure:
    frame = tables["routing_accuracy"]
    figure = new_figure(2.9)
    left, right = figure.subplots(1, 2, width_ratios=(1.9, 1))
    splits = levels(frame, "split")
    strongest = frame[frame["kind"] == "cue"].groupby("features")["accuracy"].max().nlargest(_CUES).index
    names = ["signature", *strongest]
    for i, name in enumerate(names):
        rows = frame[frame["features"] == name].set_index("split").reindex(splits)
        x = np.arange(len(splits)) + (i - (len(names) - 1) / 2) * 0.15
        left.errorbar(
            x,
            rows["accuracy"],
            yerr=errors(rows["accuracy"], rows["low"], rows["high"]),
            color=color(i),
            marker=marker(i),
            ls="none",
            label=shorten(name, 34),
        )
    null = frame[frame["kind"] == "null"]
    if len(null):
        left.axhline(float(null["accuracy"].iloc[0]), color=SOFT, lw=0.8, ls="--", zorder=1, label="labels permuted")
    name_axis(left, splits, 18)
    left.set_xlim(-0.5, len(splits) - 0.5)
    left.set_ylim(0, 1)
    left.set_yticks(np.linspace(0, 1, 6))
    left.set_ylabel("held-out accuracy (95 %)")
    letter(left, 0, "Category from the signature, and from trivial cues")
    legend(left, columns=2)
    if len(tables.get("confusion", ())):
        table = tables["confusion"]
        order = levels(table, "true")
        shares = table.pivot(index="true", columns="predicted", values="share").reindex(index=order, columns=order)
        heat_cells(right, shares.to_numpy(), 0, 1)
        name_axis(right, order, 9)
        name_rows(right, order)
        right.set_xlabel("predicted")
        right.set_ylabel("true")
        letter(right, 1, "Confusion, stratified folds")
    return figure


def _map(tables: Tables) -> Figure:
    frame = tables["signature_map"]
    figure = new_figure(3.0)
    axes = figure.subplots(1, 2)
    kinds = levels(frame, "category")
    first = frame.iloc[0]
    heads = (
        ("pc1", "pc2", "Principal components", f"PC1 ({first['pc1_explained']:.0%})", f"PC2 ({first['pc2_explained']:.0%})"),
        ("tsne1", "tsne2", "t-SNE: neighbours only, not distances", "", ""),
    )
    for i, (panel, (x, y, title, xlabel, ylabel)) in enumerate(zip(axes, heads, strict=True)):
        for c, kind in enumerate(kinds):
            rows = frame[frame["category"] == kind]
            name = shorten(kind, 60)
            look = {"marker": marker(c), "color": color(c), "ms": 2.6, "alpha": 0.7, "mew": 0}
            (points,) = panel.plot(rows[x], rows[y], ls="none", label=name, **look)
            if "text" in rows:
                says(points, rows["text"].astype(str).tolist())
        panel.set_xlabel(xlabel)
        panel.set_ylabel(ylabel)
        panel.set_xticks([])
        panel.set_yticks([])
        letter(panel, i, title)
    legend_below(axes[0], columns=len(kinds))
    return figure


def _matrix(tables: Tables) -> Figure:
    means, frame = tables["category_similarity"], tables["similarity_matrix"]
    figure = new_figure(3.2)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
    order = levels(means, "category")
    table = means.pivot(index="category", columns="other", values="cosine").reindex(index=order, columns=order).to_numpy()
    low, high = float(np.nanmin(table)), float(np.nanmax(table))
    digits = 2 if high - low > 0.05 else 3  # where all are nearly alike, two figures would say nothing
    heat_cells(left, table, low, high, [[f"{value:.{digits}f}" for value in row] for row in table])
    name_axis(left, order, 9)
    name_rows(left, order)
    letter(left, 0, "Mean cosine")
    matrix = np.array([np.asarray(row, dtype=float) for row in frame["cosine"]])
    image = right.imshow(matrix, cmap="cividis", vmin=float(np.quantile(matrix, 0.02)), vmax=1, interpolation="nearest")
    right.spines[:].set_visible(False)
    category = frame["category"].to_numpy()
    edges = [0, *np.flatnonzero(category[1:] != category[:-1]) + 1, len(category)]
    for edge in edges[1:-1]:
        right.axhline(edge - 0.5, color="white", lw=0.8)
        right.axvline(edge - 0.5, color="white", lw=0.8)
    centres = [(a + b - 1) / 2 for a, b in pairwise(edges)]
    kinds = [str(category[int(a)]) for a in edges[:-1]]
    name_axis(right, kinds, 9, at=centres)
    name_rows(right, kinds, at=centres)
    right.tick_params(length=0)
    figure.colorbar(image, ax=right, shrink=0.8, pad=0.02).outline.set_visible(False)
    letter(right, 1, "Cosine of every two prompts")
    return figure


_FIGURES: tuple[NamedFigure, ...] = (
    (
        "layers",
        ("routing_layers",),
        "Similarity and separation by layer",
        "Left: mean cosine of two prompts of one category and of different ones in each layer, beside two random routings of "
        "the same tokens. Right: Cohen's d in each layer; the mark is what 95 % of label permutations stay below.",
        _layers,
    ),
    (
        "nulls",
        ("routing_nulls",),
        "The measured routing beside its nulls",
        "Mean cosines and Cohen's d of the measured routing, of the same with labels permuted, of random routings of the same "
        "tokens, of choices dealt out among equal tokens, and of a randomly initialised model (prompt tokens).",
        _nulls,
    ),
    (
        "random_routing",
        ("random_curve",),
        "Cosine grows with the number of tokens",
        "Mean cosine from a number of tokens drawn from every prompt that has so many, and of uniformly random routing of as "
        "many tokens: closed form and simulation. With or without a task, more tokens give a higher cosine.",
        _curve,
    ),
    (
        "classification",
        ("routing_accuracy",),
        "Telling the category",
        "Held-out accuracy of logistic regression on the signature and of the strongest trivial cues, in stratified folds, on "
        "topics and templates not trained on, and on length-matched prompts; and which categories are taken for which.",
        _classification,
    ),
    (
        "map",
        ("signature_map",),
        "The prompts by their signatures",
        "One mark a prompt, by category. Left: the first two principal components. Right: t-SNE.",
        _map,
    ),
    (
        "similarity",
        ("category_similarity", "similarity_matrix"),
        "Similarity of categories and of prompts",
        "Mean cosine of the prompts of every two categories, and the cosine of every two prompts in order of category.",
        _matrix,
    ),
    *EXPERT_FIGURES,
)
