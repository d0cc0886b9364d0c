"""When does a circuit form? The same task over a series of checkpoints of one model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from moescope.errors import InputError
from moescope.models import LoadedModel
from moescope.stats import largest_jump
from moescope.studies.circuits.claims_formation import formation_case, jump_case, log_steps
from moescope.studies.circuits.cues import read_cues
from moescope.studies.circuits.features import Features
from moescope.studies.circuits.series import Found, folds_of, found_in, read
from moescope.studies.circuits.settings import SearchSettings
from moescope.study.protocol import Context, TasksLike
from moescope.study.repeat import verb
from moescope.study.result import StudyResult
from moescope.study.rows import FoldRows
from moescope.study.run import Run
from moescope.study.verdicts import Case, Effect
from moescope.types import Task

_SETTINGS, _RUN = SearchSettings(), Run()


@verb
def dynamics(
    checkpoints: Sequence[str | Path],
    tasks: TasksLike,
    revisions: Sequence[str] | None = None,
    settings: SearchSettings = _SETTINGS,
    *,
    run: Run = _RUN,
) -> StudyResult:
    """Circuit and probe accuracy of each task at each checkpoint, in the order of training.

    Args:
        checkpoints: folders, embedded names or Hub ids; the training step is read from the last number in each name.
        revisions: with exactly one checkpoint, its Hub revisions instead.

    Returns:
        A result of kind ``"dynamics"`` with the table ``dynamics`` and for each task the claim that its circuit forms in
        training and, of at least six checkpoints, that it does so in a jump (:func:`moescope.stats.largest_jump`).

    Raises:
        InputError: fewer than two checkpoints, or input that cannot be used.

    >>> import moescope
    >>> result = moescope.dynamics(["out/step-0", "out/step-1000"], ["certainty=halueval"])  # doctest: +SKIP
    """
    context = Context("circuits", settings, run, of=SearchSettings, spread=True)
    series = _series(checkpoints, revisions)
    loaded_tasks = context.tasks(tasks)
    rows: list[dict[str, Any]] = []
    tops: dict[tuple[int, str], np.ndarray] = {}
    hits: dict[tuple[int, str], np.ndarray] = {}
    cases: list[Case] = []
    last = len(series) - 1
    folds = {task.name: context.rows(folds_of(task, settings, run)) for task in loaded_tasks}
    model: LoadedModel | None = None
    for i, (name, step, arguments) in enumerate(series):
        model = None  # goes before the next comes
        model = context.load(**arguments)
        context.tokens.add("batching", model.batching.tokens)
        for task in loaded_tasks:
            context.tell(f"{name}: {task.name}", i, len(series))
            kept = context.stage(
                f"{name}: {task.name}",
                partial(_at_checkpoint, context, model, task, folds[task.name], settings, last=i == last),
            )
            found = kept.found
            tops[i, task.name], hits[i, task.name] = found.top, found.hits
            rows.append({"checkpoint": name, "step": step, "task": task.name, **found.row})
            if kept.rival is not None:
                gained = found.scorer.gap(found.hits, hits[0, task.name])
                own = [r for r in rows if r["task"] == task.name]
                cases.append(formation_case(own, task.name, gained, kept.rival, settings))
                weighed = np.stack([found.scorer.weighed(hits[j, task.name]) for j in range(len(series))], 1)
                jump = largest_jump(log_steps([r["step"] for r in own]), weighed, found.scorer.groups, seed=run.seed)
                if jump is not None:
                    cases.append(jump_case(own, task.name, jump, settings))
    assert model is not None
    table = pd.DataFrame(rows)
    table["overlap_with_last"] = [
        len(np.intersect1d(tops[i, task.name], tops[last, task.name])) for i in range(len(series)) for task in loaded_tasks
    ]
    return context.result(
        model=model,
        tasks=loaded_tasks,
        title=f"Circuit formation over {len(series)} checkpoints",
        claims=cases,
        tables={"dynamics": table},
        kind="dynamics",
        forward_tokens=context.tokens.totals(),
    )


def _series(checkpoints: Sequence[str | Path], revisions: Sequence[str] | None) -> list[tuple[str, int, dict[str, Any]]]:
    if isinstance(checkpoints, str | Path):
        checkpoints = [checkpoints]
    if revisions:
        if len(checkpoints) != 1:
            raise InputError("give exactly one model with revisions, not several checkpoints", "revisions")
        found = [(revision, {"model": str(checkpoints[0]), "revision": revision}) for revision in revisions]
    else:
        found = [(Path(checkpoint).name, {"model": str(checkpoint)}) for checkpoint in checkpoints]
    if len(found) < 2:
        raise InputError("a series needs at least two (folders, or two revisions)", "checkpoints")
    steps = []
    for name, arguments in found:
        numbers = re.findall(r"\d+", name)
        if not numbers:
            raise InputError(f"checkpoint {name!r}: no training step in its name; rename it, e.g. step-1000")
        steps.append((name, int(numbers[-1]), arguments))
    return sorted(steps, key=lambda item: item[1])


@dataclass(frozen=True, eq=False)
class _Checkpoint:
    """One task at one checkpoint; of the last one also what it adds to the best cue."""

    found: Found
    rival: Effect | None


def _at_checkpoint(
    context: Context, model: LoadedModel, task: Task, rows: FoldRows, settings: SearchSettings, *, last: bool
) -> _Checkpoint:
    features = read(context, model, task, rows, settings, "main")
    found = found_in(features, settings)
    return _Checkpoint(found, _beyond_cues(features, found, model, settings) if last else None)


def _beyond_cues(features: Features, found: Found, model: LoadedModel, settings: SearchSettings) -> Effect:
    cues, scorer = read_cues(features, model.tokenizer), found.scorer
    both, bits = cues.with_circuit(features.x, found.selected, settings.classifier)
    alone = cues.chosen_hits()
    beyond = scorer.gap(both, alone)
    return Effect(
        *beyond[:3],
        "the best trivial cue",
        settings.margin,
        beyond.p,
        kind="trivial cue",
        seen=scorer.bits(bits, alone, settings.margin) > 0,
    )
