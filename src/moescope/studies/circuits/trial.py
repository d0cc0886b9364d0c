"""A task's texts as a test of interventions: what was learnt on one half, and what judges on the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from moescope.capture.encode import Encoded, encode
from moescope.intervene.replicas import Readout, Replicas
from moescope.studies.circuits.causal_targets import Probe, answers_of, task_readout
from moescope.studies.circuits.causal_values import Split, split_task
from moescope.studies.circuits.features import read_into, rows_of
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
    """float32 (F, width): the selection texts' final tokens, untouched"""
    probe: Probe
    """of the last layer's residual stream, fitted on the selection texts"""
    evaluated: list[np.ndarray]
    """token ids of the texts that judge"""
    answers: tuple[int, ...]

    @property
    def readout(self) -> Readout:
        return task_readout(self.probe, self.split.labels, self.answers)

    def replicas(self, *, positions: Literal["final", "all"] = "final", batch_tokens: int = 8192) -> Replicas:
        """The texts that judge, ready to run under interventions."""
        logits: Literal["final"] | None = "final" if self.answers else None
        return Replicas(self.model, self.evaluated, positions=positions, logits=logits, batch_tokens=batch_tokens)


def prepare_trial(
    model: LoadedModel,
    task: Task,
    sites: Sequence[Site],
    *,
    selection: np.ndarray | None = None,
    seed: int = 0,
    encoded: Encoded | None = None,
    final: Mapping[Site, np.ndarray] | None = None,
    batch_tokens: int = 8192,
    max_tokens: int | None = None,
) -> Trial:
    """Split a task's texts and fit the probe that judges.

    Args:
        sites: at which the selection texts' final tokens are needed; the last layer's stream always is.
        selection: bool (N,), see :func:`moescope.studies.circuits.causal.ablation_study`.
        encoded: the task's texts where they are encoded already.
        final: where they were read already, the final tokens (N, width) of all texts at ``sites`` and the last layer.

    Raises:
        InputError: a split without all classes, a group on both sides, answers that begin alike.
    """
    split = split_task(task, selection, seed)
    if encoded is None:
        encoded = encode(model, [e.text for e in task.examples], max_tokens=max_tokens)
    last = Site("resid", model.n_layers - 1)
    wanted = dict.fromkeys([*sites, last])
    if final is None:
        fitted = rows_of(encoded, split.fit)
        vectors = {site: np.empty((len(fitted), model.width(site)), np.float32) for site in wanted}
        read_into({(site, "final"): x for site, x in vectors.items()}, model, fitted, batch_tokens=batch_tokens)
    else:
        vectors = {site: final[site][split.fit] for site in wanted}
    probe = Probe.fit(vectors[last], split.fit_labels)
    evaluated = [encoded[i] for i in split.evaluate]
    return Trial(model, task, split, vectors, probe, evaluated, answers_of(model, task, encoded))
