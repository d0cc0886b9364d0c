"""The causal part of the study: circuits switched off and class directions erased, for all tasks in shared passes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from moescope.capture.activations import read_into
from moescope.capture.encode import encode
from moescope.errors import InputError
from moescope.intervene.running_text import RunningText
from moescope.intervene.together import KeyedSets, run_together
from moescope.models import LoadedModel
from moescope.stats import class_weights
from moescope.studies.circuits.causal import PROBE, NeuronAblation
from moescope.studies.circuits.erasure import ClassErasure
from moescope.studies.circuits.features import Columns, rows_of
from moescope.studies.circuits.halves import Halved, judges
from moescope.studies.circuits.images import edited_at, edited_places, off_task
from moescope.studies.circuits.settings import CircuitSettings
from moescope.studies.circuits.spread import between
from moescope.studies.circuits.trial import Trial, prepare_trial
from moescope.study.protocol import Context
from moescope.study.rows import Rows
from moescope.study.run import Counter
from moescope.tasks import load_task, plain_text, split_half, subset
from moescope.tasks.passages import load_passages
from moescope.types import MODULE, Example, Site, Task

PASSAGES = "shipped passages"
_PASSAGE_TOKENS = 64


@dataclass(frozen=True)
class _Switched:
    """What is done to one task's circuit, and what judges it."""

    name: str
    trial: Trial
    ablation: NeuronAblation
    erasure: ClassErasure


def causal_sites(model: LoadedModel, columns: Columns) -> tuple[Site, ...]:
    """What has to be known of the untouched model at the final token: the circuit's sites and the stream after each layer.

    Raises:
        InputError: a module that is named stands outside the layers, so that none may follow to be harmed.
    """
    for site in columns.sites:
        layer, module = model.structure.layers[site.layer], model.tap_point(site).module
        if site.kind.startswith(MODULE) and all(part is not module for part in layer.modules()):
            raise InputError(f"{site} of {model.name} is in no layer, and an intervention is in one; name another", "site")
    return tuple(dict.fromkeys([*columns.sites, *(Site("resid", layer) for layer in range(model.n_layers))]))


def causal_tables(
    model: LoadedModel, halves: Sequence[Halved], settings: CircuitSettings, context: Context
) -> dict[str, pd.DataFrame]:
    """Circuits are ranked on one half of the groups and switched off on the other, beside erasure of the direction.

    Each task's untouched texts, and the running text, go through the model once for all interventions: its own and, of every
    other task, the circuit. A task that is alone is switched off on the shipped passages, whose category a probe names, or on
    shipped images.
    """
    tasks = [_switched(model, task, settings, context) for task in halves]
    interference: list[dict[str, Any]] = []
    curves, erased = [], []
    measured = []
    for task in tasks:
        others = [other for other in tasks if other is not task]
        name = f"{task.name}: switching neurons off, erasing the class"
        sets: list[KeyedSets] = [task.ablation.sets, task.ablation.direction, task.erasure.sets]
        sets += [other.ablation.on_task(task.trial) for other in others]
        scores = context.stage(name, partial(_scores, context, "edited", task.trial, sets, context.counter(name)))
        found = [_balanced(one, task.trial) for one in scores]
        measured.append(found[:3])
        interference += [_beside(other.name, task.trial, one) for other, one in zip(others, found[3:], strict=True)]
    if len(tasks) == 1:
        with context.tokens.of(model, "off task"):
            passages = _off_task(model, tasks[0].trial.task, settings, context)
        sets = [tasks[0].ablation.on_task(passages)]
        (only,) = context.stage("passages: switching neurons off", partial(_scores, context, "off task", passages, sets))
        interference.append(_beside(tasks[0].name, passages, _balanced(only, passages)))
    losses: list[Any] = [None] * len(tasks)
    if model.has_head and not model.is_encoder:
        losses = context.stage("other text: switching neurons off", lambda: _text_losses(model, tasks, settings, context))
    for task, (circuit, direction, cleared), loss in zip(tasks, measured, losses, strict=True):
        curves.append(task.ablation.table(circuit, direction, loss))
        erased.append(task.erasure.table(cleared))
    return {
        "ablation": pd.concat(curves, ignore_index=True),
        "interference": pd.DataFrame(interference),
        "erasure": pd.concat(erased, ignore_index=True),
    }


def _scores(
    context: Context, purpose: str, trial: Trial, sets: Sequence[KeyedSets], progress: Counter | None = None
) -> list[dict[str, np.ndarray]]:
    with context.tokens.of(trial.model, purpose):
        replicas = trial.replicas(batch_tokens=context.run.batch_tokens)
        return run_together(replicas, sets, trial.readout, progress)


