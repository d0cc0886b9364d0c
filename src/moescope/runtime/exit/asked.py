"""A batch on its way through the layers, and what a classifier's heads say of the rows that are still there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from moescope.capture.position import token_index, weights
from moescope.runtime.exit.heads import Heads

if TYPE_CHECKING:
    from moescope.capture.encode import Batch
    from moescope.models import LoadedModel


class Passing:
    """The rows of a batch (padding on the right) that have not left yet."""

    def __init__(self, batch: Batch, device: torch.device, *, pooled: bool) -> None:
        self.rows = np.arange(len(batch.rows))
        """(n,) int64: of the batch, in ascending order"""
        ends = batch.mask.numpy().sum(1) - 1
        if (ends < 0).any():
            token_index(batch, "final", None)  # which names the text
        self.at = torch.from_numpy(ends).to(device)
        """(n,) int64: their final token"""
        pooling = weights(batch, "mean", None).to(device) if pooled else None
        self.pooling = None if pooling is None else pooling / pooling.sum(1, keepdim=True)
        """(n, T) float32: of the mean over their own tokens; None where no head reads it"""

    def keep(self, stay: np.ndarray) -> Tensor:
        """Only rows where ``stay`` (n,) bool; returns their positions among those before, as a :class:`Stepper` takes them."""
        self.rows = self.rows[stay]
        places = torch.from_numpy(np.flatnonzero(stay)).to(self.at.device)
        if len(places):
            self.at = self.at[places]
            self.pooling = self.pooling[places] if self.pooling is not None else None
        return places


class Asked:
    """A classifier's heads, where the model is.

    Few values leave the device at a check, and a circuit head is a dozen numbers: what decides runs in NumPy, whose calls
    cost a tenth of a tensor's. At batch 1 a check would otherwise cost a twentieth of a layer of 3.5 million weights.
    """

    def __init__(self, model: LoadedModel, heads: Heads, threshold: float, checks: Iterable[int]) -> None:
        self._kind = heads.kind
        self.pooled = self._kind == "pooled"
        with np.errstate(divide="ignore"):
            self.most = np.float32(1) / np.float32(threshold)
            """a row leaves where its total of :meth:`odds` is no more: 1 over a confidence that suffices"""
        self.checks = frozenset((*checks, model.n_layers - 1))
        device = model.device
        self._weight = {i: heads.weight[i].T for i in self.checks}  # of circuit heads; others read where the model is
        self._bias = {i: heads.bias[i] for i in self.checks}
        self._on_device: dict[int, tuple[Tensor, Tensor]] = {}
        self._read: dict[int, tuple[slice, Tensor]] = {}  # layer -> coordinates that some circuit head wants, and where they go
        self._place: dict[int, np.ndarray] = {}  # check -> where its coordinates are among all that are read
        self._size = 0
        self._values = np.empty((0, 0), np.float32)
        if heads.columns is None:
            self._on_device = {
                i: (torch.from_numpy(heads.bias[i]).to(device), torch.from_numpy(heads.weight[i]).T.contiguous().to(device))
                for i in self.checks
            }
        else:
            wanted = np.unique(np.concatenate([heads.columns[i] for i in self.checks]))
            width, self._size = model.d_model, len(wanted)
            for layer in np.unique(wanted // width):
                low, high = np.searchsorted(wanted, [layer * width, (layer + 1) * width])
                self._read[int(layer)] = slice(low, high), torch.from_numpy(wanted[low:high] % width).to(device)
            self._place = {i: np.searchsorted(wanted, heads.columns[i]) for i in self.checks}

    def begin(self, n: int) -> None:
        """A new batch of ``n`` rows."""
        self._values = np.empty((n, self._size), np.float32)

    def see(self, layer: int, hidden: Tensor, passing: Passing) -> None:
        """Keep what some circuit head reads of this layer's residual stream (n, T, D)."""
        if layer in self._read:
            span, columns = self._read[layer]
            self._values[passing.rows, span] = _final(hidden, passing.at, columns)

    def odds(
        self, layer: int, hidden: Tensor, passing: Passing, which: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(m, C) and their sum (m,), float32: the odds of each class against the likeliest, which has 1.

        Args:
            which: (m,) int64 positions among the rows still there; None: all of them.
        """
        rows = passing.rows if which is None else passing.rows[which]
        if self._kind == "circuit":
            said = self._values[rows[:, None], self._place[layer]] @ self._weight[layer] + self._bias[layer]
        else:
            at, pooling = passing.at, passing.pooling
            if which is not None:
                places = torch.from_numpy(which).to(hidden.device)
                hidden, at, pooling = hidden[places], at[places], None if pooling is None else pooling[places]
            if self.pooled:
                assert pooling is not None
                x = torch.bmm(pooling[:, None, : hidden.shape[1]], hidden.float())[:, 0]
            else:
                x = hidden[torch.arange(len(rows), device=hidden.device), at].float()
            bias, weight = self._on_device[layer]
            said = torch.addmm(bias, x, weight).cpu().numpy()
        odds = np.exp(said - said.max(1, keepdims=True))
        return odds, odds.sum(1)


def _final(hidden: Tensor, at: Tensor, columns: Tensor) -> np.ndarray:
    """(n, F) float32: coordinates ``columns`` (F,) of each row's token ``at`` (n,), of (n, T, D)."""
    if hidden.device.type == "cpu" and hidden.dtype == torch.float32:
        return np.asarray(hidden.numpy()[np.arange(len(at))[:, None], at.numpy()[:, None], columns.numpy()])
    rows = torch.arange(len(at), device=hidden.device)
    return np.asarray(hidden[rows[:, None], at[:, None], columns].float().cpu().numpy())
