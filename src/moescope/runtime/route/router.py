"""Name the task of a prompt from the first layers of a model that runs it anyway, or say that it is none of the known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import nnls
from sklearn.covariance import ledoit_wolf
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor

from moescope.errors import InputError
from moescope.models.reading import Reading
from moescope.runtime.choices import Source
from moescope.stats.conformal import conformal_p, conformal_size
from moescope.types import Site

if TYPE_CHECKING:
    from moescope.models import LoadedModel

RANK = 64  # directions kept: 64 products of the width are microseconds


class Named(NamedTuple):
    """What a prompt was taken for."""

    task: str | None
    """None: unknown"""
    nearest: str
    """the known task that it is most like, unknown or not"""
    p: float
    """the largest conformal p-value of belonging to a known task"""
    chances: tuple[float, ...] = ()
    """the conformal p-value of belonging to each of the router's tasks"""


@dataclass(frozen=True, eq=False)
class TaskRouter:
    """How like each known task a prompt is, and how strange held-out prompts of that task were.

    A prompt's features x (F,) are the mean over its tokens, without those that stand before every prompt and without the first,
    which often carries massive activations. They are standardised and projected, a = (x - mean) / scale @ basis (R,). The
    nearest task is that of linear discriminant analysis on a. Strangeness to a task is the Mahalanobis distance (Lee et al.
    2018, "A simple unified framework for detecting out-of-distribution samples and adversarial attacks") under a covariance of
    the task's own, with one more axis for the size of what the basis leaves of x. A mean over n tokens spreads less the larger
    n is, so along each axis the
    variance is base + per_token / n: a long text in the middle of a cloud of short ones is strange. Each task's strangeness
    has its own conformal p-value, and a prompt is unknown where the largest is at most ``rate``: of every known task, no
    more than that share of prompts is lost, on average over calibration sets.
    """

    tasks: tuple[str, ...]
    source: Source
    layer: int
    rate: float
    """share of prompts of each known task that may be called unknown"""
    mean: np.ndarray
    scale: np.ndarray
    basis: np.ndarray
    """(F, R) orthonormal"""
    weight: np.ndarray
    """(R, T) of the linear discriminant"""
    bias: np.ndarray
    """(T,)"""
    centres: np.ndarray
    """(T, R)"""
    axes: np.ndarray
    """(T, R, R) orthonormal: the principal axes of each task's spread"""
    base: np.ndarray
    """(T, R + 1) variance between prompts along each axis, and of all that lies outside the basis"""
    per_token: np.ndarray
    """(T, R + 1) variance between tokens, likewise"""
    outside: np.ndarray
    """(T, 2) mean and standard deviation of the logarithm of size outside the basis over variance there"""
    strangeness: np.ndarray
    """(n,) float64: of each calibration prompt to its own task, one prompt of each group"""
    owner: np.ndarray
    """(n,) int64: that task"""
    reading: Reading | None = None
    """how prompts were read; None: as the model reads them"""

    def read_by(self, model: LoadedModel) -> LoadedModel:
        """``model``, reading prompts as the router's were."""
        return model if self.reading is None else replace(model, reading=self.reading)

    def _project(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Inside the basis (N, R), and the squared size of what it leaves (N,)."""
        x = (np.asarray(features, dtype=np.float64) - self.mean) / self.scale
        inside = x @ self.basis
        return inside, np.maximum((x**2).sum(1) - (inside**2).sum(1), 0.0)

    def strange(self, features: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """(N, T) float64: how strange features (N, F), means over (N,) tokens, are to each task."""
        return self._strange(*self._project(features), tokens)

    def _strange(self, inside: np.ndarray, left: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        along = np.einsum("ntr,trs->nts", inside[:, None, :] - self.centres, self.axes)
        variance = self.base + self.per_token / np.asarray(tokens)[:, None, None]  # (N, T, R + 1)
        inner = (along**2 / variance[:, :, :-1]).sum(-1)
        outer = (_log_ratio(left[:, None], variance[:, :, -1]) - self.outside[:, 0]) / self.outside[:, 1]
        return np.asarray(inner + outer**2)

    def name(self, features: np.ndarray, tokens: np.ndarray) -> list[Named]:
        """The task of each row of features (N, F), each a mean over so many tokens (N,)."""
        inside, left = self._project(features)
        nearest = (inside @ self.weight + self.bias).argmax(1)
        strange = self._strange(inside, left, tokens)
        chances = [conformal_p(self.strangeness[self.owner == t], strange[:, t]) for t in range(len(self.tasks))]
        return [
            Named(self.tasks[t] if max(row) > self.rate else None, self.tasks[t], max(row), tuple(row))
            for t, row in zip(nearest, np.transpose(chances).tolist(), strict=True)
        ]


@dataclass(frozen=True)
class KnownPrompts:
    """Prompts of known tasks: features (N, F), how many tokens each is a mean of, task codes 0..T-1 and groups, all (N,)."""

    x: np.ndarray
    tokens: np.ndarray
    task: np.ndarray
    groups: np.ndarray


def fit_router(
    train: KnownPrompts, calibration: KnownPrompts, names: Sequence[str], *, source: Source, layer: int, rate: float
) -> TaskRouter:
    """Fit on ``train``, and record how strange ``calibration`` is, which shares no group with it.

    Where several calibration rows share a group one of them counts, so that the units are exchangeable: drawn at random, for
    the first may be of another kind than the rest (the right answer to a question, say).

    Raises:
        InputError: a task has too few calibration groups for ``rate``.
    """
    order = np.random.default_rng(0).permutation(len(calibration.groups))
    one = order[np.unique(calibration.groups[order], return_index=True)[1]]
    held, tokens, owner = calibration.x[one], calibration.tokens[one], calibration.task[one]
    for t, name in enumerate(names):
        check_calibration(name, int((owner == t).sum()), rate)
    x = np.asarray(train.x, dtype=np.float64)
    mean, scale = x.mean(0), x.std(0)
    scale[scale < 1e-12] = 1.0
    x = (x - mean) / scale
    basis = _basis(x, train.task, len(names))
    inside = x @ basis
    left = (x**2).sum(1) - (inside**2).sum(1)
    discriminant = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(inside, train.task)
    weight, bias = discriminant.coef_.T, discriminant.intercept_
    if len(names) == 2:  # one column of log-odds: task 0 gets none
        weight, bias = np.column_stack([np.zeros(len(weight)), weight[:, 0]]), np.array([0.0, bias[0]])
    centres, axes, variances, outside = [], [], [], []
    for t in range(len(names)):
        mine = train.task == t
        centre = inside[mine].mean(0)
        axes.append(np.linalg.eigh(ledoit_wolf(inside[mine])[0])[1])
        squared = np.column_stack([((inside[mine] - centre) @ axes[-1]) ** 2, left[mine]])
        variances.append(_variances(squared, train.tokens[mine]))
        base, per_token = variances[-1]
        ratio = _log_ratio(left[mine], base[-1] + per_token[-1] / train.tokens[mine])
        outside.append((ratio.mean(), max(float(ratio.std()), 1e-3)))
        centres.append(centre)
    parts = {"mean": mean, "scale": scale, "basis": basis, "weight": weight, "bias": bias}
    parts |= {"centres": np.stack(centres), "axes": np.stack(axes), "outside": np.array(outside)}
    parts |= {"base": np.stack([v[0] for v in variances]), "per_token": np.stack([v[1] for v in variances])}
    options: dict[str, Any] = {"tasks": tuple(names), "source": source, "layer": layer, "rate": rate, **parts}
    blank = TaskRouter(**options, strangeness=np.zeros(0), owner=np.zeros(0, np.int64))
    strangeness = blank.strange(held, tokens)[np.arange(len(held)), owner]
    return TaskRouter(**options, strangeness=strangeness, owner=owner.astype(np.int64))


def check_calibration(task: str, have: int, rate: float) -> None:
    """Whether ``have`` calibration groups of a task are enough for ``rate``.

    Raises:
        InputError: they are too few.
    """
    need = conformal_size(rate)
    if have < need:
        least = np.ceil(1e3 / (have + 1)) / 1e3
        raise InputError(
            f"a rate of {rate:g} needs at least {need} calibration groups, task {task} has {have}: give more prompts, or "
            f"{least:g}",
            "unknown",
        )


def _basis(x: np.ndarray, task: np.ndarray, n_tasks: int) -> np.ndarray:
    """(F, R) orthonormal: the directions between the tasks' means, then those in which prompts spread most."""
    means = np.stack([x[task == t].mean(0) for t in range(n_tasks)])
    between = np.linalg.svd(means - means.mean(0), full_matrices=False)[2][: n_tasks - 1].T
    rest = x - (x @ between) @ between.T
    spread = np.linalg.svd(rest, full_matrices=False)[2][: max(0, min(RANK, *x.shape) - (n_tasks - 1))].T
    return np.linalg.qr(np.column_stack([between, spread]))[0]


def _log_ratio(left: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Where the basis holds all there is, nothing is left and the ratio is one."""
    return np.log((left + 1e-8) / (variance + 1e-8))


def _variances(squared: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(A,) and (A,) for squared deviations (n, A): the non-negative least squares of variance = base + per_token / tokens.

    Rows are weighted by their tokens, since a variance's own error grows with it. Directions without spread get a floor.
    """
    weight = np.sqrt(tokens.astype(np.float64))
    design = np.column_stack([weight, weight / tokens])
    found = np.array([nnls(design, column * weight)[0] for column in squared.T])  # (A, 2)
    floor = 1e-3 * max(float(squared[:, :-1].mean()), 1e-8)
    return found[:, 0] + floor, found[:, 1]


def source_sites(model: LoadedModel, source: Source, layer: int) -> tuple[Site, ...]:
    """The sites whose tensors a router reads.

    Raises:
        InputError: no such layer, or routing is asked of a layer that has no router.
    """
    if not 0 <= layer < model.n_layers:
        raise InputError(f"layer {layer} does not exist: {model.name} has layers 0 to {model.n_layers - 1}", "layer")
    if source == "residual":
        return (Site("resid", layer),)
    sites = tuple(site for site in model.sites("router") if site.layer <= layer)
    if not sites:
        kind = "is dense" if not model.sites("router") else f"has no router up to layer {layer}"
        raise InputError(f"no routing to read: {model.name} {kind}; use features=residual or a later layer", "features")
    return sites


def weighted_sum(source: Source, tensor: Tensor, weight: Tensor) -> Tensor:
    """float32 (B, W): sum over tokens of a site's tensor (B, T, W), tokens weighted 0 or 1 by (B, T)."""
    values = tensor.float().softmax(-1) if source == "routing" else tensor.float()
    if not bool(weight.all()):  # not a product with zero: what stands at a padded place may be NaN
        values = values.masked_fill(weight[:, :, None] == 0, 0.0)
    return torch.einsum("btw->bw", values)
