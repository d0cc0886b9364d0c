"""Which experts the next layer will need, guessed one layer early by that layer's own router."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch

from moescope.capture.activations import padded_batches
from moescope.capture.encode import Encoded
from moescope.capture.session import CaptureSession
from moescope.errors import InputError
from moescope.models.experts import mixes_tokens, recording
from moescope.models.experts.scores import Meaning, listen_scores
from moescope.routing.trace import RoutingTrace
from moescope.study.run import Counter

if TYPE_CHECKING:
    from moescope.models import LoadedModel
    from moescope.models.experts import ExpertLayer


@torch.no_grad()
def guessed_ids(
    model: LoadedModel, trace: RoutingTrace, *, batch_tokens: int = 8192, progress: Counter | None = None
) -> np.ndarray:
    """(T, L, K) as ``trace.ids``: the experts that each layer's router scores highest on what the experts of the layer with
    experts before it were given; none in the first. A bias or limit beside the scores is left aside.

    Raises:
        InputError: the trace has no token ids, begins inside a text or is of another model, or a router gives no scores.
    """
    if trace.tokens is None:
        raise InputError("the trace has no token ids, and the model must read its texts again; trace again with them", "model")
    if trace.meta.get("fingerprint") not in (None, model.fingerprint):
        raise InputError(f"the trace is of {trace.meta.get('model')}, not of {model.name}: their fingerprints differ", "model")
    starts = np.searchsorted(trace.sequence, np.arange(len(trace.sequences) + 1))
    texts = [slice(int(a), int(b)) for a, b in pairwise(starts) if b > a]
    if any(int(trace.position[rows.stop - 1]) != rows.stop - rows.start - 1 for rows in texts):
        raise InputError("tokens are missing in the trace's texts, which the model would have to read whole", "model")
    guesses = np.full(trace.ids.shape, trace.empty, trace.ids.dtype)
    encoded = Encoded.from_ids([trace.tokens[rows] for rows in texts])
    done = 0
    with recording(model, weights=False, hidden=True) as recorder:
        if tuple(layer.layer for layer in recorder.layers) != trace.layers:
            raise InputError(
                f"{model.name} has experts in other layers than the trace, which has {list(trace.layers)}", "model"
            )
        budget = 1 if mixes_tokens(model, recorder.layers) else batch_tokens
        for batch in padded_batches(model, encoded, budget, "right"):
            recorder.steps.clear()
            CaptureSession(model, (), stop=False).run(batch.ids, batch.mask)
            real = batch.mask.flatten()
            rows = np.concatenate([np.arange(texts[row].start, texts[row].stop) for row in batch.rows.tolist()])
            for i, layer in enumerate(recorder.layers[1:], 1):
                hidden = recorder.steps[0][i - 1].hidden
                assert hidden is not None
                best = _scores(layer, hidden)[real.to(hidden.device)].topk(trace.top_k, -1).indices
                guesses[rows, i] = best.cpu().numpy()
            done += len(batch.rows)
            if progress is not None:
                progress(done, len(encoded))
    # a token that used fewer slots gets as many guesses
    guesses[trace.ids == trace.empty] = trace.empty
    return guesses


def _scores(layer: ExpertLayer, hidden: torch.Tensor) -> torch.Tensor:
    """(N, E) of the layer's router."""
    found: list[torch.Tensor] = []
    if layer.router is not None:
        handles = listen_scores(layer.router, layer.n_experts, partial(_keep, found))
        try:
            layer.router(hidden)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"{layer}: its router takes more than tokens ({error}); leave the model out", "model") from error
        finally:
            for handle in handles:
                handle.remove()
    if not found:
        raise InputError(f"{layer}: its router gives no scores to look ahead by; leave the model out", "model")
    return found[0][:, : layer.n_experts]


def _keep(found: list[torch.Tensor], scores: torch.Tensor, _: Meaning) -> None:
    found.append(scores)
