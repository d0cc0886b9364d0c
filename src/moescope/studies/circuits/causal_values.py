"""What ablated neurons are set to, and which texts that, the circuit and the probe are learnt on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from moescope.capture.encode import Encoded
from moescope.errors import InputError
from moescope.tasks.folds import split_half
from moescope.types import Site, Task

if TYPE_CHECKING:
    from moescope.models import LoadedModel

AblationMode = Literal["zero", "mean", "resample", "patch"]
ABLATION_MODES: tuple[AblationMode, ...] = ("zero", "mean", "resample", "patch")


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


def split_task(task: Task, selection: np.ndarray | None, seed: int) -> Split:
    """Halve a task's texts by ``selection`` (True: learnt on; None: drawn by ``seed``), or say why that is no clean
    split.
    """
    labels = np.array([e.label for e in task.examples])
    groups = np.array([e.group for e in task.examples])
    chosen = split_half(labels, groups, seed) if selection is None else np.asarray(selection)
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


def rows_of(encoded: Encoded, rows: np.ndarray) -> Encoded:
    """The chosen texts."""
    return Encoded.from_ids([encoded[i] for i in rows])


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
            return x.mean(0, dtype=np.float64)
        if mode == "resample":
            return x[donors]
        means = class_means(x, split.fit_labels, split.n_classes)
        others = (means.sum(0) - means) / (split.n_classes - 1)  # (C, D): mean of the other classes
        return others[split.labels]

    return {site: torch.from_numpy(values(x)).float() for site, x in vectors.items()}


def plain_replacement(
    model: LoadedModel,
    mode: AblationMode,
    windows: np.ndarray,
    means: Mapping[Site, np.ndarray],
    rng: np.random.Generator,
    batch_tokens: int,
) -> dict[Site, Tensor]:
    """Values for running text in W windows (W, T) of other text: (D,), (W, D) or (W, T, D).

    ``means`` gives, per site, the (C, D) class means of the task, which ``patch`` sets in turn.
    """
    count, length = windows.shape
    sites = list(means)
    if mode == "zero":
        return {site: torch.zeros(model.width(site)) for site in sites}
    if mode == "patch":
        return {site: torch.from_numpy(means[site][np.arange(count) % len(means[site])]).float() for site in sites}
    found: dict[Site, list[Tensor]] = {site: [] for site in sites}
    handles = []
    try:
        for site in sites:

            def keep(x: Tensor, site: Site = site) -> None:
                found[site].append(x.detach().float().cpu())

            handles.append(model.tap_point(site).attach(keep))
        size = max(1, batch_tokens // length)
        with torch.no_grad():
            for start in range(0, count, size):
                ids = torch.from_numpy(windows[start : start + size].astype(np.int64)).to(model.device)
                model.body(input_ids=ids, attention_mask=torch.ones_like(ids))
    finally:
        for handle in handles:
            handle.remove()
    first = min(1, length - 1)  # the first token is not edited, nor does it count
    donors = torch.from_numpy(rng.permutation(count * (length - first)))
    result: dict[Site, Tensor] = {}
    for site in sites:
        tokens = torch.cat(found[site])  # (W, T, D)
        flat = tokens[:, first:].reshape(-1, tokens.shape[-1])
        if mode == "mean":
            result[site] = flat.mean(0)
        else:
            tokens[:, first:] = flat[donors].view(count, length - first, -1)
            result[site] = tokens
    return result
