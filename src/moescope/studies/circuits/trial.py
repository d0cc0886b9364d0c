"""A task's texts as a test of interventions: what was learnt on one half, and what judges on the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from moescope.capture.encode import Encoded
from moescope.intervene.replicas import Readout, Replicas
from moescope.studies.circuits.causal_targets import Probe, answers_of, task_readout
from moescope.studies.circuits.causal_values import Split, split_task
from moescope.types import Site, Task

if TYPE_CHECKING:
    from moescope.models import LoadedModel


@dataclass(frozen=True)
class Trial:
    """What every intervention on one task shares; made by :func:`prepare_trial`."""

    model: LoadedModel
    task: Task
    split: Split
    vectors: Mapping[Site, np.ndarray]
    """float32 (F, width): the selection texts' final tokens (of images what is read), untouched"""
    judged: Mapping[Site, np.ndarray]
    """float32 (E, width): those of the texts that judge"""
    probe: Probe
    """of the last layer's residual stream, fitted on the selection texts"""
    fitted: list[np.ndarray]
    """token ids of the selection texts"""
    evaluated: list[np.ndarray]
    """token ids of the texts that judge"""
    answers: tuple[int, ...]
    places: np.ndarray | None = None
    """bool (T,): of images the places that are read and changed; None: the final token"""

    @property
    def groups(self) -> np.ndarray:
        """Of the texts that judge."""
        return np.array([self.task.examples[i].group for i in self.split.evaluate])

    @property
    def fit_groups(self) -> np.ndarray:
        """Of the texts that were learnt on."""
        return np.array([self.task.examples[i].group for i in self.split.fit])

    @property
    def readout(self) -> Readout:
        return task_readout(self.probe, self.split.labels, self.answers)

    def replicas(self, *, of: Sequence[np.ndarray] | None = None, batch_tokens: int = 8192) -> Replicas:
        """The texts that judge, or ``of``, ready to run under interventions."""
        logits: Literal["final"] | None = "final" if self.answers else None
        ids = self.evaluated if of is None else of
        return Replicas(self.model, ids, logits=logits, batch_tokens=batch_tokens, places=self.places)


def prepare_trial(
    model: LoadedModel,
    task: Task,
    encoded: Encoded,
    final: Mapping[Site, np.ndarray],
    selection: np.ndarray,
    places: np.ndarray | None = None,
) -> Trial:
    """Split a task's texts and fit the probe that judges.

    Args:
        encoded: the task's texts.
        final: float32 (N, width) per site: the final tokens of all texts, or means over ``places``, at the last layer too.
        selection: bool (N,), True for the texts that the circuit and the probe are learnt on; groups must not straddle.

    Raises:
        InputError: a split without all classes, a group on both sides, answers that begin alike.
    """
    split = split_task(task, selection)
    vectors, judged = ({site: x[part] for site, x in final.items()} for part in (split.fit, split.evaluate))
    probe = Probe.fit(vectors[Site("resid", model.n_layers - 1)], split.fit_labels)
    fitted, evaluated = ([encoded[i] for i in part] for part in (split.fit, split.evaluate))
    answers = answers_of(model, task, encoded)
    return Trial(model, task, split, vectors, judged, probe, fitted, evaluated, answers, places)
