"""How often each text's tokens are sent to each expert: a trace's counts without the trace, for texts by the thousand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from moescope.capture.activations import padded_batches
from moescope.capture.encode import Encoded
from moescope.capture.session import CaptureSession
from moescope.models.experts import mixes_tokens, recording

if TYPE_CHECKING:
    from moescope.models import LoadedModel


@torch.no_grad()
def routing_counts(model: LoadedModel, encoded: Encoded, *, batch_tokens: int = 8192) -> np.ndarray:
    """float64 (N, L, max(E)): tokens of each text that each expert of each layer received, padding left out.

    Equal to ``trace_prompts(...).counts()`` of the same token ids.

    Raises:
        InputError: the model is dense.
    """
    with recording(model, weights=False) as recorder:
        width = max(layer.n_experts for layer in recorder.layers)
        counts = np.zeros((len(encoded), len(recorder.layers), width))
        if mixes_tokens(model, recorder.layers):
            batch_tokens = 1  # a text by itself, however long
        for batch in padded_batches(model, encoded, batch_tokens, "right"):
            recorder.steps.clear()
            CaptureSession(model, (), stop=False).run(batch.ids, batch.mask)
            real = batch.mask.flatten()
            owner = torch.arange(len(batch.rows)).repeat_interleave(batch.mask.shape[1])[real]
            for place, (layer, dispatch) in enumerate(zip(recorder.layers, recorder.steps[0], strict=True)):
                ids = dispatch.ids.cpu()[real].long()  # (n, K)
                used = (ids >= 0) & (ids < layer.n_experts)  # a slot without expert holds 255 or -1
                flat = (owner[:, None] * width + ids)[used]
                counts[batch.rows, place] = torch.bincount(flat, minlength=len(batch.rows) * width).view(-1, width).numpy()
    return counts
