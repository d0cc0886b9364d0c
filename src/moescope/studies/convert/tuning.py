"""The conversion and its controls, all fine-tuned alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from moescope.intervene.held_out import Windows
from moescope.models import LoadedModel
from moescope.studies.convert.build import build_model
from moescope.studies.convert.finetune import Tuned, finetune, untouched
from moescope.studies.convert.layers import Converted
from moescope.studies.convert.refit import REFIT
from moescope.studies.convert.settings import ConvertSettings, Counts
from moescope.studies.convert.student import TopK, students_of
from moescope.studies.convert.target import Target
from moescope.study.protocol import Context

TUNED, STATIC = "tuned", "static tuned"  # kinds of the frontier


@dataclass(frozen=True, eq=False)
class Tuning:
    """``runs`` and ``models`` by kind: ``tuned`` and, with controls, ``random tuned`` and ``static tuned``.

    Models are mixtures of experts, the last one dense; a kind whose training did not improve has none. ``dense`` is the
    validation KL of the original under the same adapters before a step: nought, so the original tuned alike is itself.
    """

    runs: dict[str, Tuned]
    models: dict[str, Any]
    dense: float
    training: Windows
    validation: Windows

    @property
    def table(self) -> pd.DataFrame:
        """Table ``finetuning``."""
        return pd.DataFrame([{"kind": kind, "rate": run.rate} | row for kind, run in self.runs.items() for row in run.history])


def tune_all(
    model: LoadedModel,
    target: Target,
    counts: Counts,
    found: Converted,
    training: Windows,
    validation: Windows,
    settings: ConvertSettings,
    seed: int,
    context: Context,
    starts: Mapping[str, Any],
) -> Tuning:
    """Fine-tune the conversion and, where they were made, its controls, each at the rate that suits it.

    Args:
        starts: the dense forms that were refitted, by kinds as they are called then; each is tuned from there.
    """
    runs: dict[str, Tuned] = {}
    models: dict[str, Any] = {}
    for kind, choices in students_of(found, counts, TUNED).items():
        name = "fine-tuning" if kind == TUNED else f"fine-tuning the control: {kind.split()[0]}"
        told, start = context.counter(name), starts.get(kind.replace(TUNED, REFIT))
        run = finetune(model, target, choices, training, validation, settings, seed, told, context.stages, name, start)
        runs[kind] = run
        if run.module is not None:
            models[kind] = run.module if kind == STATIC else _cut(model, target, counts, found, kind, run)
    dense = context.stage("validating the original", lambda: untouched(model, target, validation, settings, seed))
    return Tuning(runs, models, dense, training, validation)


def _cut(model: LoadedModel, target: Target, counts: Counts, found: Converted, kind: str, run: Tuned) -> Any:
    """The tuned dense form as a mixture of experts."""
    splits = [split for split, _ in (found.chosen if kind == TUNED else found.random)]
    routers = [choice.router() for choice in run.choices if isinstance(choice, TopK)]
    return build_model(model, target, counts, list(zip(splits, routers, strict=True)), module=run.module)
