"""What the heads are fitted on: each text's residual stream after every layer, at its final token and as a mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from moescope.capture import capture
from moescope.capture.activations import check_finite, padded_batches, vector_reducer
from moescope.capture.encode import Encoded, encode
from moescope.types import Site

if TYPE_CHECKING:
    from moescope.models import LoadedModel

Progress = Callable[[int, int], None]


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
    found = np.empty((2, len(encoded), len(sites), model.d_model), np.float32)
    done = 0
    with capture(model, sites) as session:
        for batch in padded_batches(model, encoded, batch_tokens, "right"):
            reducers = [vector_reducer(batch, position, None) for position in ("final", "mean")]

            def reduce(
                site: Site, tensor: torch.Tensor, reducers: list[Callable[..., torch.Tensor]] = reducers
            ) -> torch.Tensor:
                return torch.stack([r(site, tensor) for r in reducers]).cpu()

            seen = session.run(batch.ids, batch.mask, reduce=reduce)
            both = torch.stack([seen[site] for site in sites], dim=2)  # (2, B, L, D)
            for part in both:
                check_finite(part, batch.numbers, sites, model)
            found[:, batch.rows] = both.numpy()
            done += len(batch.rows)
            if progress is not None:
                progress(done, len(encoded))
    return ExitFeatures(found[0], found[1])
