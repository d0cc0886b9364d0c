"""How each study is called: the one file that knows, so that a change of call forms is a change of this file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from moescope.models import LoadedModel
from moescope.routing import RoutingTrace
from moescope.runtime.exit import ExitClassifier
from moescope.runtime.mask import PruneMask
from moescope.studies.circuits import AblationSettings, CircuitSettings
from moescope.studies.circuits import circuits as circuits_study
from moescope.studies.convert import convert as convert_study
from moescope.studies.distill import distill as distill_study
from moescope.studies.exit import early_exit
from moescope.studies.prune.study import PruneSettings, prune_study
from moescope.studies.robustness.attack import AttackSettings
from moescope.studies.robustness.study import RobustnessSettings, robustness_study
from moescope.studies.route import route as route_study
from moescope.studies.signatures.settings import SignatureSettings
from moescope.studies.signatures.study import signatures as signatures_study
from moescope.studies.steer import EffectSettings, Steering, steer_study
from moescope.studies.transfer.study import TransferSettings, transfer_study
from moescope.study.result import StudyResult
from moescope.tasks import Prompt, split_half
from moescope.tasks.folds import split_rows
from moescope.tasks.passages import Passage
from moescope.types import Task


def circuits(
    model: LoadedModel, *tasks: Task, k: int = 1, ablate: int | None = None, text_tokens: int = 64, **options: Any
) -> StudyResult:
    """The smallest study that has every table; ``ablate`` is the number of matched random sets."""
    small: dict[str, Any] = {"n_permutations": 19, "n_label_permutations": 0, "n_random": 20, "twin": False, "ks": (k,)}
    how = None if ablate is None else AblationSettings(ks=(k,), n_random=ablate, text_tokens=text_tokens)
    return circuits_study(model, tasks, settings=CircuitSettings(**(small | {"k": k} | options)), ablate=how)


def ablation_selection(task: Task, seed: int = 0) -> np.ndarray:
    """bool (N,): the rows on which the circuit that is ablated is chosen; the others judge it."""
    return split_half([e.label for e in task.examples], [e.group for e in task.examples], seed)


def signatures(
    trace: RoutingTrace | None = None, prompts: Sequence[Prompt] | None = None, model: LoadedModel | None = None, **options: Any
) -> StudyResult:
    small: dict[str, Any] = {"n_permutations": 99, "n_label_permutations": 0, "n_null": 19, "n_boot": 100, "new_tokens": 0}
    return signatures_study(model, prompts, trace=trace, settings=SignatureSettings(**(small | options)))


def distill(model: LoadedModel, layer: int, texts: Sequence[str], **options: Any) -> StudyResult:
    result, _ = distill_study(model, layer, texts=texts, **options)
    return result


def exit_split(task: Task, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows that fit, rows that calibrate and rows that judge, of an exit's task (and of all of a router's tasks together)."""
    split = split_rows(task, seed)
    return split.train, split.calibration, split.test


def exit(model: LoadedModel, task: Task, **options: Any) -> tuple[StudyResult, ExitClassifier]:
    found = early_exit(model, [task], timed_texts=1, **options)
    return found.result, found.classifiers[task.name]


def route(model: LoadedModel, tasks: Sequence[Task], **options: Any) -> StudyResult:
    return route_study(model, tasks, timed_texts=1, **options).result


def prune(model: LoadedModel, passages: Sequence[Passage], **options: Any) -> tuple[StudyResult, PruneMask]:
    return prune_study(model, passages, settings=PruneSettings(**options))


def steer(model: LoadedModel, steering: Steering, passages: Sequence[Passage], **options: Any) -> StudyResult:
    return steer_study(model, [steering], passages, settings=EffectSettings(**options))


def robustness(
    model: LoadedModel, prompts: Sequence[Prompt], attack: dict[str, Any] | None = None, **options: Any
) -> StudyResult:
    small: dict[str, Any] = {"precision": False, "batches": False, "attacked": 0 if attack is None else 16}
    settings = RobustnessSettings(**(small | options), attack=AttackSettings(**(attack or {})))
    return robustness_study(model, prompts, settings=settings)


def transfer(a: RoutingTrace, b: RoutingTrace, **options: Any) -> StudyResult:
    small: dict[str, Any] = {"n_permutations": 99, "n_alignments": 19, "dimensions": 6, "n_folds": 2}
    return transfer_study(a, b, settings=TransferSettings(**(small | options)))


def convert(model: LoadedModel, out: Path, **options: Any) -> StudyResult:
    with patch.object(StudyResult, "save"):  # the report, whose figures take longer than all else
        return convert_study(model, out, speed=False, **options)