def _text_losses(model: LoadedModel, tasks: Sequence[_Switched], settings: CircuitSettings, context: Context) -> list[Any]:
    run = context.run
    with context.tokens.of(model, "text"):
        text = RunningText(
            model,
            plain_text(),
            tokens=settings.ablate_text_tokens,
            batch_tokens=run.batch_tokens,
            max_tokens=run.max_tokens,
        )
        if settings.ablate in ("mean", "resample"):  # their values are the text's own: read for all tasks at once
            text.read([site for task in tasks for site in task.ablation.sites])
        counter = context.counter("other text: switching neurons off")
        return list(text.losses([task.ablation.on_text(text) for task in tasks], counter))


def _switched(model: LoadedModel, task: Halved, settings: CircuitSettings, context: Context) -> _Switched:
    assert settings.ablate is not None
    name, trial, seed = task.name, task.trial, context.run.seed
    further = tuple(size for size in settings.ablate_ks if size <= task.columns.n)
    if len(further) < len(settings.ablate_ks):
        raise InputError(f"{max(settings.ablate_ks)} is above the {task.columns.n} neurons of {name}'s sites", "ablate_ks")
    ablation = NeuronAblation(
        model,
        trial,
        [task.columns.neuron(int(c)) for c in task.ranking[: max(settings.k, *further, 1)]],
        k=settings.k,
        further=further,
        mode=settings.ablate,
        n_random=settings.ablate_random,
        seed=seed,
    )
    context.control(f"{name}: matched random neurons", **ablation.proof())
    # as many permutations as a two-sided p at alpha needs
    n_random = math.ceil(2 / settings.alpha - 1e-9) - 1
    erasure = ClassErasure(model, trial, range(model.n_layers), n_random=n_random, seed=seed)
    context.control(f"{name}: erasure of permuted labels", **erasure.proof())
    return _Switched(name, trial, ablation, erasure)


def _off_task(model: LoadedModel, own: Task, settings: CircuitSettings, context: Context) -> Trial:
    """The shipped passages as a task of their categories, from the start of each; of images those that ``own`` does not ask
    about."""
    if model.reads_images:
        task = replace(load_task(off_task(own)), name="shipped digits")
        encoded = encode(model, [e.text for e in task.examples])
    else:
        task = _passages()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that passages are cut is what is wanted
            limit = min(_PASSAGE_TOKENS, context.run.max_tokens or _PASSAGE_TOKENS)
            encoded = encode(model, [e.text for e in task.examples], max_tokens=limit, chat=False)
    y, groups = np.array([e.label for e in task.examples]), np.array([e.group for e in task.examples])
    half = split_half(y, groups, context.run.seed)
    first, judge = np.flatnonzero(half), judges(half, groups, settings.ablate_rows, context.run.seed)
    rows = context.rows(Rows(f"{task.name}: off task", groups, fit=first, judge=judge))
    last = Site("resid", model.n_layers - 1)
    used = np.concatenate([rows.fit, rows.judge])
    final = {last: np.zeros((len(used), model.width(last)), np.float32)}
    fitted = {(last, edited_at(model, settings)): final[last][: len(rows.fit)]}
    read_into(fitted, model, rows_of(encoded, rows.fit), batch_tokens=context.run.batch_tokens)
    selection = np.arange(len(used)) < len(rows.fit)
    places = edited_places(model, settings)
    return prepare_trial(model, subset(task, used), rows_of(encoded, used), final, selection, places)


def _passages() -> Task:
    passages = load_passages()
    names = sorted({p.category for p in passages})
    examples = tuple(Example(p.text, names.index(p.category), p.group) for p in passages)
    return Task(PASSAGES, examples, tuple(names), source="shipped")


def _balanced(scores: Mapping[str, np.ndarray], trial: Trial) -> dict[str, np.ndarray]:
    """Scores (S, N), of which the mean of an accuracy is its mean over the classes."""
    weight = class_weights(trial.split.labels).astype(np.float32)
    return {name: score * weight if name.endswith("accuracy") else score for name, score in scores.items()}


def _beside(name: str, trial: Trial, scores: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What switching the circuit of ``name`` off does to another task's probe."""
    clean, ablated = scores[PROBE]
    return interference_row(name, trial.task.name, clean, ablated, trial.groups, 1 / len(np.unique(trial.split.labels)))


def interference_row(
    task: str, texts: str, clean: np.ndarray, ablated: np.ndarray, groups: np.ndarray, chance: float
) -> dict[str, Any]:
    """A row of the table ``interference``, from a probe's weighed hits (N,) without and with the intervention."""
    found = between(ablated, clean, groups)
    known = between(clean, np.full(len(clean), chance), groups)
    # weights of the classes are not drawn anew with the groups, so that an end may lie beyond the scale
    value, low, high = np.clip(np.array([known.value, known.low, known.high]) + chance, 0.0, 1.0).tolist()
    return {
        "task": task,
        "texts": texts,
        "chance": chance,
        "baseline": value,
        "baseline_low": low,
        "baseline_high": high,
        "effect": found.value,
        "low": found.low,
        "high": found.high,
        "n": len(clean),
    }
