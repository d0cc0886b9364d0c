"""The controls of one task: what a trivial cue, chance, an untrained model or another basis would give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from moescope.circuits.depth import best_layer_correct, layer_probes, probe_correct
from moescope.circuits.features import Features, capture_features
from moescope.circuits.geometry import rotated
from moescope.circuits.nested import nested_cv
from moescope.circuits.pairs import set_accuracy
from moescope.circuits.ranking import layer_matched_sets, random_sets
from moescope.circuits.settings import CircuitSettings
from moescope.circuits.single import TaskFindings
from moescope.errors import InputError
from moescope.models import LoadedModel
from moescope.stats import group_bootstrap, permutation_p, permute_labels
from moescope.tasks import fixed_wrap, matched_subset

Recapture = Callable[[LoadedModel, Any], Features]


def recapture_with(settings: CircuitSettings, like: Features) -> Recapture:
    """A function (model, task) -> Features with the settings and columns of an existing capture."""

    def capture(model: LoadedModel, task: Any) -> Features:
        return capture_features(
            model,
            task,
            like.columns,
            position=settings.position,
            batch_tokens=settings.batch_tokens,
            max_tokens=settings.max_tokens,
            n_folds=settings.n_folds,
            seed=settings.seed,
        )

    return capture


def control_table(
    found: TaskFindings,
    settings: CircuitSettings,
    surface: pd.DataFrame,
    *,
    model: LoadedModel,
    twin: LoadedModel | None,
    step: Callable[[str], None],
) -> pd.DataFrame:
    """One row per control [task, control, accuracy, low, high, note], the circuit itself first.

    Args:
        surface: rows of :func:`moescope.tasks.surface_baselines`.
        twin: a randomly initialised model, or None to leave it out.
        step: called with the name of each part as it begins (for progress).
    """
    features, seed, k = found.features, settings.seed, settings.k
    rows: list[dict[str, Any]] = []

    def add(control: str, correct: np.ndarray, groups: np.ndarray, note: str = "") -> None:
        low, high = group_bootstrap(correct, groups, seed=seed)
        rows.append({"control": control, "accuracy": float(correct.mean()), "low": low, "high": high, "note": note})

    position = found.cv.ks.index(k)
    groups = features.groups
    add("circuit", found.cv.correct[position], groups, f"top {k} neurons, selection {settings.selection}")
    if settings.selection == "nested":
        add("circuit_global", found.cv_other.correct[position], groups, "published protocol: optimistic")
    else:
        add("circuit_nested", found.cv_other.correct[position], groups, "selection inside the training folds")
    best, chosen = best_layer_correct(found.hits, features.folds)
    layers = sorted({features.columns.sites[i].layer for i in chosen})
    add("full_layer_probe", best, groups, f"logistic regression on a whole layer (layer {_listed(layers)} by the other folds)")
    step("embedding layer")
    add("embedding_layer", probe_correct(features.embed, features.y, features.folds), groups, "before any layer")
    rows += [dict(row) | {"note": row.get("note", "") or ""} for row in surface.to_dict("records")]

    step("random circuits")
    rng = np.random.default_rng(seed)
    columns = features.columns
    for control, sets in (
        ("random_circuit", random_sets(rng, columns.n, k, settings.n_random)),
        ("layer_matched_circuit", layer_matched_sets(rng, found.ranking[:k], columns.layer_of, k, settings.n_random)),
    ):
        values = np.asarray([set_accuracy(features, chosen_set) for chosen_set in sets])
        rows.append(
            {
                "control": control,
                "accuracy": float(values.mean()),
                "low": float(np.quantile(values, 0.025)),
                "high": float(np.quantile(values, 0.975)),
                "note": f"{len(values)} sets of {k}; the range of 95 % of them",
            }
        )
    step("permuted labels")
    rows += _permuted_labels(found, settings, position)

    step("rotated basis")
    # Several rotations: one draw of a basis is itself random.
    turned = [_nested(features, rotated(features.x, columns, seed + i), settings) for i in range(3)]
    add("rotated_basis", np.mean(turned, axis=0), groups, "mean over 3 random rotations of each site")
    if found.massive.any():
        kept = nested_cv(
            features.x,
            features.y,
            features.folds,
            (k,),
            sigma=settings.sigma,
            classifier=settings.classifier,
            allowed=~found.massive,
            sums=found.sums,
        ).correct[0]
        add("without_massive", kept, groups, f"{int(found.massive.sum())} massive neurons left out")

    recapture = recapture_with(settings, features)
    step("surface-matched subset")
    rows += _matched(found, settings)
    step("fixed template")
    wrapped = recapture(model, fixed_wrap(features.task))
    add("fixed_template", _nested(wrapped, wrapped.x, settings), wrapped.groups, "same closing words after every text")
    if twin is not None:
        step("randomly initialised twin")
        untrained = recapture(twin, features.task)
        note = "same architecture, random weights"
        add("random_twin_circuit", _nested(untrained, untrained.x, settings), groups, note)
        add("random_twin_probe", best_layer_correct(layer_probes(untrained), untrained.folds)[0], groups, note)
    table = pd.DataFrame(rows)
    table.insert(0, "task", features.task.name)
    return table[["task", "control", "accuracy", "low", "high", "note"]]


def _nested(features: Features, x: np.ndarray, settings: CircuitSettings) -> np.ndarray:
    result = nested_cv(x, features.y, features.folds, (settings.k,), sigma=settings.sigma, classifier=settings.classifier)
    return np.asarray(result.correct[0])


def _permuted_labels(found: TaskFindings, settings: CircuitSettings, position: int) -> list[dict[str, Any]]:
    """The control task: the whole nested procedure on labels permuted by group; its mean, range and the circuit's p."""
    if settings.n_label_permutations == 0:
        return []
    features = found.features
    rng = np.random.default_rng(settings.seed)
    null = []
    for _ in range(settings.n_label_permutations):
        y = permute_labels(features.y, features.groups, rng)
        result = nested_cv(features.x, y, features.folds, (settings.k,), sigma=settings.sigma)
        null.append(float(result.correct[0].mean()))
    values = np.asarray(null)
    p = permutation_p(float(found.cv.correct[position].mean()), values)
    return [
        {
            "control": "control_task",
            "accuracy": float(values.mean()),
            "low": float(np.quantile(values, 0.025)),
            "high": float(np.quantile(values, 0.975)),
            "note": f"{len(values)} label permutations; circuit p = {p:.3g}",
        }
    ]


def _matched(found: TaskFindings, settings: CircuitSettings) -> list[dict[str, Any]]:
    features = found.features
    rows = np.asarray(matched_subset(features.task, seed=settings.seed))
    try:
        part = features.subset(rows, n_folds=settings.n_folds, seed=settings.seed)
    except InputError:
        # Too few rows are alike on the surface: that is itself the finding.
        return []
    correct = _nested(part, part.x, settings)
    low, high = group_bootstrap(correct, part.groups, seed=settings.seed)
    note = f"{len(rows)} rows balanced on length and final full stop"
    return [{"control": "matched_subset", "accuracy": float(correct.mean()), "low": low, "high": high, "note": note}]


def _listed(layers: list[int]) -> str:
    return " or ".join(map(str, layers))
