"""Further figures of a circuits study, each drawn where its table exists: controls, causal effects, task map, training."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from moescope.report.registry import TableFigure, Tables
from moescope.report.style import (
    BLUE,
    FAINT,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    SOFT,
    VERMILLION,
    WIDTH,
    band,
    color,
    columns_for,
    errors,
    heat_cells,
    legend,
    legend_below,
    letter,
    levels,
    log_k,
    marker,
    name_axis,
    name_rows,
    new_figure,
    of_task,
    shorten,
)  # fmt: skip
from moescope.studies.circuits.figures import several
from moescope.studies.circuits.figures.answers import CAPTION as ANSWERS_CAPTION
from moescope.studies.circuits.figures.answers import beyond_answers
from moescope.studies.circuits.figures.comparison import SURFACE
from moescope.studies.circuits.figures.crossed import CAPTION as CROSSED_CAPTION
from moescope.studies.circuits.figures.crossed import crossed
from moescope.studies.circuits.figures.dashboard import TARGETS, dose_curve
from moescope.studies.circuits.figures.few_shot import CAPTION as FEW_SHOT_CAPTION
from moescope.studies.circuits.figures.few_shot import few_shot
from moescope.studies.circuits.figures.kept import CAPTION as KEPT_CAPTION
from moescope.studies.circuits.figures.kept import kept
from moescope.studies.circuits.figures.scaling import CAPTION as SCALING_CAPTION
from moescope.studies.circuits.figures.scaling import scaling
from moescope.studies.circuits.figures.similarity import CAPTION as SIMILARITY_CAPTION
from moescope.studies.circuits.figures.similarity import similarity
from moescope.study.verdicts import ALPHA

_CONTROLS = (  # name in the table, label, colour, marker; top to bottom
    ("circuit", "circuit", BLUE, "o"),
    ("circuit_nested", "circuit, nested", BLUE, "o"),
    ("circuit_global", "circuit, selected on all data", SKY, "o"),
    ("circuit_on_sample", "circuit, on the rows read anew", BLUE, "o"),
    ("full_layer_probe", "full-layer probe", GREEN, "D"),
    ("one_direction", "one direction of a layer", GREEN, "D"),
    ("near_duplicates_split", "near-duplicates on both sides of splits", SKY, "o"),
    ("without_massive", "circuit without massive neurons", BLUE, "o"),
    ("rotated_basis", "randomly rotated basis", PURPLE, "v"),
    ("matched_subset", "surface-matched texts", BLUE, "P"),
    ("unseen_words", "words that were not learnt", BLUE, "P"),
    ("unseen_words_cue", "best cue on those", VERMILLION, "s"),
    ("fixed_template", "fixed closing words", BLUE, "P"),
    ("embedding_layer", "embedding layer", VERMILLION, "s"),
    (SURFACE, "", VERMILLION, "s"),  # every control whose name begins so
    ("chosen_cue", "best cue, chosen inside the folds", VERMILLION, "s"),
    ("cue_and_circuit", "that cue and the circuit", BLUE, "s"),
    ("majority class", "majority class", SOFT, "^"),
    ("random_circuit", "random neurons", ORANGE, "^"),
    ("layer_matched_circuit", "random neurons, same layers", ORANGE, "^"),
    ("random_twin_circuit", "circuit of a random model", ORANGE, "^"),
    ("random_twin_probe", "probe of a random model", ORANGE, "^"),
    ("permuted_labels", "permuted labels", SOFT, "^"),
    ("control_task", "control task (a random label per input)", PURPLE, "X"),
)


def _controls(tables: Tables, *, table: str = "controls", value: str = "accuracy", said: str = "accuracy") -> Figure:
    frame = tables[table]
    tasks = levels(frame, "task")
    present = levels(frame, "control")
    known: dict[str, tuple[str, str, str]] = {}
    for name, label, ink, mark in _CONTROLS:
        if name == SURFACE:
            known |= {c: (c.removeprefix(SURFACE), ink, mark) for c in present if c.startswith(SURFACE)}
        elif name in present:
            known[name] = (label, ink, mark)
    known |= {name: (name, SOFT, "x") for name in present if name not in known}
    order = list(known)
    pages = -(-len(tasks) // 3)
    figure = new_figure((0.155 * len(order) + 0.6) * pages)
    grid = figure.subplots(pages, min(3, len(tasks)), squeeze=False, sharey=True).ravel()
    for i, task in enumerate(tasks):
        axes, rows = grid[i], of_task(frame, task).drop_duplicates("control").set_index("control")
        for y, name in enumerate(order):
            if name in rows.index and np.isfinite(rows.loc[name, value]):
                row = rows.loc[name]
                _, ink, mark = known[name]
                axes.errorbar(
                    row[value], y, xerr=errors([row[value]], [row["low"]], [row["high"]]), fmt=mark, color=ink, ms=4,
                    elinewidth=1, mfc="white" if name == "circuit_global" else ink,
                )  # fmt: skip
        if "circuit" in rows.index:
            axes.axvspan(rows.loc["circuit", "low"], rows.loc["circuit", "high"], color=BLUE, alpha=0.1, lw=0)
        axes.grid(axis="y", color=FAINT, lw=0.3)
        name_rows(axes, [known[n][0] for n in order], room=0.3 * min(3, len(tasks)))
        axes.set_ylim(len(order) - 0.4, -0.6)
        axes.set_xlabel(said)
        axes.tick_params(axis="y", length=0)
        letter(axes, i, shorten(task, 30))
    for axes in grid[len(tasks) :]:
        axes.set_axis_off()
    return figure


def _causal(table: str, along: str, what: str, xlabel: str) -> Callable[[Tables], Figure]:
    """The effect beside matched random interventions: a panel for each task and each target that it has."""

    def draw(tables: Tables) -> Figure:
        frame = tables[table]
        frame = frame[frame[along] > 0] if along == "k" else frame  # k = 0 is one direction
        found = levels(frame, "target")
        targets = [t for t in TARGETS if t in found] + [t for t in found if t not in TARGETS]
        parts = [of_task(frame, task) for task in levels(frame, "task")]
        panels = [(rows, target) for rows in parts for target in targets if (rows["target"] == target).any()]
        across = columns_for(len(panels), 3)
        down = -(-len(panels) // across)
        figure = new_figure(1.9 * down + 0.25, min(WIDTH, 3.6 * across))
        grid = figure.subplots(down, across, squeeze=False).ravel()
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        for i, (axes, (rows, target)) in enumerate(zip(grid, panels, strict=False)):
            rows = rows[rows["target"] == target]
            dose_curve(axes, rows, along, target, what)
            if along == "k":
                log_k(axes, [int(k) for k in rows["k"]], spacing=0.03 * across)
            axes.set_xlabel(xlabel)
            letter(axes, i, shorten(str(rows["task"].iloc[0]), 24))
            if i == 0:
                legend(axes)
        return figure

    return draw


_MEASURES = {"circuit": "Share of coordinates in common", "probe": "Probe directions, |cosine|"}


def _task_map(tables: Tables) -> Figure:
    frame = tables["task_map"]
    names = list(dict.fromkeys([*levels(frame, "a"), *levels(frame, "b")]))
    measures = levels(frame, "measure")
    side = max(1.6, min(4.5, 0.42 * len(names) + 0.9))
    figure = new_figure(side + 0.4)
    grid = figure.subplots(1, len(measures), squeeze=False)[0]
    for m, measure in enumerate(measures):
        axes = grid[m]
        values = np.full((len(names), len(names)), np.nan)
        texts = [["" for _ in names] for _ in names]
        for row in frame[frame["measure"] == measure].to_dict("records"):
            i, j = names.index(str(row["a"])), names.index(str(row["b"]))
            if i == j:
                continue
            values[i, j] = values[j, i] = row["value"]
            star = "*" if row.get("p_adjusted", row["p"]) <= ALPHA else ""
            chance = "" if len(names) > 5 else f"\nchance {row['chance']:.2f}"
            texts[i][j] = texts[j][i] = f"{row['value']:.2f}{star}{chance}"
        finite = values[np.isfinite(values)]
        heat_cells(axes, values, min(0.0, *finite, 0.0), max(0.2, *finite, 0.2), texts)
        name_axis(axes, names)
        name_rows(axes, names)
        letter(axes, m, _MEASURES.get(measure, measure))
    return figure


def _dynamics(tables: Tables) -> Figure:
    frame = tables["dynamics"].sort_values("step")
    tasks = levels(frame, "task")
    columns = [("accuracy", "accuracy"), ("max_divergence", "largest divergence |Δμ| / σ")]
    if "overlap_with_last" in frame:
        columns.append(("overlap_with_last", "circuit neurons shared with the last"))
    figure = new_figure(2.2 + 0.1 * len(tasks))
    grid = figure.subplots(1, len(columns), squeeze=False)[0]
    for axes, (column, label) in zip(grid, columns, strict=True):
        for i, task in enumerate(tasks):
            rows = of_task(frame, task)
            axes.plot(rows["step"], rows[column], color=color(i), marker=marker(i), label=shorten(task, 20))
            if column == "accuracy":
                band(axes, rows["step"], rows["low"], rows["high"], color(i))
                probe = "full-layer probes" if i == 0 else None
                axes.plot(rows["step"], rows["probe_accuracy"], color=color(i), ls=":", lw=1, label=probe)
        _steps(axes, frame["step"])
        axes.set_ylabel(label)
    for i, (axes, title) in enumerate(zip(grid, ("Accuracy", "Divergence", "Stability of the circuit"), strict=False)):
        letter(axes, i, title)
    legend_below(grid[0])
    return figure


def _steps(axes: Axes, steps: pd.Series) -> None:
    """Training steps along x, logarithmic where they span more than a factor of 30; step 0 then stands at the left end."""
    positive = steps[steps > 0]
    if len(positive) and positive.max() / positive.min() > 30:
        axes.set_xscale("symlog", linthresh=float(positive.min()))
        decades = range(math.ceil(math.log10(positive.min())), math.floor(math.log10(positive.max())) + 1)
        ticks = ([0] if (steps <= 0).any() else []) + [10**d for d in decades]
        axes.set_xticks(ticks, [f"{t:,}" for t in ticks])
    axes.set_xlabel("training step")


def _language(tables: Tables) -> Figure:
    frame = tables["language"]
    tasks = levels(frame, "task")
    across = min(3, len(tasks))
    down = -(-len(tasks) // across)
    figure = new_figure(2.3 * down + 0.15, 7.2 if across > 1 else 3.6)
    grid = figure.subplots(down, across, squeeze=False).ravel()
    for i, task in enumerate(tasks):
        rows = of_task(frame, task)
        names = list(dict.fromkeys([*levels(rows, "train_language"), *levels(rows, "test_language")]))
        matrix = rows.pivot_table(index="train_language", columns="test_language", values="accuracy")
        heat_cells(grid[i], matrix.reindex(index=names, columns=names).to_numpy(float), 0.3, 1.0)
        name_axis(grid[i], names, 8)
        name_rows(grid[i], names)
        grid[i].set_xlabel("tested on")
        grid[i].set_ylabel("fitted on")
        letter(grid[i], i, shorten(task, 24))
    for axes in grid[len(tasks) :]:
        axes.set_axis_off()
    return figure


FIGURES: tuple[TableFigure, ...] = (
    (
        "controls",
        "controls",
        "Controls",
        "Accuracy of each task's circuit beside every control: the full-layer probe (an upper bound), trivial cues that need "
        "no model (squares), and nulls (triangles). The shaded strip is the circuit's 95 % interval; a cue or null inside or "
        "to the right of it explains the circuit's accuracy. The control task (cross) gives each distinct input a random "
        "label and shows what can be learnt by heart. Bars are 95 % intervals, for random neurons and permuted labels the "
        "range of 95 % of the draws.",
        _controls,
    ),
    (
        "ablation",
        "ablation",
        "Circuits switched off",
        "Effect of ablating a circuit's first K neurons in the running model: on a downstream probe, on the model's own "
        "answer, and on the loss on other text. The grey band holds 95 % of random sets matched on layer and size of change; "
        "filled points differ from them at p ≤ 0.05. Effects are lower bounds, since later layers repair.",
        _causal("ablation", "k", "circuit", "neurons switched off, K"),
    ),
    ("kept", "kept", "Circuits kept alone", KEPT_CAPTION, kept),
    (
        "erasure",
        "erasure",
        "The class direction erased",
        "Effect of erasing everything linear about the class (LEACE) from the residual stream after one layer, at the final "
        "token; the grey band holds 95 % of erasures of permuted labels.",
        _causal("erasure", "layer", "class direction", "layer after which it is erased"),
    ),
    (
        "task_map",
        "task_map",
        "Map of tasks",
        "Similarity of every two tasks: chance-corrected overlap of their circuits (chance is 0) and the cosine between their "
        "probe directions, with what permuted labels give. A star marks p ≤ 0.05, corrected for the number of pairs.",
        _task_map,
    ),
    ("answers", "beyond_answers", "Is the answer right?", ANSWERS_CAPTION, beyond_answers),
    ("few_shot", "few_shot", "From few labels", FEW_SHOT_CAPTION, few_shot),
    ("crossed", "crossed_edits", "Two labels, either circuit edited", CROSSED_CAPTION, crossed),
    ("similarity", "similarity", "Likeness of tasks", SIMILARITY_CAPTION, similarity),
    (
        "dynamics",
        "dynamics",
        "When circuits form",
        "Accuracy of the circuit (with 95 % interval) and of the full-layer probe (dotted), the largest divergence, and how "
        "many neurons are already those of the last checkpoint, over training.",
        _dynamics,
    ),
    ("scaling", "scaling", "Circuits over sizes", SCALING_CAPTION, scaling),
    (
        "graded_controls",
        "graded_controls",
        "Controls of graded labels",
        "Share of a graded label's variance that each task's circuit explains on held-out rows, beside every control: a ridge "
        "on a whole layer (an upper bound), trivial cues that need no model (squares; the length is the usual leak), and nulls "
        "(triangles). 0 is the mean of the training rows; what lies below is worse than that. Bars are 95 % intervals, for "
        "random neurons and permuted labels the range of 95 % of the draws.",
        partial(_controls, table="graded_controls", value="r2", said="R², share of variance explained"),
    ),
    ("confusion", "confusion", "What each class is taken for", several.CONFUSION, several.confusion),
    ("each_class", "each_class", "Each class against the rest", several.EACH, several.each_class),
    (
        "language",
        "language",
        "Transfer between languages",
        "Accuracy of a circuit selected and fitted on one language and tested on another; on the diagonal by nested "
        "cross-validation.",
        _language,
    ),
)
