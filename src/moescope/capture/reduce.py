"""Per-text moments of a (B, T, D) tensor, taken while the model runs.

All vectors of a text share its class and fold, so a batch is summed up per text first: two float32 passes over the
tensor, each a matrix product with the token weights, in blocks that stay in the cache. Only the (B, D) results go to
float64. The squares are taken about the text's own mean, so an offset common to all tokens costs no precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from moescope.capture.activations import vector_reducer
from moescope.capture.encode import Batch
from moescope.capture.position import Position, weights
from moescope.types import Site

_BLOCK = 1 << 18  # elements: 1 MiB of float32, within the level-2 cache of one core or nearly so


class RowMoments(NamedTuple):
    """Moments of each text of a batch, on the CPU."""

    n: torch.Tensor
    """int64 (B,): vectors of the text"""
    mean: torch.Tensor
    """float32 (B, S, D)"""
    m2: torch.Tensor
    """float32 (B, S, D): sum of squared deviations from the text's mean"""


class RowReducer:
    """A reduction for :meth:`CaptureSession.run`, and :meth:`collect` to put its results together."""

    def __init__(self, batch: Batch, position: Position, skip_special: bool | None) -> None:
        self._single = None if position == "all" else vector_reducer(batch, position, skip_special)
        self._weight = weights(batch, position, skip_special) if position == "all" else torch.ones(len(batch.rows), 1)
        self._padded = not bool(self._weight.bool().all())
        self._on: dict[torch.device, torch.Tensor] = {self._weight.device: self._weight}

    def __call__(self, site: Site, tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        if self._single is not None:
            return self._single(site, tensor), None
        if tensor.device not in self._on:
            self._on[tensor.device] = self._weight.to(tensor.device)
        weight = self._on[tensor.device]
        parts = []
        step = max(1, _BLOCK // tensor[0].numel()) if tensor.device.type == "cpu" else len(tensor)
        for start in range(0, len(tensor), step):
            parts.append(_moments(tensor[start : start + step], weight[start : start + step], self._padded))
        return torch.cat([mean for mean, _ in parts]), torch.cat([m2 for _, m2 in parts])

    def collect(self, seen: dict[Site, tuple[torch.Tensor, torch.Tensor | None]], sites: Sequence[Site]) -> RowMoments:
        """One result from what each site gave."""
        mean = torch.stack([seen[site][0].cpu() for site in sites], dim=1)
        squares = [seen[site][1] for site in sites]
        m2 = torch.stack([s.cpu() for s in squares if s is not None], dim=1) if self._single is None else None
        return RowMoments(self._weight.sum(1).long(), mean, torch.zeros_like(mean) if m2 is None else m2)


def _moments(tensor: torch.Tensor, weight: torch.Tensor, padded: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and sum of squared deviations over the tokens of weight 1: two float32 (B, D) from (B, T, D) and (B, T)."""
    values = tensor.float()
    if padded:  # not a product with zero: what stands at a padded place may be NaN or huge
        values = values.masked_fill(weight[:, :, None] == 0, 0.0)
    total = weight.sum(1)[:, None]  # (B, 1)
    row = weight[:, None, :]  # (B, 1, T)
    mean = torch.bmm(row, values)[:, 0] / total
    centred = values - mean[:, None, :]
    # second pass of the mean: what rounding left over in the first
    rest = torch.bmm(row, centred)[:, 0] / total
    m2 = torch.bmm(row, centred.square_())[:, 0] - total * rest.square()
    return mean + rest, m2.clamp_(min=0.0)
