"""Erase a class from a vector with the smallest possible change: LEACE.

Belrose, Schneider-Joseph, Ravfogel, Cotterell, Raff and Biderman, "LEACE: Perfect linear concept erasure in closed
form", NeurIPS 2023, theorem 4.3. No linear predictor can beat a constant on x exactly when the cross-covariance of x
with the class is zero. Of all affine maps that make it so, the one with the least mean squared change is

    r(x) = x - W⁺ P W (x - E x),    W = (Σ_xx^½)⁺,    P the orthogonal projection onto the columns of W Σ_xz.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from sklearn.covariance import ledoit_wolf_shrinkage

from moescope.errors import InputError


@dataclass(frozen=True)
class Eraser:
    """The affine map ``x - left @ right @ (x - mean)`` of rank c <= classes - 1."""

    mean: np.ndarray
    """float64 (D,)"""
    left: np.ndarray
    """float64 (D, c)"""
    right: np.ndarray
    """float64 (c, D)"""

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Erase the class from rows x (N, D); float64 (N, D)."""
        centred = np.asarray(x, dtype=np.float64) - self.mean
        return np.asarray(centred - (centred @ self.right.T) @ self.left.T + self.mean)


class Whitening:
    """The part of LEACE that does not depend on the classes, kept so that many labellings of one data set are cheap.

    Args:
        x: (N, D) vectors.
        shrinkage: share of a multiple of the identity mixed into Σ_xx. Any share keeps the erasure exact on ``x``; with
            N not far above D some is needed for it to hold on other rows, because the whitening otherwise blows up
            directions in which ``x`` hardly varies. ``"auto"`` is Ledoit and Wolf (2004). 0 gives the formula above.

    Raises:
        InputError: fewer than two rows, or values that are not finite.
    """

    def __init__(self, x: np.ndarray, *, shrinkage: float | Literal["auto"] = "auto") -> None:
        x = np.asarray(x, dtype=np.float64)
        if x.ndim != 2 or len(x) < 2 or not np.isfinite(x).all():
            raise InputError(f"activations of shape {x.shape}: erasure needs at least two rows of finite numbers")
        self.mean = x.mean(0)
        self._centred = x - self.mean
        share = float(ledoit_wolf_shrinkage(self._centred, assume_centered=True)) if shrinkage == "auto" else shrinkage
        if not 0 <= share <= 1:
            raise InputError(f"shrinkage={shrinkage}: give a number from 0 to 1 or 'auto'")
        covariance = self._centred.T @ self._centred / len(x)
        size = len(covariance)
        covariance = (1 - share) * covariance + share * (np.trace(covariance) / size) * np.eye(size)
        values, vectors = np.linalg.eigh(covariance)
        kept = values > max(x.shape) * np.finfo(np.float64).eps * max(values[-1], 0.0)
        root = np.sqrt(values[kept])
        self._whiten = (vectors[:, kept] / root) @ vectors[:, kept].T
        self._colour = (vectors[:, kept] * root) @ vectors[:, kept].T

    def eraser(self, labels: np.ndarray) -> Eraser:
        """The LEACE map for integer ``labels`` (N,) of the rows given at construction."""
        labels = np.asarray(labels)
        if labels.shape != (len(self._centred),):
            raise InputError(f"labels of shape {labels.shape} for {len(self._centred)} rows: give one per row")
        one_hot = (labels[:, None] == np.unique(labels)[None]).astype(np.float64)
        cross = self._centred.T @ (one_hot - one_hot.mean(0)) / len(labels)  # (D, C)
        basis, strength, _ = np.linalg.svd(self._whiten @ cross, full_matrices=False)
        # whitened, these are correlations: what stays below 1e-9 is rounding, such as the last of C centred columns
        basis = basis[:, strength > 1e-9]
        return Eraser(self.mean, self._colour @ basis, basis.T @ self._whiten)
