"""What a study's tables say of two students: the comparison, whether it may be made, and the claim that it decides."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property

import pandas as pd

from moescope.studies.distill.comparisons import LEAST_SEEDS, LogRatio, compared
from moescope.studies.distill.settings import NO_PADDING, DistillSettings
from moescope.study.verdicts import Case
from moescope.types import Claim

ACTIVATIONS = "activations"
OWN_INPUTS = ("gaussian", "kurtosis", "mixture", f"{NO_PADDING}-gaussian")  # controls whose rows are of no document
GATES = {"linear": "the linear map", "token mean": "the token's mean output"}


@dataclass(frozen=True)
class Evidence:
    """The tables of a study as comparisons: ``students``, ``documents``, ``baselines``, ``summary``, ``ratio`` and, where it
    was measured, ``splice``."""

    tables: dict[str, pd.DataFrame]
    settings: DistillSettings
    _known: dict[tuple[str, str, str], LogRatio | None] = field(default_factory=dict)

    @property
    def margin(self) -> float:
        """Smallest log ratio of interest."""
        return math.log(self.settings.margin_ratio)

    @cached_property
    def here(self) -> pd.DataFrame:
        """The summary of the students of activations, by name."""
        return self.of(ACTIVATIONS)

    def of(self, data: str) -> pd.DataFrame:
        """The same of the students of ``data``."""
        summary = self.tables["summary"]
        return summary[summary["data"] == data].set_index("student")

    def compared(self, data: str, worse: str, better: str) -> LogRatio | None:
        """log(error of ``worse`` / error of ``better``) on ``data``; those that are of the same documents are drawn alike."""
        key = (data, worse, better)
        if key not in self._known:
            self._known[key] = compared(self.tables["documents"], *key, int(data in OWN_INPUTS))
        return self._known[key]

    def gate(self, students: tuple[str, ...], *sources: str) -> str:
        """Which of the students, on which of the sources, leave as much as a trivial predictor; empty where none does.

        Every seed's run must leave less than the linear map and, where tokens are known, than their mean outputs.
        """
        summary, baselines = self.tables["summary"], self.tables["baselines"]
        failed = []
        for data in sources:
            worst = summary[summary["data"] == data].set_index("student")["worst"]
            trivial = baselines[baselines["data"] == data].set_index("baseline")["fvu"]
            for student in students:
                beaten_by = [f"{GATES[b]} {trivial[b]:.3g}" for b in GATES if b in trivial and worst[student] >= trivial[b]]
                if beaten_by:
                    failed.append(f"{student} leaves {worst[student]:.3g} of the variance on {data}, {' and '.join(beaten_by)}")
        return f"no verdict on students that a trivial predictor equals: {'; '.join(failed)}" if failed else ""


def judged(case: Case, ratio: LogRatio, units: str = "held-out documents") -> Case | Claim:
    """The case, or the claim that it could not be tested: with too few seeds, or a single document."""
    seeds, documents = len(ratio.by_seed), ratio.documents
    if case.gate:
        return case
    if seeds >= LEAST_SEEDS and documents > 1:
        facts = [f"differences are of logarithms, over {documents} {units}"]
        if not ratio.agrees:
            facts.append("the seeds do not agree on the sign, so that the interval holds each of them")
        return replace(case, words="; ".join([*facts, *([case.words] if case.words else [])]))
    wanted = f"{seeds} seeds" if seeds < LEAST_SEEDS else "one held-out document"
    return Claim(
        case.statement,
        case.measured,
        id=case.id,
        published=case.published,
        interval=case.interval,
        control=case.control,
        outcome="not tested",
        words=f"{wanted}; a verdict takes at least {LEAST_SEEDS} seeds and two documents",
    )


def interval(ratio: LogRatio) -> tuple[float, float] | None:
    low, high = ratio.interval
    return None if math.isnan(low) else (math.exp(low), math.exp(high))
