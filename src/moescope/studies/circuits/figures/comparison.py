"""Tasks and models side by side: accuracy, transfer, specialization, overlap. Counterpart of the source's figure 1."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
    errors,
    heading,
    heat_cells,
    legend,
    letter,
    levels,
    log_k,
    name_axis,
    name_rows,
    new_figure,
    shorten,
)  # fmt: skip

Tables = Mapping[str, pd.DataFrame]
CAPTION = (
    "Per task: accuracy of the ten-neuron circuit selected inside the folds beside the published (global) selection, the "
    "best surface cue and the full-layer probe; accuracy of a circuit's classifier transferred between tasks; the "
    "specialization ratio beside 2 × native accuracy, which it equals by construction when the transferred classifier is "
    "at chance; shared neurons over K beside chance and beside the split-half overlap of a task with itself."
)
_ROW_HEIGHT = 2.3
_SIDE_BY_SIDE = 3  # tasks that four panels in one row have room for
_K = 10
_TASK = {"accuracy": "task", "matrix": "source", "ratio": "source", "overlap": "task_a"}  # columns that name tasks
SURFACE = "surface: "  # begins the name of a control that is a cue read off the text, not off the model


def drawable(tables: Tables) -> bool:
    return any(name in tables and len(tables[name]) > 0 for name in ("accuracy", "cross_task", "overlap"))


def comparison(models: Sequence[tuple[str, Tables]]) -> Figure:
    """One row per model with up to four panels; a column that no model can fill is left out."""
    panels = {
        "accuracy": ("Accuracy by task", _accuracy, 1.35),
        "matrix": ("Classifier transferred", _matrix, 1.05),
        "ratio": ("Specialization ratio", _ratio, 1.0),
        "overlap": ("Neurons shared by tasks", _overlap, 1.15),
    }
    needs = {"accuracy": "accuracy", "matrix": "cross_task", "ratio": "cross_task", "overlap": "overlap"}
    columns = [p for p in panels if any(len(t.get(needs[p], ())) for _, t in models)]
    most = max(len(levels(t[needs[c]], _TASK[c])) for _, t in models for c in columns if len(t.get(needs[c], ())))
    wide = most > _SIDE_BY_SIDE and len(columns) > 2  # then a model takes two rows of two panels
    across = 2 if wide else len(columns)
    height = _ROW_HEIGHT * 1.1 + 0.12 * (most - _SIDE_BY_SIDE) if wide else _ROW_HEIGHT
    down = -(-len(columns) // across)
    figure = new_figure(height * down * len(models) + 0.45)
    ratios = [1.0, 1.0] if wide else [panels[c][2] for c in columns]
    rows = figure.subplots(down * len(models), across, squeeze=False, width_ratios=ratios)
    grid = rows.reshape(len(models), down * across)
    for axes in grid[:, len(columns) :].flat:
        axes.set_axis_off()
    for i, (model, tables) in enumerate(models):
        for j, name in enumerate(columns):
            title, paint, _ = panels[name]
            axes = grid[i, j]
            if len(tables.get(needs[name], ())):
                paint(axes, tables, i == 0)
                letter(axes, i * len(columns) + j, title)
            else:
                axes.set_axis_off()
        if len(models) > 1:
            heading(grid[i, 0], model)
    return figure


def at_k(accuracy: pd.DataFrame, task: str, selection: str, classifier: str = "lda") -> pd.Series | None:
    """The row of ``accuracy`` whose K is nearest to ten, or None."""
    rows = accuracy[(accuracy["task"].astype(str) == task) & (accuracy["selection"] == selection)]
    if "classifier" in rows and (rows["classifier"] == classifier).any():
        rows = rows[rows["classifier"] == classifier]
    if rows.empty:
        return None
    return rows.loc[(rows["k"] - _K).abs().idxmin()]


def best_surface(controls: pd.DataFrame | None, task: str) -> pd.Series | None:
    """The surface cue that scores highest on ``task``, or None."""
    if controls is None:
        return None
    cue = controls["control"].astype(str).str.startswith(SURFACE)
    rows = controls[(controls["task"].astype(str) == task) & cue].dropna(subset=["accuracy"])
    return None if rows.empty else rows.loc[rows["accuracy"].idxmax()]


def control_row(controls: pd.DataFrame | None, task: str, name: str) -> pd.Series | None:
    if controls is None:
        return None
    rows = controls[(controls["task"].astype(str) == task) & (controls["control"].astype(str) == name)]
    return None if rows.empty else rows.iloc[0]


def _accuracy(axes: Axes, tables: Tables, named: bool) -> None:
    accuracy, controls = tables["accuracy"], tables.get("controls")
    tasks = levels(accuracy, "task")
    sources = [
        ("circuit, nested", BLUE, "o", [at_k(accuracy, t, "nested") for t in tasks]),
        ("circuit, global", SKY, "o", [at_k(accuracy, t, "global") for t in tasks]),
        ("best surface cue", ORANGE, "s", [best_surface(controls, t) for t in tasks]),
        ("full-layer probe", GREEN, "D", [control_row(controls, t, "full_layer_probe") for t in tasks]),
    ]
    for j, (label, color, mark, rows) in enumerate(sources):
        at = [(i, r) for i, r in enumerate(rows) if r is not None]
        if not at:
            continue
        x = np.array([i for i, _ in at]) + (j - 1.5) * 0.19
        y = np.array([r["accuracy"] for _, r in at], dtype=float)
        e = errors(y, [r.get("low", np.nan) for _, r in at], [r.get("high", np.nan) for _, r in at])
        hollow: dict[str, Any] = {"mfc": "white"} if "global" in label else {}
        axes.errorbar(x, y, e, fmt=mark, color=color, ms=4, elinewidth=1, label=label, **hollow)
    for i, task in enumerate(tasks):
        chance = 1 / n_classes(tables, task)
        axes.plot([i - 0.4, i + 0.4], [chance] * 2, color=SOFT, lw=0.9, ls=(0, (4, 2)), label="chance" if i == 0 else None)
    name_axis(axes, tasks)
    axes.set_xlim(-0.55, len(tasks) - 0.45)
    axes.set_ylabel(f"accuracy (K = {_K})")
    if named:
        legend(axes, columns=1 if len(tasks) < 2 else 2)


def n_classes(tables: Tables, task: str) -> int:
    """How many classes the task has by the tables that name them; 2 where none does."""
    for name in ("neuron_classes", "pc1", "projection"):
        frame = tables.get(name)
        if frame is not None and "class" in frame:
            found = frame.loc[frame["task"].astype(str) == task, "class"].nunique()
            if found:
                return int(found)
    return 2


def _square(frame: pd.DataFrame, method: str) -> pd.DataFrame:
    rows = frame[frame["method"] == method]
    order = list(dict.fromkeys([*levels(frame, "source"), *levels(frame, "target")]))
    matrix = rows.assign(source=rows["source"].astype(str), target=rows["target"].astype(str))
    return matrix.pivot_table(index="source", columns="target", values="value").reindex(index=order, columns=order)


def _transfer(tables: Tables) -> pd.DataFrame:
    """Accuracy (source, target) of the transferred classifier, the diagonal filled from the tasks' own accuracy."""
    matrix = _square(tables["cross_task"], "transfer_accuracy")
    accuracy = tables.get("accuracy")
    for task in matrix.index:
        if accuracy is not None and pd.isna(matrix.loc[task, task]):
            row = at_k(accuracy, task, "nested")
            if row is not None:
                matrix.loc[task, task] = row["accuracy"]
    return matrix


