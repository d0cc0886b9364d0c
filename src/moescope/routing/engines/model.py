"""What an engine's file does not say about the model that it served."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moescope.errors import InputError

_MOST = 2**16 - 1  # experts of a layer: a trace holds their numbers in 16 bits at most


@dataclass(frozen=True)
class EngineModel:
    """What an engine's dump does not say about the model."""

    n_experts: int
    layers: tuple[int, ...] | None = None
    """true numbers of the mixture-of-experts layers; None: the dump's layers are all of them, counted from 0. If the dump
    has a row for dense layers too, these are picked from it."""
    name: str = "unknown"
    top_k: int | None = None
    """experts of a token in a layer; None: told by the file, or by what cannot be: that an expert stands twice in a token"""

    def __post_init__(self) -> None:
        if not 1 <= self.n_experts <= _MOST:
            raise InputError(f"{self.n_experts} experts in a layer cannot be; give their number, 1 to {_MOST}", "experts")
        if self.top_k is not None and not 1 <= self.top_k <= self.n_experts:
            raise InputError(f"a token cannot have {self.top_k} of {self.n_experts} experts", "top_k")

    def pick(self, ids: np.ndarray, axis: int, where: str) -> tuple[np.ndarray, tuple[int, ...]]:
        """The expert layers of an array whose ``axis`` counts layers, and their numbers."""
        found = ids.shape[axis]
        layers = self.layers if self.layers is not None else tuple(range(found))
        if len(layers) == found:
            return ids, layers
        if layers and found > max(layers):
            return np.take(ids, layers, axis), layers
        raise InputError(
            f"{where}: has {found} layers, but {len(layers)} layer numbers were given; name the layers with experts"
        )
