"""What ablated neurons are set to on a task's texts, and which texts that, the circuit and the probe are learnt on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from moescope.errors import InputError
from moescope.types import Site, Task

AblationMode = Literal["zero", "mean", "resample", "patch"]


@dataclass(frozen=True)
class Split:
    """Which texts a circuit and its probe were learnt on, and which it is judged by."""

    fit: np.ndarray
    """int64 (F,) rows of the task"""
    evaluate: np.ndarray
    """int64 (E,)"""
    fit_labels: np.ndarray
    labels: np.ndarray
    """of the evaluated rows"""
    n_classes: int


def split_task(task: Task, selection: np.ndarray) -> Split:
    """Halve a task's texts by ``selection`` (bool (N,), True: learnt on), or say why that is no clean split."""
    labels = np.array([e.label for e in task.examples])
    groups = np.array([e.group for e in task.examples])
    chosen = np.asarray(selection)
    if chosen.shape != labels.shape or chosen.dtype != bool:
        raise InputError(f"selection: {chosen.dtype} of shape {chosen.shape}; give one bool per text, ({len(labels)},)")
    for name, part in (("selected", chosen), ("other", ~chosen)):
        absent = set(range(len(task.classes))) - set(labels[part].tolist())
        if absent:
            raise InputError(
                f"selection: the {name} texts of {task.name} have no {task.classes[min(absent)]!r}; "
                "split so that both sides have every class"
            )
    both = np.intersect1d(groups[chosen], groups[~chosen])
    if len(both):
        raise InputError(f"selection: group {both[0]!r} of {task.name} is on both sides; keep the rows of a group together")
    fit, evaluate = np.flatnonzero(chosen), np.flatnonzero(~chosen)
    return Split(fit, evaluate, labels[fit], labels[evaluate], len(task.classes))


def class_means(x: np.ndarray, labels: np.ndarray, n_classes: int) -> np.ndarray:
    """float64 (C, D) means of x (N, D)."""
    return np.stack([x[labels == c].mean(0, dtype=np.float64) for c in range(n_classes)])


def task_replacement(
    mode: AblationMode, vectors: Mapping[Site, np.ndarray], split: Split, rng: np.random.Generator
) -> dict[Site, Tensor]:
    """Values from the selection texts' vectors (F, D) per site: (D,) or, one row per evaluated text, (E, D)."""
    donors = rng.integers(len(split.fit), size=len(split.labels))  # one donor a text, the same at every site

    def values(x: np.ndarray) -> np.ndarray:
        if mode == "zero":
            return np.zeros(x.shape[1])
        if mode == "mean":
            return np.asarray(x.mean(0, dtype=np.float64))
        if mode == "resample":
            return x[donors]
        means = class_means(x, split.fit_labels, split.n_classes)
        others = (means.sum(0) - means) / (split.n_classes - 1)  # (C, D): mean of the other classes
        return np.asarray(others[split.labels])

    return {site: torch.from_numpy(values(x)).float() for site, x in vectors.items()}


def change_sizes(mode: AblationMode, vectors: Mapping[Site, np.ndarray], split: Split) -> dict[Site, np.ndarray]:
    """For each site (width,): root mean square over the selection texts of how much ``mode`` changes each coordinate."""

    def size(x: np.ndarray) -> np.ndarray:
        x = x.astype(np.float64)
        if mode == "mean":
            return x.std(0)
        if mode == "resample":  # the difference of two independent draws
            return np.sqrt(2) * x.std(0)
        if mode == "zero":
            return np.sqrt(np.square(x).mean(0))
        means = class_means(x, split.fit_labels, split.n_classes)
        others = (means.sum(0) - means) / (split.n_classes - 1)
        return np.asarray(np.sqrt(np.square(x - others[split.fit_labels]).mean(0)))

    return {site: size(x) for site, x in vectors.items()}