def _matrix(axes: Axes, tables: Tables, named: bool) -> None:
    matrix = _transfer(tables)
    heat_cells(axes, matrix.to_numpy(float), 0.3, 1.0)
    name_axis(axes, list(matrix.index), 12)
    name_rows(axes, list(matrix.index))
    axes.set_xlabel("tested on")
    axes.set_ylabel("fitted on")


def _ratio(axes: Axes, tables: Tables, named: bool) -> None:
    """Own accuracy over the mean accuracy of the same neurons elsewhere, by transfer and by refit."""
    transfer, refit = _transfer(tables), _square(tables["cross_task"], "refit")
    tasks = list(transfer.index)
    for j, (label, color, matrix) in enumerate((("transferred", VERMILLION, transfer), ("refit", PURPLE, refit))):
        values = [_own_over_other(transfer, matrix, t) for t in tasks]
        if np.isfinite(values).any():
            axes.plot(np.arange(len(tasks)) + (j - 0.5) * 0.26, values, "os"[j], color=color, ms=4.5, label=label)
    own = [2 * transfer.loc[t, t] for t in tasks]
    for i, y in enumerate(own):
        axes.plot([i - 0.32, i + 0.32], [y, y], color=INK, lw=1, label="2 × own accuracy" if i == 0 else None)
    axes.axhline(1, color=FAINT, lw=0.8, zorder=0)
    name_axis(axes, tasks, 12)
    axes.set_xlim(-0.6, len(tasks) - 0.4)
    drawn = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in axes.lines])
    shown = drawn[np.isfinite(drawn)].tolist()
    axes.set_ylim(min([0.8, *(y - 0.1 for y in shown)]), max([2.05, *(y + 0.1 for y in shown)]))
    axes.set_yticks([1, 1.5, 2])
    axes.set_ylabel("own ÷ other task")
    if named:
        legend(axes)
    scores = [
        abs(transfer.loc[a, a] - transfer.loc[b, b]) + abs(transfer.loc[a, b] - transfer.loc[b, a])
        for a, b in itertools.combinations(tasks, 2)
    ]
    scores = [s for s in scores if np.isfinite(s)]
    if scores:
        span = f"{scores[0]:.2f}" if len(scores) == 1 else f"{min(scores):.2f} to {max(scores):.2f}"
        axes.set_xlabel(f"symmetry score {span}")


