"""The figures of a distillation study."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from moescope.report.registry import Entry
from moescope.report.style import (
    BLUE,
    SOFT,
    VERMILLION,
    band,
    color,
    errors,
    legend,
    legend_below,
    letter,
    levels,
    log_scale,
    marker,
    name_rows,
    new_figure,
    shorten,
)  # fmt: skip

if TYPE_CHECKING:
    from moescope.study.result import StudyResult

_ACTIVATIONS = "activations"
_STYLES = ("-", ":", "-.", (0, (6, 1, 1, 1)))  # of expert families; dense is dashed
_REFERENCE: dict[str, Any] = {"color": SOFT, "lw": 0.8, "ls": (0, (4, 2)), "zorder": 1}


def entries(result: StudyResult) -> Iterator[Entry]:
    """Error against active neurons and the ratio, error against cost, training curves, load, and the spliced model."""
    tables = result.tables
    if len(tables.get("summary", ())):
        yield Entry(
            "fvu",
            "Dense and mixture-of-experts students",
            "Fraction of variance unexplained on test against active neurons, on the layer's activations and on each control, "
            "with 95 % intervals over seeds; and the dense/MoE ratio at equal active neurons on each, where 1 means that "
            "experts gain nothing.",
            partial(_fvu, tables["summary"], tables.get("ratio", pd.DataFrame()), tables.get("baselines")),
        )
        yield Entry(
            "cost",
            "The same students, router counted",
            "Fraction of variance unexplained on the layer's activations against multiply-adds per token, router included, and "
            "against weight bytes read for one token in a batch of 1,024. The line joins dense students.",
            partial(_cost, tables["summary"], result.meta.get("teacher") or {}),
        )
    if len(tables.get("curves", ())) and len(tables.get("students", ())):
        yield Entry(
            "training",
            "Training",
            "Fraction of variance unexplained on validation during training, first seed at the chosen learning rate.",
            partial(_curves, tables["curves"], tables["students"]),
        )
    if len(tables.get("load", ())):
        yield Entry(
            "load",
            "Load of the experts",
            "The share of test tokens that each expert runs for, experts ordered by it. A curve that ends early has dead "
            "experts.",
            partial(_load, tables["load"]),
        )
    if len(tables.get("splice", ())):
        yield Entry(
            "splice",
            "The model with its layer replaced",
            "Next-token loss with the layer replaced by each student and by its mean output; the dashed line is the original.",
            partial(_splice, tables["splice"]),
        )


def _label(row: pd.Series) -> str:
    """A family of students: what is drawn as one curve."""
    if row["kind"] != "moe":
        return str(row["kind"])
    return f"moe, {row['router']}"


def _families(summary: pd.DataFrame) -> pd.DataFrame:
    return summary.assign(family=summary.apply(_label, axis=1))


def _fvu(summary: pd.DataFrame, ratio: pd.DataFrame, baselines: pd.DataFrame | None) -> Figure:
    data = levels(summary, "data")
    columns = min(4, len(data) + (1 if len(ratio) else 0))
    rows = -(-(len(data) + (1 if len(ratio) else 0)) // columns)
    frame = _families(summary)
    ratios = len(data) * frame[frame["kind"] == "moe"]["family"].nunique()  # curves named below the panels
    figure = new_figure(2.5 * rows + (0.13 * -(-ratios // 3) + 0.1 if len(ratio) else 0))
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    sizes = set(frame[frame["kind"] != "dense"]["active_neurons"])
    for i, name in enumerate(data):
        axes = grid[i]
        if i:
            axes.sharey(grid[0])  # the error on one scale
        here = frame[(frame["data"] == name) & (frame["active_neurons"].isin(sizes))]
        for j, family in enumerate(levels(here, "family")):
            part = here[here["family"] == family].sort_values("active_neurons")
            axes.plot(part["active_neurons"], part["fvu"], color=color(j), marker=marker(j), label=family)
            band(axes, part["active_neurons"], part["low"], part["high"], color(j))
        if baselines is not None:
            linear = baselines[(baselines["data"] == name) & (baselines["baseline"] == "linear")]["fvu"]
            if len(linear):
                axes.axhline(float(linear.iloc[0]), **_REFERENCE, label="closed-form linear")
        _axis(axes, sizes)
        axes.set_ylabel("FVU on test" if i == 0 else "")
        letter(axes, i, name)
    legend(grid[0])  # once all panels are drawn, since they share its scale
    if len(ratio):
        axes = grid[len(data)]
        axes.axhline(1.0, **_REFERENCE, label="no gain")
        for j, ((name, _), part) in enumerate(
            ratio.assign(family=ratio.apply(_label, axis=1)).groupby(["data", "family"], sort=False)
        ):
            ink = {_ACTIVATIONS: BLUE, "gaussian": VERMILLION}.get(str(name), color(j + 2))
            part = part.sort_values("active_neurons")
            family = part["family"].iloc[0]
            axes.errorbar(
                part["active_neurons"], part["ratio"], errors(part["ratio"], part["low"], part["high"]),
                color=ink, marker=marker(j), capsize=2, label=f"{name}, {family}",
            )  # fmt: skip
        _axis(axes, set(ratio["active_neurons"]))
        axes.set_ylabel("dense / MoE FVU")
        letter(axes, len(data), "Ratio")
        legend_below(axes)
    for axes in grid[len(data) + (1 if len(ratio) else 0) :]:
        axes.set_axis_off()
    return figure


def _axis(axes: Axes, sizes: set[int]) -> None:
    log_scale(axes, "x", 2)
    axes.set_xticks(sorted(sizes), [str(s) for s in sorted(sizes)])
    axes.set_xlabel("active neurons")


def _cost(summary: pd.DataFrame, teacher: dict[str, Any]) -> Figure:
    figure = new_figure(2.6)
    panels = figure.subplots(1, 2)
    frame = _families(summary[summary["data"] == _ACTIVATIONS])
    names = (
        ("multiply_adds", "multiply-adds per token, router included"),
        ("bytes_large_batch", "weight bytes per token, batch 1,024"),
    )
    for i, (column, title) in enumerate(names):
        axes = panels[i]
        for j, family in enumerate(levels(frame, "family")):
            part = frame[frame["family"] == family].sort_values(column)
            axes.plot(
                part[column], part["fvu"], color=color(j), marker=marker(j), ls="-" if family == "dense" else "", label=family
            )
        _decades(axes, frame[column])
        if i == 0 and teacher.get("width"):
            own = teacher["width"] * (teacher["d_in"] * (2 if teacher["glu"] else 1) + teacher["d_out"])
            axes.axvline(own, **_REFERENCE, label="the layer itself")
        axes.set_xlabel(title)
        axes.set_ylabel("FVU on test")
        letter(axes, i, "Multiply-adds" if i == 0 else "Bytes")
        legend(axes)
    return figure


def _decades(axes: Axes, values: pd.Series) -> None:
    """A logarithmic axis whose labels do not run into each other where all values lie within a decade or two."""
    log_scale(axes, "x")
    narrow = values.max() < 100 * values.min()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _curves(curves: pd.DataFrame, students: pd.DataFrame) -> Figure:
    """One colour for each number of active neurons, so that the pairs that are compared stand together."""
    chosen = students[students["chosen"] & (students["seed"] == 0)]
    frame = curves.merge(
        chosen[["data", "student", "lr", "seed", "kind", "router", "active_neurons"]], on=["data", "student", "lr", "seed"]
    )
    data = levels(frame, "data")
    sizes = sorted(set(frame[frame["kind"] != "dense"]["active_neurons"]))
    families = levels(_families(frame[frame["kind"] != "dense"]), "family") if sizes else []
    figure = new_figure(2.5)
    grid = figure.subplots(1, len(data), squeeze=False, sharey=True)[0]
    for i, name in enumerate(data):
        here = _families(frame[frame["data"] == name])
        for _, part in here.groupby("student", sort=False):
            family, size = part["family"].iloc[0], part["active_neurons"].iloc[0]
            ink = color(sizes.index(size)) if size in sizes else SOFT
            style = "--" if family == "dense" else _STYLES[families.index(family) % len(_STYLES)]
            label = f"{family}, {size} active" if size in sizes else "dense at equal cost"
            seen = grid[i].get_legend_handles_labels()[1]
            grid[i].plot(part["step"], part["validation"], color=ink, ls=style, label=None if label in seen else label)
        grid[i].set_xlabel("step")
        letter(grid[i], i, name)
    grid[0].set_ylabel("FVU on validation")
    legend_below(grid[-1])
    return figure


def _load(load: pd.DataFrame) -> Figure:
    figure = new_figure(2.3, width=4.2)
    axes = figure.subplots()
    for j, student in enumerate(levels(load, "student")):
        part = load[(load["student"] == student) & (load["load"] > 0)]
        axes.plot(part["rank"] + 1, part["load"], color=color(j), label=shorten(student, 40))
    log_scale(axes, "y")
    axes.set_xlabel("expert, most used first")
    axes.set_ylabel("share of tokens")
    legend(axes)
    return figure


def _splice(splice: pd.DataFrame) -> Figure:
    table = splice.set_index("layer_is")["loss"]
    others = table.drop("original")
    figure = new_figure(0.2 * len(others) + 1.0, width=4.6)
    axes = figure.subplots()
    where = np.arange(len(others))[::-1]
    axes.plot(others.to_numpy(), where, "o", color=BLUE)
    axes.axvline(float(table["original"]), **_REFERENCE, label="the layer itself")
    axes.set_ylim(-0.6, len(others) - 0.4)
    legend(axes)
    name_rows(axes, [str(name) for name in others.index], at=where.tolist(), room=0.6)
    axes.set_xlabel("loss (nats per token)")
    return figure
