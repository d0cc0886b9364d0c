"""The controls of one task: what a trivial cue, chance, an untrained model or another basis would give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from moescope.errors import InputError
from moescope.select.ranking import layer_matched_sets, random_sets
from moescope.stats import group_bootstrap, paired_bootstrap_difference, permutation_p, permute_labels
from moescope.studies.circuits.control_task import control_labels
from moescope.studies.circuits.depth import best_layer_correct, layer_probes, probe_correct
from moescope.studies.circuits.features import Features, own_cv
from moescope.studies.circuits.geometry import rotated, rotations
from moescope.studies.circuits.pairs import set_hits
from moescope.studies.circuits.reread import Reread
from moescope.studies.circuits.settings import CircuitSettings
from moescope.studies.circuits.single import TaskFindings
from moescope.study.protocol import Context
from moescope.tasks import matched_subset

SURFACE = "surface: "
MAJORITY = "majority class"
SAMPLED = "circuit_on_sample"
N_ROTATIONS = 3
N_CONTROL_TASKS = 10
STEPS = (
    "random circuits",
    "permuted labels",
    "rotated basis",
    "surface-matched subset",
    "fixed template",
    "randomly initialised twin",
)


def control_table(
    found: TaskFindings,
    settings: CircuitSettings,
    surface: pd.DataFrame,
    *,
    tokenizer: Any,
    read: Reread,
    context: Context,
    step: Callable[[str], None],
) -> pd.DataFrame:
    """Table ``controls`` of one task.

    Args:
        surface: rows of :func:`moescope.tasks.surface_baselines`.
        read: the template and the twin. Where they were read on a sample of the rows, the circuit found and tested on
            this sample alone has a row of its own, ``SAMPLED``, and their gaps are to it.
        context: takes the proof that each control differs from what it controls.
        step: called with the name of each of ``STEPS`` as it begins (for progress).
    """
    features, k = found.features, settings.k
    circuit = found.circuit_hits(k)
    rows: list[dict[str, Any]] = []

    def add(control: str, correct: np.ndarray, note: str = "") -> None:
        """A control on the circuit's own rows."""
        gap = paired_bootstrap_difference(circuit, correct, features.groups, seed=features.seed)
        same = {} if control == "circuit" else {"gap": gap.value, "gap_low": gap.low, "gap_high": gap.high, "p": gap.p}
        rows.append(_row(control, correct, features, note) | same)

    add("circuit", circuit, f"top {k} neurons, selection {settings.selection}")
    other = found.cv_other.correct[found.cv_other.ks.index(k)]
    if settings.selection == "nested":
        add("circuit_global", other, "selected on all rows, as published: optimistic")
    else:
        add("circuit_nested", other, "selected inside the training folds")
    best, chosen = best_layer_correct(found.hits, features.folds)
    layers = " or ".join(map(str, sorted({features.columns.sites[i].layer for i in chosen})))
    add("full_layer_probe", best, f"logistic regression on a whole layer (layer {layers}, chosen by the other folds)")
    add("embedding_layer", probe_correct(features.embed, features.y, features.folds), "before any layer")
    for line in surface.to_dict("records"):
        name = MAJORITY if line["control"] == MAJORITY else SURFACE + str(line["control"])
        rows.append({"control": name, "accuracy": line["accuracy"], "low": line["low"], "high": line["high"], "note": ""})

    def add_read(control: str, correct: np.ndarray, note: str) -> None:
        """A control on the rows that were read anew, beside the circuit found on these rows alone."""
        gap = paired_bootstrap_difference(own, correct, read.own.groups, seed=features.seed)
        same = {"gap": gap.value, "gap_low": gap.low, "gap_high": gap.high, "p": gap.p}
        row = _row(control, correct, read.own, note) | same
        if read.sampled:
            row["note"] += f"; {read.note}: ± {(row['high'] - row['low']) / 2:.1%}; the gap is that of {SAMPLED}"
        rows.append(row)

    step("random circuits")
    rng = np.random.default_rng(features.seed)
    columns = features.columns
    for control, sets in (
        ("random_circuit", random_sets(rng, columns.n, k, settings.n_random)),
        ("layer_matched_circuit", layer_matched_sets(rng, found.ranking[:k], columns.layer_of, k, settings.n_random)),
    ):
        own_set = set(found.ranking[:k].tolist())
        others = sum(set(members.tolist()) != own_set for members in sets)
        context.control(
            f"{features.task.name}: {control}",
            differs=others > 0,
            evidence=f"{others} of {len(sets)} sets are other neurons than the circuit's",
        )
        values = np.asarray([set_hits(features, members, settings).mean() for members in sets])
        rows.append(_draws(control, values, f"{len(values)} sets of {k}; the range of 95 % of them"))
    step("permuted labels")
    rows += _permuted_labels(found, settings, context)
    rows += _control_task(found, settings, tokenizer, context)

    step("rotated basis")
    # Several rotations: one draw of a basis is itself random.
    turned = []
    for i in range(N_ROTATIONS):
        bases = rotations(columns, features.seed + i)
        x = rotated(features.x, columns, bases)
        # a basis vector that is a neuron has a weight of one on it; a site of one neuron has no other basis
        kept = max(float(np.square(basis).max(0).mean()) for basis in bases.values())
        context.control(
            f"{features.task.name}: rotated basis {i + 1}",
            differs=bool(max(bases) == 1 or (kept < 0.99 and (x != features.x).any())),
            evidence=f"a rotated coordinate holds {kept:.1%} of its nearest neuron on average",
        )
        turned.append(_nested(features, x, settings))
    add("rotated_basis", np.mean(turned, axis=0), f"mean over {N_ROTATIONS} random rotations of each site")
    n_massive = int(found.massive.sum())
    lighter = own_cv(features, settings, allowed=~found.massive, sums=found.sums).correct[0]
    add("without_massive", lighter, f"{n_massive} massive neurons left out" if n_massive else "no neuron is massive here")

    step("surface-matched subset")
    rows.append(_matched(found, settings))
    step("fixed template")
    own = circuit
    if read.sampled:
        own = _nested(read.own, read.own.x, settings)
        rows.append(_row(SAMPLED, own, read.own, f"found and tested {read.note}: for the gaps below"))
    add_read("fixed_template", _nested(read.template, read.template.x, settings), "same closing words after every text")
    step("randomly initialised twin")
    if read.twin is not None:
        note = "same architecture and tokenizer, random weights"
        add_read("random_twin_circuit", _nested(read.twin, read.twin.x, settings), note)
        add_read("random_twin_probe", best_layer_correct(layer_probes(read.twin), read.twin.folds)[0], note)
    table = pd.DataFrame(rows, columns=["control", "accuracy", "low", "high", "gap", "gap_low", "gap_high", "p", "note"])
    table.insert(0, "task", features.task.name)
    return table


