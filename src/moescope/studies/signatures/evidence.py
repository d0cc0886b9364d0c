"""What the claims of a signatures study follow from, beside its tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from moescope.routing.separation import Cells, Estimate
from moescope.routing.subject import Subject
from moescope.studies.signatures.classifications import Told
from moescope.studies.signatures.separations import Beyond
from moescope.studies.signatures.settings import SignatureSettings
from moescope.study.verdicts import Effect

HOW = "how it is routed"
"""Family of the claims that do not ask whether categories are told apart."""


@dataclass(frozen=True)
class Evidence:
    """What the claims of a study follow from, beside its tables.

    Attributes:
        rivals, not_run: of the separation.
        beyond: by null, what is left of the separation beyond it.
        told: by split, how well the category is told.
        experts: mean eta squared beyond permuted cells; ``twin_experts``: beyond the twin, on prompt tokens.
        twin_carrying: how many of its experts tell categories apart.
        same: model and protocol are the source's.
    """

    subject: Subject
    settings: SignatureSettings
    rivals: tuple[Effect, ...]
    not_run: tuple[str, ...]
    beyond: Mapping[str, Beyond]
    told: Mapping[str, Told]
    trend: Estimate | None
    clusters: Estimate
    experts: Estimate
    twin_experts: Estimate | None
    twin_carrying: str
    load: Estimate
    same: bool

    @property
    def grouped(self) -> bool:
        """Whether its experts are groups of a dense model's neurons, or neurons: nothing is routed to them."""
        return "experts" in self.subject.trace.meta

    @property
    def chosen(self) -> bool:
        """Whether they are single neurons, chosen for each token."""
        return "neurons" in self.subject.trace.meta


def interval_of(row: pd.Series, name: str) -> tuple[float, float] | None:
    low, high = float(row[f"{name}_low"]), float(row[f"{name}_high"])
    return None if pd.isna(low) else (low, high)


def unit_words(cells: Cells) -> str:
    """What stands behind the interval, and why a claim may not be decidable."""
    words = f"interval from {cells.unit}s left out, whole cells (category and {cells.unit}) permuted"
    if cells.confounded:
        return f"category and {cells.unit} cannot be told apart: no category has a second {cells.unit}"
    return words if cells.unit != "prompt" else "interval from prompts left out, prompts permuted"
