"""The activations of a study's circuit neurons while a model writes, against what the study measured of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from moescope.errors import InputError
from moescope.types import Neuron, Site

if TYPE_CHECKING:
    from moescope.models import LoadedModel
    from moescope.study.result import StudyResult

READ = "final"
"""The position whose statistics a study must hold for a z-score: one token's activation, not a mean over many."""


@dataclass(frozen=True)
class CircuitTrace:
    """K neurons of a task. A z-score is (activation - mean) / sd over the study's labelled texts at their final token."""

    task: str
    neurons: tuple[Neuron, ...]
    mean: np.ndarray | None
    """(K,); None: the study has no such statistics, so activations are shown as they are"""
    sd: np.ndarray | None
    classes: dict[str, np.ndarray]
    """class -> (K,): the mean of its texts as a z-score; empty where there is none"""
    verdicts: tuple[dict[str, str], ...]

    def units(self, x: np.ndarray) -> np.ndarray:
        """Activations (T, K) as z-scores or as they are."""
        return x if self.mean is None or self.sd is None else (x - self.mean) / self.sd

    def scaled(self, x: np.ndarray) -> list[list[float | None]]:
        """The same with three decimals; None where not finite."""
        return [[round(v, 3) if math.isfinite(v) else None for v in row] for row in self.units(x).tolist()]

    def json(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "neurons": [str(neuron) for neuron in self.neurons],
            "unit": "activation" if self.mean is None else "z",
            "classes": {name: [round(float(v), 3) for v in values] for name, values in self.classes.items()},
            "verdicts": list(self.verdicts),
        }


def circuit_traces(model: LoadedModel, result: StudyResult, folder: str) -> tuple[CircuitTrace, ...]:
    """The circuits of a saved study, for use with ``model``.

    Raises:
        InputError: not a circuits study, of another model, or without a circuit.
    """
    if result.kind != "circuits" or not result.circuits:
        raise InputError(f"{folder} holds no circuits (its kind is {result.kind!r}); run moescope circuits", "circuits")
    if result.meta.get("fingerprint") != model.fingerprint:
        made = f"{result.meta.get('model')} ({result.meta.get('fingerprint')})"
        raise InputError(
            f"{folder} was made for {made}, not for {model.name} ({model.fingerprint}): another model, checkpoint or dtype",
            "circuits",
        )
    return tuple(_trace(model, result, task) for task in result.circuits)


def _trace(model: LoadedModel, result: StudyResult, task: str) -> CircuitTrace:
    neurons = result.circuits[task].neurons
    for neuron in neurons:
        if neuron.index >= model.width(neuron.site):
            raise InputError(f"neuron {neuron} of task {task} does not exist in {model.name}", "circuits")
    verdicts = tuple(
        {"claim": c.statement, "verdict": c.verdict, "outcome": c.outcome, "words": c.words}
        for c in result.claims
        if c.id == "H2" and c.statement.startswith(f"{task}: ")
    )
    if (result.meta.get("settings") or {}).get("position") != READ or "neuron_classes" not in result.tables:
        return CircuitTrace(task, neurons, None, None, {}, verdicts)
    table = result.tables["neuron_classes"]
    table = table[table["task"] == task]
    by_class = {str(name): rows.set_index("rank") for name, rows in table.groupby("class", sort=False)}
    ranks = range(1, len(neurons) + 1)
    if not by_class or any(rank not in rows.index for rows in by_class.values() for rank in ranks):
        return CircuitTrace(task, neurons, None, None, {}, verdicts)  # a circuit larger than the table
    mean, sd, n = (np.stack([rows.loc[ranks, c].to_numpy(float) for rows in by_class.values()]) for c in ("mean", "sd", "n"))
    overall = (n * mean).sum(0) / n.sum(0)
    spread = np.sqrt((((n - 1) * sd**2) + n * (mean - overall) ** 2).sum(0) / (n.sum(0) - 1))
    spread = np.where(spread > 0, spread, 1.0)
    classes = {name: (values - overall) / spread for name, values in zip(by_class, mean, strict=True)}
    return CircuitTrace(task, neurons, overall, spread, classes, verdicts)


class CircuitReader:
    """Reads the circuits' neurons in forward passes of one text."""

    def __init__(self, model: LoadedModel, traces: Sequence[CircuitTrace]) -> None:
        neurons = sorted({neuron for trace in traces for neuron in trace.neurons})
        self._model = model
        self._place = {neuron: i for i, neuron in enumerate(neurons)}
        self._columns = {
            site: torch.tensor([n.index for n in neurons if n.site == site], device=model.device)
            for site in sorted({neuron.site for neuron in neurons})
        }
        self._seen: dict[Site, Tensor] = {}

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Forward passes inside the context are read; :meth:`values` is of the last."""
        handles = []
        try:
            for site in self._columns:
                handles.append(self._model.tap_point(site).attach(partial(self._keep, site)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _keep(self, site: Site, tensor: Tensor) -> None:
        self._seen[site] = tensor[0].index_select(-1, self._columns[site]).detach().float().cpu()

    def values(self, trace: CircuitTrace) -> np.ndarray:
        """(T, K) float64: activations at the T tokens of the last pass."""
        seen = torch.cat([self._seen[site] for site in self._columns], dim=1).numpy()
        return seen[:, [self._place[neuron] for neuron in trace.neurons]].astype(np.float64)
