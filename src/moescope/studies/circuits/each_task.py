"""What is found on each task, and between tasks, whatever gave the activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd

from moescope.errors import InputError
from moescope.studies.circuits.controls import STEPS, control_tables
from moescope.studies.circuits.cues import read_cues
from moescope.studies.circuits.features import Columns, Features
from moescope.studies.circuits.graded import GradedFindings, analyse_graded
from moescope.studies.circuits.graded_controls import graded_control_tables
from moescope.studies.circuits.language import language_rows
from moescope.studies.circuits.pairs import Ranked, cross_task_rows, map_k, native_row, overlap_rows, task_map_rows
from moescope.studies.circuits.related.similarity import similarity_tables
from moescope.studies.circuits.reread import Reread
from moescope.studies.circuits.settings import CircuitSettings
from moescope.studies.circuits.several import several_tables
from moescope.studies.circuits.single import TaskFindings, analyse, overlap_ks
from moescope.study.protocol import Context
from moescope.tasks import ImageTask
from moescope.tasks.bare import BareTask


def check_sizes(columns: Columns, settings: CircuitSettings) -> None:
    largest = max(settings.k, *settings.ks)
    if largest > columns.n:
        raise InputError(
            f"K = {largest} is larger than the {columns.n} neurons of site {settings.site!r}; choose a smaller K",
            "k" if settings.k == largest else "ks",
        )
    if 2 * settings.k > min(columns.widths):
        raise InputError(
            f"K = {settings.k} is over half of the {min(columns.widths)} neurons of a layer at site {settings.site!r}, "
            "too many to match with random neurons of the same layer; choose a smaller K",
            "k",
        )


def of_task(
    context: Context,
    here: Features,
    settings: CircuitSettings,
    *,
    tokenizer: Any,
    n_layers: int,
    read_anew: Callable[[], Reread],
) -> tuple[TaskFindings | GradedFindings, dict[str, pd.DataFrame]]:
    """What is found on one task, and the tables of it and of its controls."""
    name, shared = here.task.name, {"features": here, "task": here.task, "columns": here.columns}
    stage, total = f"{name}: circuit and controls", 3 + len(STEPS)
    context.tell(stage, 0, total)

    def circuit() -> TaskFindings | GradedFindings:
        if here.task.kind == "graded":
            return analyse_graded(here, settings, tokenizer)
        return analyse(here, settings, cues=read_cues(here, tokenizer), n_layers=n_layers)

    found = context.stage(f"{name}: circuit", circuit, **shared)
    read = context.stage(f"{name}: controls read anew", read_anew, **shared)

    def begin(step: str) -> None:
        context.tell(stage, 3 + STEPS.index(step), total)

    if isinstance(found, GradedFindings):
        graded = context.stage(
            f"{name}: controls",
            lambda: graded_control_tables(found, settings, read=read, context=context, step=begin),
        )
        return found, {**found.tables, **graded}
    controls = context.stage(
        f"{name}: controls",
        lambda: control_tables(
            found,
            settings,
            n_layers=n_layers,
            tokenizer=tokenizer,
            read=read,
            context=context,
            step=begin,
        ),
    )
    classes = context.stage(f"{name}: each class", lambda: several_tables(found, settings, tokenizer), **shared)
    return found, {**found.tables, **controls, **classes}


def across_tasks(found: dict[str, TaskFindings], settings: CircuitSettings, context: Context) -> dict[str, pd.DataFrame]:
    names = list(found)
    languages = [row for task in found.values() for row in language_rows(task.features, settings)]
    tables = {"language": pd.DataFrame(languages)} if languages else {}
    if len(names) < 2:
        return tables
    stage, total = "comparing tasks", len(names) ** 2
    cross: list[dict[str, Any]] = []
    overlap: list[dict[str, Any]] = []
    n = found[names[0]].features.columns.n
    ks = overlap_ks(settings, n)
    places = max(*ks, map_k(n))
    ranked = {name: Ranked.of(task, settings, places, turn=i) for i, (name, task) in enumerate(found.items())}
    for i, a in enumerate(names):
        for j, b in enumerate(names):
            context.tell(stage, i * len(names) + j, total)
            if i < j:
                overlap += overlap_rows(a, b, ranked, ks)
            cross += [native_row(found[a], settings)] if i == j else cross_task_rows(found[a], found[b], settings)
    crossed = pd.DataFrame(cross)
    texts = [
        one
        for one in found.values()
        if one.features.task.kind == "classes" and not isinstance(one.features.task, ImageTask | BareTask)
    ]
    if len(texts) > 2:
        tables |= similarity_tables(texts, ranked, crossed)
    return tables | {
        "overlap": pd.DataFrame(overlap),
        "cross_task": crossed,
        "task_map": pd.DataFrame(task_map_rows(list(found.values()), ranked, settings)),
    }
