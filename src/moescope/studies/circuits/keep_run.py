"""Circuits kept alone, for all tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import pandas as pd

from moescope.intervene.together import run_together
from moescope.models import LoadedModel
from moescope.studies.circuits.halves import Halved
from moescope.studies.circuits.keep import KeepMode, KeptCircuit, importance_of
from moescope.studies.circuits.keep_tables import kept_rows
from moescope.studies.circuits.settings import CircuitSettings
from moescope.study.protocol import Context

DESCRIBED = 19
"""Random orders beside what is described and not judged: the other way of replacing."""


def kept_tables(
    model: LoadedModel, halves: Sequence[Halved], settings: CircuitSettings, context: Context
) -> dict[str, pd.DataFrame]:
    """The tables ``kept`` and ``kept_area``: circuits are ranked on one half of the groups and kept alone on the other."""
    sizes: list[dict[str, Any]] = []
    areas: list[dict[str, Any]] = []
    for task in halves:
        for rows, found in zip((sizes, areas), _of_task(model, task, settings, context), strict=True):
            rows += found
    return {"kept": pd.DataFrame(sizes), "kept_area": pd.DataFrame(areas)}


def _of_task(
    model: LoadedModel, task: Halved, settings: CircuitSettings, context: Context
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    trial, run, name = task.trial, context.run, f"{task.name}: keeping the circuit alone"
    limits: dict[str, Any] = {"seed": run.seed, "batch_tokens": run.batch_tokens}

    def importance() -> np.ndarray:
        with context.tokens.of(model, "attribution"):
            return importance_of(task, texts=settings.ablate_rows, **limits)

    found = context.stage(f"{task.name}: gradients", importance)
    kept = []
    for mode in get_args(KeepMode):
        n_random = settings.keep_random if mode == settings.keep_only else min(DESCRIBED, settings.keep_random)
        kept.append(KeptCircuit(model, task, found, k=settings.k, mode=mode, n_random=n_random, seed=run.seed))
    context.control(f"{task.name}: random neurons kept", **kept[0].proof(settings.k))

    def scores() -> list[dict[str, np.ndarray]]:
        with context.tokens.of(model, "kept"):
            replicas = trial.replicas(batch_tokens=run.batch_tokens)
            return run_together(replicas, [one.sets for one in kept], trial.readout, context.counter(name))

    sizes: list[dict[str, Any]] = []
    areas: list[dict[str, Any]] = []
    for one, measured in zip(kept, context.stage(name, scores), strict=True):
        for target, curve in one.curves(measured).items():
            for rows, more in zip(
                (sizes, areas), kept_rows(task.name, one, target, curve, trial.groups, seed=run.seed), strict=True
            ):
                rows += more
    return sizes, areas
