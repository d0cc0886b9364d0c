"""What a variant loses on texts: nats a token, and how far its predictions are from the whole model's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from moescope.capture.encode import Encoded
from moescope.intervene.text_loss import Reference
from moescope.models.layered import Edit, Layered, Pass, whole

Counter = Callable[[int, int], None]
_STATES = 1 << 26
"""bytes of hidden states that are held at least"""
_LOGITS = 1 << 24
"""logits that are held at once, of one model"""


class Judged:
    """N texts that judge the variants of one model."""

    def __init__(self, layered: Layered, encoded: Encoded, batch_tokens: int) -> None:
        self._layered, self._batch_tokens = layered, batch_tokens
        self._texts = [torch.from_numpy(row.astype(np.int64)) for row in encoded]
        self.final: list[Tensor] = []
        """what leaves the whole model's last layer"""
        self.clean = np.zeros(len(encoded))
        """(N,): the whole model's loss on each text, nats a token"""

    @cached_property
    def _begun(self) -> Pass:
        return self._layered.begin(self._texts, self._batch_tokens)

    def whole(self, report: Counter | None = None) -> list[Tensor]:
        """:attr:`final`, computed."""
        return self._layered.sweep(self._begun, [whole], report)[0]

    def losses(self) -> np.ndarray:
        """:attr:`clean`, computed."""
        return self._read(self._layered, [self.final])[0, :, 0]

    def added(self, edits: Sequence[Edit], report: Counter | None = None, *, alone: bool = False) -> np.ndarray:
        """float64 (V, N, 2): loss added and KL(whole || variant), nats a token, of each variant on each text.

        Args:
            alone: one variant a sweep: it changes the weights.
        """
        return self._added(self._layered, self._begun, edits, report, 1 if alone else len(edits))

    def of(self, other: Layered, report: Counter | None = None) -> np.ndarray:
        """float64 (1, N, 2): the same of another model that reads the same tokens."""
        return self._added(other, other.begin(self._texts, self._batch_tokens), [whole], report, 1)

    def _added(self, layered: Layered, begun: Pass, edits: Sequence[Edit], report: Counter | None, most: int) -> np.ndarray:
        room = max(_STATES, layered.layer_bytes // 4)
        step = max(1, min(most, room // max(1, begun.nbytes)))
        parts = []
        for start in range(0, len(edits), step):
            parts.append(self._read(layered, layered.sweep(begun, edits[start : start + step])))
            if report is not None:
                report(min(start + step, len(edits)), len(edits))
        return np.concatenate(parts) - np.stack([self.clean, np.zeros_like(self.clean)], -1)

    def _read(self, layered: Layered, variants: Sequence[Sequence[Tensor]]) -> np.ndarray:
        """(V, N, 2), loss and KL, from what left the last layer: each text's mean over its tokens after the first."""
        found = np.zeros((len(variants), len(self._texts), 2))
        begun = self._begun
        vocabulary = int(layered.model.config.get_text_config().vocab_size)
        with torch.no_grad(), layered.head() as head:
            for i, (rows, ids) in enumerate(zip(begun.rows, begun.ids, strict=True)):
                step = max(1, _LOGITS // (vocabulary * ids.shape[1]))
                for start in range(0, len(ids), step):
                    part = slice(start, start + step)
                    reference = Reference(head(self.final[i][part]), ids[part])
                    for v, states in enumerate(variants):
                        losses, kl, _ = reference.beside(head(states[i][part]))
                        both = torch.stack([losses, kl], -1).double().mean(1)
                        found[v, rows[part].numpy()] = both.cpu().numpy()
        return found
