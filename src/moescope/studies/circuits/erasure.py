"""The direction-level control: erase everything linear about the class at one layer, and see what is left."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from moescope.intervene.edits import Edit
from moescope.intervene.leace import Eraser, Whitening
from moescope.stats import permute_labels
from moescope.studies.circuits.spread import between
from moescope.studies.circuits.trial import Trial
from moescope.study.verdicts import beyond_draws
from moescope.types import Site

if TYPE_CHECKING:
    from moescope.models import LoadedModel


class ClassErasure:
    """The class erased (LEACE) from the residual stream after each layer, at the final token, and permutations of it, as
    interventions (number 0: none).

    Where a circuit's ablation does little but erasure does much, the class is carried by a direction that is spread over
    more neurons than the circuit holds. The erasers are fitted on the trial's selection texts. The control erases, in the
    same way, ``n_random`` labellings that are the true one permuted within groups.
    """

    def __init__(self, model: LoadedModel, trial: Trial, layers: Sequence[int], *, n_random: int, seed: int = 0) -> None:
        self._trial, self._layers = trial, list(layers)
        rng = np.random.default_rng([seed, 2])
        fit_labels = trial.split.fit_labels
        labellings = [fit_labels, *(permute_labels(fit_labels, trial.fit_groups, rng) for _ in range(n_random))]
        self._each = len(labellings)
        self._moved = [float((labels != fit_labels).mean()) for labels in labellings[1:]]
        erasers: list[tuple[Site, Eraser] | None] = [None]
        for site in (Site("resid", layer) for layer in layers):
            whitening = Whitening(trial.vectors[site])
            erasers += [(site, whitening.eraser(labels)) for labels in labellings]
        self.sets = Erasures(erasers, model.n_layers - 1)

    def proof(self) -> dict[str, Any]:
        """That the permuted labellings are not the true one."""
        return {"differs": max(self._moved) > 0, "evidence": f"{np.mean(self._moved):.1%} of the labels moved on average"}

    def table(self, scores: Mapping[str, np.ndarray]) -> pd.DataFrame:
        """The rows of the table ``erasure``, from the scores (S, N) of every intervention."""
        rows = []
        for target, score in scores.items():
            erased = score[1:].reshape(len(self._layers), self._each, -1)
            rows += erasure_rows(self._trial.task.name, self._layers, target, score[0], erased, self._trial.groups)
        return pd.DataFrame.from_records(rows)


def erasure_rows(
    task: str, layers: Sequence[int], target: str, clean: np.ndarray, erased: np.ndarray, groups: np.ndarray
) -> list[dict[str, Any]]:
    """Rows of the table ``erasure`` from scores (N,) and, for each layer the class and P permutations erased, (L, 1 + P, N)."""
    clean, erased = np.asarray(clean, dtype=np.float64), np.asarray(erased, dtype=np.float64)
    draws = erased[:, 1:].mean(2) - clean.mean()  # (layers, permutations)
    worst = draws.min(0)  # of the layers, under each permutation
    worst_low, worst_high = (float(q) for q in np.quantile(worst, [0.025, 0.975]))
    rows = []
    for layer, scores, null in zip(layers, erased[:, 0], draws, strict=True):
        found = between(scores, clean, groups)
        low, high = (float(q) for q in np.quantile(null, [0.025, 0.975]))
        rows.append(
            {
                "task": task,
                "layer": layer,
                "target": target,
                "baseline": float(clean.mean()),
                "effect": found.value,
                "low": found.low,
                "high": found.high,
                "random_mean": float(null.mean()),
                "random_low": low,
                "random_high": high,
                "p": beyond_draws(found.value, null, "", 0.0).p,
                "worst_mean": float(worst.mean()),
                "worst_low": worst_low,
                "worst_high": worst_high,
                "p_worst": beyond_draws(found.value, worst, "", 0.0).p,
                "n_random": len(null),
            }
        )
    return rows


class Erasures:
    """Interventions of which each applies one eraser at one site (None: nothing anywhere)."""

    def __init__(self, erasers: Sequence[tuple[Site, Eraser] | None], last: int) -> None:
        self._erasers = erasers
        self._last = last

    def __len__(self) -> int:
        return len(self._erasers)

    def key(self, number: int) -> Hashable:
        return () if self._erasers[number] is None else number

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