def _own_over_other(own: pd.DataFrame, matrix: pd.DataFrame, task: str) -> float:
    others = [matrix.loc[task, t] for t in matrix.columns if t != task and task in matrix.index]
    others = [v for v in others if pd.notna(v)]
    return float(own.loc[task, task] / np.mean(others)) if others else float("nan")


def _overlap(axes: Axes, tables: Tables, named: bool) -> None:
    frame = tables["overlap"].sort_values("k")
    share = frame.assign(**{c: frame[c] / frame["k"] for c in ("overlap", "expected")})
    for name in ("split_half_a", "split_half_b"):
        if name in share:
            share[name] = share[name] / share["k"]
    ks = sorted(share["k"].unique())
    halves = [c for c in ("split_half_a", "split_half_b") if c in share and share[c].notna().any()]
    if halves:
        span = share.groupby("k")[halves].agg(["min", "max"])
        low, high = span.xs("min", axis=1, level=1).min(axis=1), span.xs("max", axis=1, level=1).max(axis=1)
        axes.fill_between(low.index, low, high, color=GREEN, alpha=0.22, lw=0, label="same task, split halves")
        axes.plot(high.index, (low + high) / 2, color=GREEN, lw=0.9)
    pairs = list(share.groupby(["task_a", "task_b"], sort=False))
    for i, ((a, b), rows) in enumerate(pairs):
        label = f"{shorten(a, 10)}, {shorten(b, 10)}" if len(pairs) == 1 else ("each pair of tasks" if i == 0 else None)
        axes.plot(rows["k"], rows["overlap"], color=BLUE, lw=1.2 if len(pairs) < 4 else 0.7, marker="o", ms=2.5, label=label)
    chance = share.groupby("k")["expected"].mean()
    axes.plot(chance.index, chance, color=SOFT, lw=0.9, ls=(0, (4, 2)), label="chance")
    log_k(axes, ks, spacing=0.17)
    axes.set_ylim(-0.03, 1.03)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.set_ylabel("share of K in both")
    if named:
        legend(axes)
