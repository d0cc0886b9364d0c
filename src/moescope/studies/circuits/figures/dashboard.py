"""One task's circuit on one page: how few neurons suffice, which they are, and what chance and trivial cues give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from moescope.report.format import p_value
from moescope.report.hover import leads
from moescope.report.style import (
    BLUE,
    FAINT,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    SKY,
    SOFT,
    VERMILLION,
    band,
    class_legend,
    class_styles,
    layer_axis,
    legend,
    letter,
    levels,
    log_k,
    new_figure,
    of_task,
    shorten,
)
from moescope.report.texts import of_neuron
from moescope.studies.circuits.figures.comparison import best_surface, control_row, n_classes
from moescope.study.verdicts import ALPHA

Tables = Mapping[str, pd.DataFrame]
CAPTION = (
    "Accuracy by circuit size with neurons selected inside the folds (nested) and on all data (global, optimistic), beside "
    "the full-layer probe, the best surface cue, random neurons of the same layers and permuted labels; the top neurons by "
    "divergence with the 5 % family-wise permutation threshold and in how many folds each was chosen; the activations of "
    "the best neurons by class; the last layer's first two principal components; accuracy by depth with the circuit "
    "re-selected within the layers read so far; and, where the circuit was ablated, the effect by circuit size beside "
    "matched random neurons. Bars and bands are 95 % intervals; bands of random sets hold 95 % of the sets."
)

_NEURONS = 12  # bars
_VALUES = 6  # neurons whose values are shown by class
_ROW_HEIGHT = 2.15


def drawable(tables: Tables, task: str) -> bool:
    return any(has(tables, task) for _, has, _ in _PANELS)


def dashboard(tables: Tables, task: str, model: str) -> Figure:
    """The panels that the tables of ``task`` allow, two a row, under the names of the task and the model."""
    panels = [(title, paint) for title, has, paint in _PANELS if has(tables, task)]
    rows = -(-len(panels) // 2)
    figure = new_figure(_ROW_HEIGHT * rows + 0.25)
    title = f"{shorten(task, 50)} · {shorten(model, 40)}"
    figure.suptitle(title, fontweight="bold", fontsize=8.5, x=0.012, ha="left")
    grid = figure.subplots(rows, 2, squeeze=False).ravel()
    for i, (title, paint) in enumerate(panels):
        paint(grid[i], tables, task)
        letter(grid[i], i, title)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    return figure


def _needs(*names: str) -> Callable[[Tables, str], bool]:
    return lambda tables, task: all(len(of_task(tables.get(name), task)) > 0 for name in names)


def _sufficiency(axes: Axes, tables: Tables, task: str) -> None:
    rows = of_task(tables["accuracy"], task)
    rows = rows[rows["classifier"] == _main_classifier(rows)].sort_values("k")
    controls = tables.get("controls")
    for control, label, shade in (
        ("layer_matched_circuit", "random neurons, same layers", ORANGE),
        ("permuted_labels", "permuted labels", SOFT),
    ):
        row = control_row(controls, task, control)
        if row is not None and np.isfinite([row["low"], row["high"]]).all():
            axes.axhspan(row["low"], row["high"], color=shade, alpha=0.25, lw=0, label=label)
    for row, label, ink, dashes in (
        (control_row(controls, task, "full_layer_probe"), "full-layer probe", GREEN, "-."),
        (best_surface(controls, task), "best surface cue", VERMILLION, "--"),
    ):
        if row is not None:
            axes.axhline(row["accuracy"], color=ink, lw=1, ls=dashes, label=label)
    chance = 1 / n_classes(tables, task)
    axes.axhline(chance, color=SOFT, lw=0.8, ls=":", label=f"chance ({chance:.2g})")
    for selection, ink, fill in (("global", SKY, "white"), ("nested", BLUE, BLUE)):
        curve = rows[rows["selection"] == selection]
        if curve["accuracy"].notna().any():
            if selection == "nested":
                band(axes, curve["k"], curve["low"], curve["high"], ink)
            axes.plot(curve["k"], curve["accuracy"], "o-", color=ink, mfc=fill, label=f"circuit, {selection}")
    log_k(axes, [int(k) for k in rows["k"]])
    axes.set_ylabel("accuracy")
    legend(axes, columns=2)


def _main_classifier(rows: pd.DataFrame) -> str:
    """The classifier of the sufficiency curve: the one that was fitted at the most circuit sizes."""
    return str(rows.groupby("classifier", sort=False)["k"].nunique().idxmax())


def _neurons(axes: Axes, tables: Tables, task: str) -> None:
    rows = _once(of_task(tables["neurons"], task)).head(_NEURONS)
    place = np.arange(len(rows))
    values = rows["divergence"].to_numpy(float)
    significant = (rows["p_family"] <= ALPHA).to_numpy() if "p_family" in rows else np.ones(len(rows), dtype=bool)
    massive = rows["massive"].to_numpy(bool) if "massive" in rows else np.zeros(len(rows), dtype=bool)
    threshold = float(rows["threshold_5pct"].iloc[0]) if "threshold_5pct" in rows else float("nan")
    groups = (
        (significant & ~massive, BLUE, None, f"p (family-wise) ≤ {ALPHA:g}"),
        (significant & massive, SKY, "////", "the same, massive activation"),
        (~significant & ~massive, FAINT, None, "not significant"),
        (~significant & massive, "white", "////", "not significant, massive"),
    )
    for chosen, ink, hatch, label in groups:
        if chosen.any():
            bars = axes.barh(place[chosen], values[chosen], 0.72, color=ink, hatch=hatch, edgecolor=SOFT, lw=0.4, label=label)
            leads(bars, [of_neuron(task, r.layer, r.neuron) for r in rows[chosen].itertuples()])
    top = np.nanmax([*values, threshold, 1e-9])
    if np.isfinite(threshold):
        ends = [-0.45, len(rows) - 0.4]
        axes.plot([threshold] * 2, ends, color=VERMILLION, lw=1, ls="--", label="5 % family-wise threshold")
    if "fold_frequency" in rows:
        for y, (value, share) in enumerate(zip(values, rows["fold_frequency"].to_numpy(float), strict=True)):
            if np.isfinite(value) and np.isfinite(share):
                axes.annotate(
                    f"{share:.0%}", (value, y), xytext=(3, 0), textcoords="offset points", va="center", fontsize=5.5, color=SOFT
                )
        axes.set_xlabel("divergence |Δμ| / σ  (%: folds that chose it)")
    else:
        axes.set_xlabel("divergence |Δμ| / σ")
    named = [f"L{r.layer} N{r.neuron}" + (f" (×{r.layers})" if r.layers > 1 else "") for r in rows.itertuples()]
    axes.set_yticks(place, named, fontsize=6)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, top * 1.14)
    axes.tick_params(axis="y", length=0)
    legend(axes, columns=2)


def _once(rows: pd.DataFrame) -> pd.DataFrame:
    """The best row of each coordinate, which in the residual stream recurs over layers, and in how many it is as ``layers``."""
    return rows.assign(layers=rows.groupby("neuron")["neuron"].transform("size")).sort_values("rank").drop_duplicates("neuron")


def _distributions(axes: Axes, tables: Tables, task: str) -> None:
    """Values of the best neurons by class, each neuron standardised so that one axis serves all."""
    rows = of_task(tables["neuron_values"], task)
    ranks = sorted(_once(rows.drop_duplicates("rank"))["rank"])[:_VALUES]
    styles = class_styles(levels(rows, "class"))
    names: list[str] = []
    for place, rank in enumerate(ranks):
        here = rows[rows["rank"] == rank]
        x = here["value"].to_numpy(float)
        scaled = (x - np.nanmean(x)) / (np.nanstd(x) or 1)
        names.append(f"L{here['layer'].iloc[0]}\nN{here['neuron'].iloc[0]}")
        width = 0.8 / len(styles)
        for j, (label, style) in enumerate(styles.items()):
            values = scaled[(here["class"].astype(str) == label).to_numpy() & np.isfinite(scaled)]
            if len(values):
                axes.boxplot(
                    [values], positions=[place + (j - (len(styles) - 1) / 2) * width], widths=width * 0.82, whis=(5, 95),
                    showfliers=False, patch_artist=True, manage_ticks=False,
                    boxprops={"facecolor": style.color, "alpha": 0.75, "lw": 0.5},
                    medianprops={"color": INK, "lw": 1}, whiskerprops={"color": style.color, "lw": 0.8}, capprops={"lw": 0},
                )  # fmt: skip
    axes.axhline(0, color=FAINT, lw=0.6, zorder=0)
    axes.set_xticks(range(len(ranks)), names, fontsize=6)
    axes.set_xlim(-0.6, len(ranks) - 0.4)
    axes.set_ylabel("activation (standardised)")
    class_legend(axes, levels(rows, "class"))


def _projection(axes: Axes, tables: Tables, task: str) -> None:
    rows = of_task(tables["projection"], task)
    styles = class_styles(levels(rows, "class"))
    for label, style in styles.items():
        here = rows[rows["class"].astype(str) == label]
        axes.scatter(
            here["pc1"], here["pc2"], s=5, marker=style.marker, color=style.color, alpha=0.35, lw=0, rasterized=len(rows) > 3000
        )
    for label, style in styles.items():
        here = rows[rows["class"].astype(str) == label]
        axes.scatter(
            here["pc1"].mean(),
            here["pc2"].mean(),
            s=46,
            marker=style.marker,
            color=style.color,
            edgecolor="white",
            lw=1,
            zorder=4,
        )
    summary = of_task(tables.get("pc1"), task)
    axes.set_xlabel("PC1")
    if len(summary):
        row = summary.iloc[0]
        axes.set_xlabel(
            f"PC1 ({row['explained']:.0%} of variance; class distance {row['distance']:.2g}, "
            f"permuted {row['null_distance']:.2g}, p\N{NO-BREAK SPACE}{_equals(row['p'])})"
        )
    axes.set_ylabel("PC2")
    class_legend(axes, levels(rows, "class"))


def _equals(p: float) -> str:
    text = p_value(p)
    return text if text.startswith("<") else f"=\N{NO-BREAK SPACE}{text}"


_CURVES = (
    ("full_probe", "full-layer probe", GREEN, "D", "-."),
    ("circuit_reselected", "circuit re-selected in the layers so far", BLUE, "o", "-"),
    ("fixed_circuit", "final circuit's neurons so far (by construction)", PURPLE, None, ":"),
    ("surface", "best surface cue (no layer needed)", VERMILLION, None, "--"),
)


def _depth(axes: Axes, tables: Tables, task: str) -> None:
    rows = of_task(tables["depth"], task).sort_values("layer")
    for curve, label, ink, mark, dashes in _CURVES:
        here = rows[rows["curve"] == curve]
        if here["accuracy"].notna().any():
            if mark:
                band(axes, here["layer"], here["low"], here["high"], ink)
            axes.plot(here["layer"], here["accuracy"], color=ink, marker=mark, ls=dashes, ms=2.8, label=label)
    layer_axis(axes, int(rows["layer"].max()) + 1)
    axes.set_ylabel("accuracy")
    legend(axes, columns=1)


TARGETS = {
    "probe_accuracy": "Δ probe accuracy",
    "answer_logodds": "Δ log-odds of the answer (nats)",
    "answer_accuracy": "Δ answer accuracy",
    "wikitext_loss": "Δ loss on other text (nats/token)",
}


def _ablation(axes: Axes, tables: Tables, task: str) -> None:
    rows = of_task(tables["ablation"], task)
    rows = rows[rows["k"] > 0]  # 0 is one direction
    target = next((t for t in TARGETS if (rows["target"] == t).any()), str(rows["target"].iloc[0]))
    dose_curve(axes, rows[rows["target"] == target], "k", target)
    log_k(axes, [int(k) for k in rows["k"]])
    mode = f" ({rows['mode'].iloc[0]} ablation)" if "mode" in rows else ""
    axes.set_xlabel(f"neurons switched off, K{mode}")
    legend(axes, columns=1)


def dose_curve(axes: Axes, rows: pd.DataFrame, along: str, target: str, label: str = "circuit", ink: str = VERMILLION) -> None:
    """Effect of an intervention along ``along`` beside matched random ones; filled where p ≤ 0.05."""
    rows = rows.sort_values(along)
    n = int(rows["n_random"].max()) if "n_random" in rows and rows["n_random"].notna().any() else 0
    label_of_band = f"95 % of {n} random controls" if n else ""
    if len(rows) == 1:
        axes.vlines(rows[along], rows["random_low"], rows["random_high"], color=SOFT, lw=6, alpha=0.4, label=label_of_band)
    else:
        band(axes, rows[along], rows["random_low"], rows["random_high"], SOFT, label=label_of_band)
    one: Any = {"ls": "none", "marker": "_", "ms": 9} if len(rows) == 1 else {"ls": "--"}
    axes.plot(rows[along], rows["random_mean"], color=SOFT, lw=0.9, label="their mean", **one)
    axes.axhline(0, color=FAINT, lw=0.8, zorder=0)
    axes.plot(rows[along], rows["effect"], "-", color=ink)
    strong = (rows["p"] <= ALPHA).to_numpy()
    for chosen, fill, name in ((strong, ink, f"{label}, p ≤ {ALPHA:g}"), (~strong, "white", f"{label}, p > {ALPHA:g}")):
        if chosen.any():
            axes.plot(rows[along][chosen], rows["effect"][chosen], "o", color=ink, mfc=fill, ms=4, label=name)
    axes.set_ylabel(TARGETS.get(target, target.replace("_", " ")))


_PANELS: tuple[tuple[str, Callable[[Tables, str], bool], Callable[[Axes, Tables, str], None]], ...] = (
    ("How many neurons suffice", _needs("accuracy"), _sufficiency),
    ("Top neurons", _needs("neurons"), _neurons),
    ("Their activations by class", _needs("neuron_values"), _distributions),
    ("Projection of the last layer", _needs("projection"), _projection),
    ("Accuracy by depth", _needs("depth"), _depth),
    ("Circuit switched off", _needs("ablation"), _ablation),
)