def _row(control: str, correct: np.ndarray, features: Features, note: str) -> dict[str, Any]:
    low, high = group_bootstrap(correct, features.groups, seed=features.seed)
    return {"control": control, "accuracy": float(correct.mean()), "low": low, "high": high, "note": note}


def _draws(control: str, values: np.ndarray, note: str) -> dict[str, Any]:
    low, high = np.quantile(values, [0.025, 0.975])
    return {"control": control, "accuracy": float(values.mean()), "low": float(low), "high": float(high), "note": note}


def _nested(features: Features, x: np.ndarray, settings: CircuitSettings, y: np.ndarray | None = None) -> np.ndarray:
    """Held-out hits by the study's own protocol on other activations or other labels."""
    return np.asarray(own_cv(features, settings, X=x, y=features.y if y is None else y).correct[0])


def _permuted_labels(found: TaskFindings, settings: CircuitSettings, context: Context) -> list[dict[str, Any]]:
    """The whole procedure, selection included, on labels permuted within groups: its mean, range and the circuit's p."""
    if settings.n_label_permutations == 0:
        return []
    features = found.features
    rng = np.random.default_rng(features.seed)
    draws = [permute_labels(features.y, features.groups, rng) for _ in range(settings.n_label_permutations)]
    moved = float(np.mean([(y != features.y).mean() for y in draws]))
    context.control(
        f"{features.task.name}: permuted labels",
        differs=moved > 0 and all(_keep_groups(features.y, y, features.groups) for y in draws),
        evidence=f"{moved:.1%} of the labels moved on average; every group keeps its kind",
    )
    values = np.asarray([_nested(features, features.x, settings, y).mean() for y in draws])
    p = float(permutation_p(float(found.circuit_hits(settings.k).mean()) - 1e-9, values))
    return [_draws("permuted_labels", values, f"{len(values)} label permutations, the range of 95 % of them") | {"p": p}]


def _keep_groups(y: np.ndarray, permuted: np.ndarray, groups: np.ndarray) -> bool:
    """Whether groups of several classes keep their labels among themselves, and groups of one class one class."""
    code, classes = np.unique(groups, return_inverse=True)[1], int(y.max()) + 1
    before, after = (np.bincount(code * classes + labels, minlength=(code.max() + 1) * classes) for labels in (y, permuted))
    before, after = before.reshape(-1, classes), after.reshape(-1, classes)
    mixed = (before > 0).sum(1) > 1
    return bool((before[mixed] == after[mixed]).all() and ((after[~mixed] > 0).sum(1) == 1).all())


def _control_task(found: TaskFindings, settings: CircuitSettings, tokenizer: Any, context: Context) -> list[dict[str, Any]]:
    """Selectivity (Hewitt and Liang 2019): the same procedure on random labels that are a function of the input."""
    features = found.features
    rng = np.random.default_rng(features.seed)
    gains, values, moved = [], [], []
    for _ in range(N_CONTROL_TASKS):
        y, n_types = control_labels(features, tokenizer, settings.position, rng)
        moved.append(float((y != features.y).mean()))
        try:
            correct = _nested(features, features.x, settings, y)
        except InputError:  # a fold trains on one class only: the texts have too few kinds of input for this control
            return []
        values.append(float(correct.mean()))
        gains.append(values[-1] - np.bincount(y).max() / len(y))
    context.control(
        f"{features.task.name}: control task", differs=max(moved) > 0, evidence=f"{np.mean(moved):.1%} of the labels are others"
    )
    own = float(found.circuit_hits(settings.k).mean()) - np.bincount(features.y).max() / len(features.y)
    note = (
        f"a random label for each of {n_types} inputs (final token, or text), {N_CONTROL_TASKS} draws: "
        f"{np.mean(gains):+.1%} over their majority, the circuit {own:+.1%}; selectivity {own - np.mean(gains):+.1%}"
    )
    return [_draws("control_task", np.asarray(values), note)]


def _matched(found: TaskFindings, settings: CircuitSettings) -> dict[str, Any]:
    features = found.features
    rows = np.asarray(matched_subset(features.task, seed=features.seed))
    note = f"{len(rows)} rows balanced on length and final full stop"
    try:
        part = features.subset(rows, n_folds=settings.n_folds)
        correct = _nested(part, part.x, settings)
    except InputError:
        # Too few rows of different classes are alike on the surface: a finding in itself, so it keeps its row.
        nothing = float("nan")
        return {"control": "matched_subset", "accuracy": nothing, "low": nothing, "high": nothing, "note": f"only {note}"}
    return _row("matched_subset", correct, part, note)
