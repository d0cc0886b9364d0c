"""The first study, whole: from a model and labelled tasks to circuits, their controls, and claims with verdicts."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import pandas as pd

from moescope.errors import InputError
from moescope.models import LoadedModel, load, random_twin
from moescope.models.forward_tokens import ForwardTokens
from moescope.studies.circuits.causal_run import AblationSettings, causal_sites, causal_tables
from moescope.studies.circuits.causal_verdicts import ablation_claims, erasure_claims
from moescope.studies.circuits.controls import STEPS, control_table
from moescope.studies.circuits.features import Features, capture_features, columns_of
from moescope.studies.circuits.language import language_rows
from moescope.studies.circuits.pairs import cross_task_rows, native_row, overlap_rows, task_map_rows
from moescope.studies.circuits.reread import reread
from moescope.studies.circuits.settings import CircuitSettings
from moescope.studies.circuits.single import TaskFindings, analyse, overlap_ks
from moescope.studies.circuits.verdicts import circuit_claims
from moescope.study.provenance import provenance
from moescope.study.result import StudyResult
from moescope.tasks import load_task, surface_baselines
from moescope.types import Task

Report = Callable[[str, int, int], None]


def circuits(
    model: str | LoadedModel,
    tasks: Sequence[Task | str],
    *,
    settings: CircuitSettings | None = None,
    ablate: AblationSettings | Literal["mean", "resample", "zero", "patch"] | None = None,
    report: Report | None = None,
    **options: Any,
) -> StudyResult:
    """Find the neurons that carry each task, and test them against what chance and trivial cues give.

    Implements Choi (2025), "Hidden Mixture-of-Experts", with the controls that it lacks.

    Args:
        model: Hub id, local folder, embedded name, or a loaded model.
        tasks: at least one task, or task specification (``"certainty=halueval"``); names must differ.
        settings: see :class:`CircuitSettings`; or give its fields as keyword options.
        ablate: also switch the circuits off inside the running model (mean ablation by default).
        report: called with (stage, done, total) for progress.

    Returns:
        A :class:`moescope.study.result.StudyResult` of kind ``"circuits"``.

    Raises:
        InputError: when the input cannot be used; the message is one line.
    """
    settings = dataclasses.replace(settings or CircuitSettings(), **options)
    if isinstance(ablate, str):
        ablate = AblationSettings(mode=ablate)
    began = time.time()
    loaded_tasks = _tasks(tasks, settings.seed)
    loaded = load(model, head=ablate is not None) if isinstance(model, str) else model
    tell = _Stages(report)
    columns = columns_of(loaded, settings.site)
    if settings.k > columns.n or max(settings.ks) > columns.n:
        size = max(settings.k, *settings.ks)
        raise InputError(
            f"--ks: K = {size} is larger than the {columns.n} neurons of site {settings.site!r}; choose a smaller K"
        )
    if 2 * settings.k > min(columns.widths):
        raise InputError(
            f"--k: K = {settings.k} is over half of the {min(columns.widths)} neurons of a layer at site {settings.site!r}, "
            "too many to match with random neurons of the same layer; choose a smaller K"
        )
    tokens = ForwardTokens()
    # What the interventions need of the untouched model is read in the same pass.
    final = causal_sites(loaded, columns) if ablate is not None else ()
    limits: dict[str, Any] = {"batch_tokens": settings.batch_tokens, "max_tokens": settings.max_tokens}
    features: dict[str, Features] = {}
    for task in loaded_tasks:
        reading = tell.counter(f"{task.name}: reading activations")
        with tokens.of(loaded, "main"):
            here = capture_features(loaded, task, columns, settings, final=final, progress=reading, **limits)
        features[task.name] = here
    twin = random_twin(loaded, settings.seed) if settings.twin else None
    found: dict[str, TaskFindings] = {}
    parts: dict[str, list[pd.DataFrame]] = {}
    for task in loaded_tasks:
        stage, steps = f"{task.name}: circuit and controls", 3 + STEPS
        tell(stage, 0, steps)
        here = features[task.name]
        surface = surface_baselines(task, here.folds, tokenizer=loaded.tokenizer)
        found[task.name] = analyse(here, settings, surface=float(surface["accuracy"].max()), n_layers=loaded.n_layers)
        tell(stage, 3, steps)
        read = reread(here, settings, model=loaded, twin=twin, tokens=tokens, **limits)
        controls = control_table(
            found[task.name], settings, surface, tokenizer=loaded.tokenizer, read=read, step=tell.steps(stage, 3, steps)
        )
        for name, table in {**found[task.name].tables, "controls": controls}.items():
            parts.setdefault(name, []).append(table)
    tables = {name: pd.concat(frames, ignore_index=True) for name, frames in parts.items()}
    tables |= _across_tasks(found, settings, tell)
    languages = [row for task in found.values() for row in language_rows(task.features, settings)]
    if languages:
        tables["language"] = pd.DataFrame(languages)
    claims = circuit_claims(found, tables, settings)
    if ablate is not None:
        tables |= causal_tables(loaded, features, settings, ablate, tokens, tell.counter)
        claims += ablation_claims(tables["ablation"], settings) + erasure_claims(tables["erasure"])
    meta = provenance(loaded, loaded_tasks, seed=settings.seed, settings=dataclasses.asdict(settings))
    meta["title"] = f"Task circuits of {loaded.name}"
    meta["seconds"] = round(time.time() - began, 1)
    bare = sum(int(here.encoded.lengths.sum()) for here in features.values() if here.encoded is not None)
    meta["forward_tokens"] = {"bare": bare, **tokens.totals()}
    if ablate is not None:
        meta["ablation"] = dataclasses.asdict(ablate)
    tell.finish()
    return StudyResult("circuits", meta, tuple(claims), {name: f.circuit for name, f in found.items()}, tables)


class _Stages:
    """Hands (stage, done, total) on to the caller's progress function, if there is one."""

    def __init__(self, report: Report | None) -> None:
        self._report = report

    def __call__(self, stage: str, done: int, total: int) -> None:
        if self._report is not None:
            self._report(stage, done, total)

    def counter(self, stage: str) -> Callable[[int, int], None]:
        return lambda done, total: self(stage, done, total)

    def steps(self, stage: str, first: int, total: int) -> Callable[[str], None]:
        done = iter(range(first, total))
        return lambda _name: self(stage, next(done, total), total)

    def finish(self) -> None:
        self("done", 1, 1)


