"""What the heads are fitted on: each text's residual stream after every layer, at its final token and as a mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moescope.capture.activations import read_into
from moescope.capture.encode import Encoded, encode
from moescope.capture.position import Position
from moescope.capture.spread import Progress
from moescope.types import Site

if TYPE_CHECKING:
    from moescope.models import LoadedModel


@dataclass(frozen=True)
class ExitFeatures:
    """N texts at L layers of width D."""

    final: np.ndarray
    """(N, L, D) float32: the final token's residual stream after each layer"""
    mean: np.ndarray
    """(N, L, D) float32: the mean over the text's own tokens"""

    def rows(self, rows: np.ndarray) -> ExitFeatures:
        return ExitFeatures(self.final[rows], self.mean[rows])


def read_features(
    model: LoadedModel, texts: Sequence[str] | Encoded, *, max_tokens: int | None, batch_tokens: int, progress: Progress | None
) -> ExitFeatures:
    """One pass of the model over the texts.

    Raises:
        InputError: an empty text, or a value that is not finite.
    """
    sites = [Site("resid", layer) for layer in range(model.n_layers)]
    encoded = encode(model, texts, max_tokens=max_tokens)
    final, mean = np.empty((2, len(encoded), len(sites), model.d_model), np.float32)
    arrays: dict[Position, np.ndarray] = {"final": final, "mean": mean}
    out = {(site, position): array[:, layer] for position, array in arrays.items() for layer, site in enumerate(sites)}
    read_into(out, model, encoded, batch_tokens=batch_tokens, progress=progress)
    return ExitFeatures(final, mean)
