"""The first study, whole: from a model and labelled tasks to circuits, their controls, and claims with verdicts."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from moescope.capture.record import Recorded
from moescope.errors import InputError
from moescope.models import LoadedModel, random_twin
from moescope.studies.circuits.answers import answer_tables, labelled
from moescope.studies.circuits.causal_run import causal_sites, causal_tables
from moescope.studies.circuits.claims import circuit_claims
from moescope.studies.circuits.claims_answers import answer_claims
from moescope.studies.circuits.claims_causal import ablation_claims, erasure_claims
from moescope.studies.circuits.claims_graded import graded_claims
from moescope.studies.circuits.claims_keep import kept_claims
from moescope.studies.circuits.claims_paths import path_claims
from moescope.studies.circuits.each_task import across_tasks, check_sizes, of_task
from moescope.studies.circuits.examples import example_tables
from moescope.studies.circuits.features import Features, capture_features, columns_of
from moescope.studies.circuits.graded import GradedFindings
from moescope.studies.circuits.halves import halved
from moescope.studies.circuits.images import edited_at, edited_where, placed
from moescope.studies.circuits.keep_run import kept_tables
from moescope.studies.circuits.paths import path_table
from moescope.studies.circuits.recorded import study_recorded
from moescope.studies.circuits.related.claims_crossed import crossed_claims
from moescope.studies.circuits.related.claims_few_shot import few_shot_claims
from moescope.studies.circuits.related.claims_similarity import similarity_claims
from moescope.studies.circuits.related.crossed_run import crossed_tables, read_crossed
from moescope.studies.circuits.related.few_shot import few_shot_tables, learn, refuse_known
from moescope.studies.circuits.reread import Reread, prove_reread, reread
from moescope.studies.circuits.settings import CircuitSettings
from moescope.studies.circuits.single import TaskFindings
from moescope.study.protocol import Context, ModelLike, TasksLike
from moescope.study.repeat import verb
from moescope.study.result import StudyResult
from moescope.study.rows import FoldRows
from moescope.study.run import Run
from moescope.tasks import split_half
from moescope.tasks.kinds import KINDS
from moescope.tasks.questions import Questions
from moescope.types import Task

_SETTINGS, _RUN = CircuitSettings(), Run()


@verb
def circuits(
    model: ModelLike | Recorded, tasks: TasksLike, settings: CircuitSettings = _SETTINGS, *, run: Run = _RUN
) -> StudyResult:
    """Find the neurons that carry each task, and test them against what chance and trivial cues give.

    Implements Choi (2025), "Hidden Mixture-of-Experts", with the controls that it lacks.

    Args:
        model: or what :func:`moescope.record` recorded of any module of any torch model: then nothing is read.
        tasks: at least one; of what was recorded by name the labels of its documents, or tasks whose row i is document i.

    Returns:
        A result of kind ``"circuits"``, with the circuit of each task. ``meta["forward_tokens"]`` says what was read: for
        the study itself, by each control that reads texts anew, and under interventions, beside one bare pass; ``batching`` is
        what it cost to see whether texts may share a batch.

    Raises:
        InputError: when the input cannot be used; the message is one line.

    >>> import moescope
    >>> result = moescope.circuits("dense-tiny", ["certainty=halueval"])  # doctest: +SKIP
    >>> result.circuits["certainty"].neurons  # doctest: +SKIP
    """
    context = Context("circuits", settings, run, of=CircuitSettings, spread=not isinstance(model, Recorded), images=True)
    if isinstance(model, Recorded):
        return study_recorded(context, model, tasks, settings)
    further = context.tasks(settings.few_shot) if settings.few_shot is not None else []
    loaded_tasks = context.tasks(tasks, takes=tuple(KINDS))
    _check_kinds(loaded_tasks, settings)
    for task in further:
        refuse_known(task, loaded_tasks)
    crossed = read_crossed(settings, context)
    asks = any(isinstance(task, Questions) for task in loaded_tasks)
    loaded = context.load(model, head=asks or settings.intervenes, required=asks)
    settings = context.settings = placed(loaded, settings, context)
    columns = columns_of(loaded, settings.site)
    check_sizes(columns, settings)
    loaded_tasks = [labelled(loaded, task, settings, context) for task in loaded_tasks]
    context.tokens.add("batching", loaded.batching.tokens)
    # What the interventions need of the untouched model is read in the same pass.
    final = causal_sites(loaded, columns) if settings.intervenes else ()
    limits: dict[str, Any] = {"batch_tokens": run.batch_tokens, "max_tokens": run.max_tokens}
    features: dict[str, Features] = {}
    for task in loaded_tasks:
        name = f"{task.name}: reading activations"
        with_final: dict[str, Any] = {"final": final, "progress": context.counter(name), **limits}

        def reading(task: Task = task, more: dict[str, Any] = with_final) -> Features:
            with context.tokens.of(loaded, "main"):
                return capture_features(loaded, task, columns, settings, seed=run.seed, at=edited_at(loaded, settings), **more)

        here = features[task.name] = context.stage(name, reading, task=task, columns=columns)
        if isinstance(here.x, np.memmap):
            context.note(f"{task.name}: activations were kept in a temporary file, for memory had no room for them")
        who = "circuit" if settings.selection == "nested" else "circuit, its neurons selected on all rows as published"
        context.rows(FoldRows(f"{task.name}: {who}", here.groups, here.folds))
    twin = cache(lambda: random_twin(loaded, run.seed) if settings.twin else None)
    every: dict[str, TaskFindings | GradedFindings] = {}
    parts: dict[str, list[pd.DataFrame]] = {}
    for here in features.values():
        every[here.task.name], own = _of_model(context, here, settings, loaded, twin, limits)
        for name, frame in own.items():
            parts.setdefault(name, []).append(frame)
    tables = {name: pd.concat(frames, ignore_index=True) for name, frames in parts.items()}
    # tasks of words with tasks of texts, but not with graded ones: a circuit that sorts has no other's labels to sort
    found = {name: one for name, one in every.items() if isinstance(one, TaskFindings)}
    if found:
        tables |= context.stage("comparing tasks", lambda: across_tasks(found, settings, context))
    for task in further:
        tables |= _few_shot(context, task, list(found.values()), settings, loaded, limits)
    if crossed is not None:
        tables |= crossed_tables(loaded, crossed, columns, settings, context, limits)
    halves = [halved(loaded, here, settings, context) for here in features.values()] if settings.intervenes else []
    if settings.ablate is not None:
        tables |= causal_tables(loaded, halves, settings, context)
    if settings.keep_only is not None:
        tables |= kept_tables(loaded, halves, settings, context)
    if settings.paths is not None:
        paths = context.stage("following paths", lambda: path_table(loaded, halves, settings, context))
        tables |= {"paths": paths} if len(paths) else {}
    claims, where = circuit_claims(found, tables, settings), edited_where(loaded, settings)
    if "answers" in tables:
        claims += answer_claims(tables["answers"], tables["beyond_answers"], settings)
    for graded in every.values():
        if isinstance(graded, GradedFindings):
            claims += graded_claims(graded.features.task.name, graded, tables, settings)
    if "similarity" in tables:
        claims += similarity_claims(tables["similarity"], tables["similarity_regression"], settings)
    if "few_shot_area" in tables:
        claims += few_shot_claims(tables["few_shot_area"], settings)
    if crossed is not None:
        claims += crossed_claims(tables["crossed_strata"], tables["crossed_edits"], settings)
    if settings.ablate is not None:
        claims += [*ablation_claims(tables, settings, where), *erasure_claims(tables["erasure"], settings)]
    if settings.keep_only is not None:
        claims += kept_claims(tables, settings, where)
    if settings.paths is not None:
        claims += path_claims(tables.get("paths", pd.DataFrame()), list(found), settings)
    bare = sum(int(here.encoded.lengths.sum()) for here in features.values() if here.encoded is not None)
    return context.result(
        model=loaded,
        tasks=[*loaded_tasks, *further, *([crossed.cells] if crossed is not None else [])],
        title=f"Task circuits of {loaded.name}",
        claims=claims,
        tables=tables,
        circuits={name: one.circuit for name, one in every.items()},
        forward_tokens={"bare": bare, **context.tokens.totals()},
    )


def _of_model(
    context: Context,
    here: Features,
    settings: CircuitSettings,
    model: LoadedModel,
    twin: Callable[[], LoadedModel | None],
    limits: dict[str, Any],
) -> tuple[TaskFindings | GradedFindings, dict[str, pd.DataFrame]]:
    """What is found on one task in a model that runs, and the tables of it and of its controls."""
    name = here.task.name

    def read_anew() -> Reread:
        read = reread(here, settings, model=model, twin=twin(), tokens=context.tokens, **limits)
        if read.sampled:
            context.rows(FoldRows(f"{name}: controls read anew", read.own.groups, read.own.folds))
        prove_reread(context, read, model, twin())
        return read

    how: dict[str, Any] = {"tokenizer": model.tokenizer, "n_layers": model.n_layers, "read_anew": read_anew}
    found, tables = of_task(context, here, settings, **how)
    if isinstance(found, GradedFindings):
        return found, tables
    answers = context.stage(f"{name}: answers", lambda: answer_tables(found, settings, context), features=here, task=here.task)
    return found, {**tables, **answers, **_examples(context, found, settings, model)}


def _few_shot(
    context: Context,
    task: Task,
    found: list[TaskFindings],
    settings: CircuitSettings,
    model: LoadedModel,
    limits: dict[str, Any],
) -> dict[str, pd.DataFrame]:
    """A further task learnt from few labels on the neurons that are found already."""
    seed = context.run.seed
    groups = np.array([e.group for e in task.examples])
    half = split_half([e.label for e in task.examples], groups, seed).astype(np.int64)
    rows = context.rows(FoldRows(f"{task.name}: from few labels", groups, half))

    def tables() -> dict[str, pd.DataFrame]:
        with context.tokens.of(model, "few shot"):
            new = capture_features(model, task, found[0].features.columns, settings, seed=seed, folds=rows.folds, **limits)
        return few_shot_tables(learn(new, found, settings))

    return context.stage(f"{task.name}: learning from few labels", tables)


def _examples(context: Context, found: TaskFindings, settings: CircuitSettings, model: LoadedModel) -> dict[str, pd.DataFrame]:
    def read() -> dict[str, pd.DataFrame]:
        with context.tokens.of(model, "examples"):
            return example_tables(found, model, settings)

    return context.stage(f"{found.features.task.name}: examples", read) if settings.examples else {}


def _check_kinds(tasks: list[Task], settings: CircuitSettings) -> None:
    """That nothing is asked of a task that its kind of labels does not have."""
    if settings.few_shot is not None and all(task.kind == "graded" for task in tasks):
        raise InputError("needs the circuit of a task of classes, whose neurons are read", "few_shot")
    for task in tasks:
        if isinstance(task, Questions) and settings.position != "final":
            raise InputError(f"{task.name!r} says itself where it is read (at=question, at=answer); leave it out", "position")
        for option in ("ablate", "keep_only", "paths"):
            if task.kind not in ("classes", "answers") and getattr(settings, option) is not None:
                raise InputError(f"{task.name!r} has {KINDS[task.kind].said}; an intervention needs classes of texts", option)
        if task.kind == "tokens" and settings.position != "final":
            raise InputError(f"{task.name!r} has labels for words, each read at its last token; leave it out", "position")
