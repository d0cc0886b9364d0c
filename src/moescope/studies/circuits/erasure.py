"""The direction-level control: erase everything linear about the class at one layer, and see what is left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from moescope.capture.encode import encode
from moescope.errors import InputError
from moescope.intervene.edits import Edit
from moescope.intervene.leace import Eraser, Whitening
from moescope.intervene.replicas import Progress, Replicas
from moescope.studies.circuits.causal import summary
from moescope.studies.circuits.causal_targets import Probe, answers_of, final_vectors, task_readout
from moescope.studies.circuits.causal_values import rows_of, split_task
from moescope.types import Site, Task

if TYPE_CHECKING:
    from moescope.models import LoadedModel


def erasure_study(
    model: LoadedModel,
    task: Task,
    *,
    layers: Sequence[int] | None = None,
    selection: np.ndarray | None = None,
    n_random: int = 20,
    seed: int = 0,
    batch_tokens: int = 8192,
    max_tokens: int | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Erase the class (LEACE) from the residual stream after each layer, at the final token, in the running model.

    Where a circuit's ablation does little but erasure does much, the class is carried by a direction that is spread
    over more neurons than the circuit holds. The targets and the split are those of
    :func:`ablation_study`; the erasers are fitted on the selection texts. The control
    erases, in the same way, ``n_random`` labellings that are permutations of the true one.

    Returns:
        One row per layer and target: task, layer, target, off_task, baseline, effect, random_mean, random_low,
        random_high, p, n_random.

    Raises:
        InputError: a layer that the model lacks, or a split that :func:`ablation_study` would refuse.
    """
    layers = range(model.n_layers) if layers is None else layers
    for layer in layers:
        if not 0 <= layer < model.n_layers:
            raise InputError(f"layers: {layer} is not a layer of {model.name}, which has 0 to {model.n_layers - 1}")
    if n_random < 1:
        raise InputError(f"n_random={n_random}: at least 1 random labelling is needed")
    split = split_task(task, selection, seed)
    encoded = encode(model, [e.text for e in task.examples], max_tokens=max_tokens)
    fitted = rows_of(encoded, split.fit)
    last = Site("resid", model.n_layers - 1)
    sites = [Site("resid", layer) for layer in layers]
    vectors = final_vectors(model, fitted, [*sites, last], batch_tokens=batch_tokens, max_tokens=max_tokens)
    probe = Probe.fit(vectors[last], split.fit_labels)
    rng = np.random.default_rng([seed, 2])
    labellings = [split.fit_labels, *(rng.permutation(split.fit_labels) for _ in range(n_random))]
    erasers: list[tuple[Site, Eraser] | None] = [None]
    for site in sites:
        whitening = Whitening(vectors[site])
        erasers += [(site, whitening.eraser(labels)) for labels in labellings]

    answers = answers_of(model, task, encoded)
    replicas = Replicas(
        model,
        [encoded[i] for i in split.evaluate],
        logits="final" if answers else None,
        batch_tokens=batch_tokens,
    )
    scores = replicas.run(Erasures(erasers, model.n_layers - 1), task_readout(probe, split.labels, answers), progress)
    records = []
    for place, site in enumerate(sites):
        first = 1 + place * len(labellings)
        for target, score in scores.items():
            mean = score.mean(1, dtype=np.float64)
            row = summary(target, mean[0], mean[first], mean[first + 1 : first + len(labellings)])
            records.append({"task": task.name, "layer": site.layer, **row})
    frame = pd.DataFrame.from_records(records)
    frame.attrs.update(forwards=replicas.forwards, evaluation_texts=len(split.evaluate))
    return frame


class Erasures:
    """Interventions of which each applies one eraser at one site (None: nothing anywhere)."""

    def __init__(self, erasers: Sequence[tuple[Site, Eraser] | None], last: int) -> None:
        self._erasers = erasers
        self._last = last

    def __len__(self) -> int:
        return len(self._erasers)

    def start(self, number: int) -> int:
        entry = self._erasers[number]
        return self._last if entry is None else entry[0].layer

    def edits(self, numbers: np.ndarray, examples: np.ndarray) -> dict[Site, Edit]:
        by_site: dict[Site, list[tuple[int, Eraser]]] = {}
        for row, number in enumerate(numbers):
            entry = self._erasers[number]
            if entry is not None:
                by_site.setdefault(entry[0], []).append((row, entry[1]))
        return {site: _erasing(members, len(numbers)) for site, members in by_site.items()}


def _erasing(members: Sequence[tuple[int, Eraser]], count: int) -> Edit:
    """The edit that applies to row ``e * count + r`` the eraser of r, if it has one; all of rank <= c."""
    width = len(members[0][1].mean)
    rank = max(eraser.left.shape[1] for _, eraser in members)
    left, right = np.zeros((count, width, rank)), np.zeros((count, rank, width))
    for row, eraser in members:
        left[row, :, : eraser.left.shape[1]] = eraser.left
        right[row, : eraser.right.shape[0]] = eraser.right
    maps = [torch.from_numpy(a).float() for a in (members[0][1].mean, left, right)]

    def edit(x: Tensor, chosen: Tensor) -> Tensor:
        mean, lefts, rights = (a.to(x.device) for a in maps)
        split = x.float().view(-1, count, *x.shape[1:])  # (E, R, T, D)
        scores = torch.einsum("ertd,rcd->ertc", split - mean, rights)
        erased = split - torch.einsum("ertc,rdc->ertd", scores, lefts)
        return torch.where(chosen[..., None], erased.view(x.shape).to(x.dtype), x)

    return edit