def _tasks(tasks: Sequence[Task | str], seed: int) -> list[Task]:
    loaded = [load_task(task, seed=seed) if isinstance(task, str) else task for task in tasks]
    if not loaded:
        raise InputError("--task: at least one task is needed, e.g. --task certainty=halueval")
    names = [task.name for task in loaded]
    double = next((name for name in names if names.count(name) > 1), None)
    if double:
        raise InputError(f"--task: two tasks are called {double!r}; name them apart, e.g. --task {double}2=SOURCE")
    return loaded


def _across_tasks(found: dict[str, TaskFindings], settings: CircuitSettings, tell: _Stages) -> dict[str, pd.DataFrame]:
    names = list(found)
    if len(names) < 2:
        return {}
    stage, total = "comparing tasks", len(names) ** 2
    cross: list[dict[str, Any]] = []
    overlap: list[dict[str, Any]] = []
    ks = overlap_ks(settings, found[names[0]].features.columns.n)
    for i, a in enumerate(names):
        for j, b in enumerate(names):
            tell(stage, i * len(names) + j, total)
            if i < j:
                overlap += overlap_rows(found[a], found[b], ks)
            cross += [native_row(found[a], settings)] if i == j else cross_task_rows(found[a], found[b], settings)
    return {
        "overlap": pd.DataFrame(overlap),
        "cross_task": pd.DataFrame(cross),
        "task_map": pd.DataFrame(task_map_rows(list(found.values()), settings)),
    }
