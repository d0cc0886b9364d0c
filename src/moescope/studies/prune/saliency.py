"""How much each expert matters: how often it is chosen, and what it adds when it is.

REAP (Lasby et al. 2025, "REAP the Experts: Why Pruning Prevails for One-Shot MoE Compression", arXiv 2510.13999) scores
expert j by the mean, over the tokens that are sent to it, of its weight times the norm of its output,
S_j = 1/|X_j| sum over x in X_j of g_j(x) ||f_j(x)||_2. It is a mean over the expert's own tokens, so a rare expert that
writes much ranks high; ``mass`` is the same sum over all tokens, in which a rare expert counts for little.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from moescope.capture.activations import padded_batches
from moescope.capture.encode import Encoded
from moescope.capture.session import CaptureSession
from moescope.errors import InputError
from moescope.models.experts import recording
from moescope.studies.prune.settings import CRITERIA, Criterion

if TYPE_CHECKING:
    from moescope.models import LoadedModel
    from moescope.models.experts import Dispatch, ExpertLayer


@dataclass(frozen=True, eq=False)
class Saliency:
    """Sums over T tokens of text, for each layer's E experts."""

    tokens: int
    top_k: int
    """most experts that one token was sent to"""
    chosen: dict[int, np.ndarray]
    """layer -> float64 (E,): tokens that were sent to the expert"""
    weight: dict[int, np.ndarray]
    """layer -> float64 (E,): sum of the weights that they gave it"""
    output: dict[int, np.ndarray]
    """layer -> float64 (E,): sum of weight x ||expert's output||, the norm Euclidean, in units of the residual stream"""

    def by(self, criterion: Criterion) -> dict[int, np.ndarray]:
        """layer -> float64 (E,) saliency: ``"reap"``, ``"frequency"`` (share of tokens) or ``"mass"``; 0 for an expert
        that no token was sent to.

        Raises:
            InputError: another criterion.
        """
        if criterion not in CRITERIA:
            raise InputError(f"{criterion!r} is none of {', '.join(CRITERIA)}", "by")
        if criterion == "frequency":
            return {layer: n / self.tokens for layer, n in self.chosen.items()}
        if criterion == "mass":
            return {layer: total / self.tokens for layer, total in self.output.items()}
        return {layer: total / np.maximum(self.chosen[layer], 1) for layer, total in self.output.items()}

    def to_frame(self) -> pd.DataFrame:
        """One row per expert: layer, expert, frequency, mean_weight, reap, mass."""
        rows: list[dict[str, Any]] = []
        measures = {criterion: self.by(criterion) for criterion in CRITERIA}
        for layer, chosen in self.chosen.items():
            for expert, count in enumerate(chosen):
                rows.append(
                    {
                        "layer": layer,
                        "expert": expert,
                        "mean_weight": float(self.weight[layer][expert] / max(count, 1)),
                        **{criterion: float(values[layer][expert]) for criterion, values in measures.items()},
                    }
                )
        return pd.DataFrame(rows)


@torch.no_grad()
def expert_saliency(
    model: LoadedModel,
    encoded: Encoded,
    *,
    batch_tokens: int = 2048,
    progress: Callable[[int, int], None] | None = None,
) -> Saliency:
    """Read the saliency of every expert from a model's run over texts, padding left out.

    Args:
        batch_tokens: per batch; the hidden states of every layer are held for one batch.

    Raises:
        InputError: the model is dense.
    """
    chosen: dict[int, np.ndarray] = {}
    weight: dict[int, np.ndarray] = {}
    output: dict[int, np.ndarray] = {}
    done = top_k = 0
    with recording(model, hidden=True) as recorder:
        for layer in recorder.layers:
            for total in (chosen, weight, output):
                total[layer.layer] = np.zeros(layer.n_experts)
        for batch in padded_batches(model, encoded, batch_tokens, "right"):
            recorder.steps.clear()
            CaptureSession(model, (), stop=False).run(batch.ids, batch.mask)
            real = batch.mask.flatten().to(model.device)
            for layer, dispatch in zip(recorder.layers, recorder.steps[0], strict=True):
                top_k = max(top_k, dispatch.ids.shape[1])
                _add(layer, dispatch, real, chosen[layer.layer], weight[layer.layer], output[layer.layer])
            done += len(batch.rows)
            if progress is not None:
                progress(done, len(encoded))
    return Saliency(int(encoded.lengths.sum()), top_k, chosen, weight, output)


def _add(
    layer: ExpertLayer, dispatch: Dispatch, real: torch.Tensor, chosen: np.ndarray, weight: np.ndarray, output: np.ndarray
) -> None:
    """Add one batch of one layer, expert by expert, so that no (N, K, D) tensor of outputs is ever held."""
    assert dispatch.hidden is not None
    assert dispatch.weights is not None
    ids = dispatch.ids.long()
    for expert in range(layer.n_experts):
        token, slot = torch.where((ids == expert) & real[:, None])
        if not len(token):
            continue
        factor = dispatch.weights[token, slot]
        hidden = dispatch.hidden[token]
        if layer.rule.weight_on == "input":
            size = layer.rule.expert(layer.module, expert, hidden * factor[:, None]).float().norm(dim=-1)
        else:
            size = layer.rule.expert(layer.module, expert, hidden).float().norm(dim=-1) * factor.float()
        chosen[expert] += len(token)
        weight[expert] += float(factor.double().sum())
        output[expert] += float(size.double().sum())
