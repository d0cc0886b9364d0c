"""How much each expert matters: how often it is chosen, and what it adds when it is.

REAP (Lasby et al. 2025, "REAP the Experts: Why Pruning Prevails for One-Shot MoE Compression", arXiv 2510.13999) scores
expert j by the mean, over the tokens that are sent to it, of its weight times the norm of its output,
S_j = 1/|X_j| sum over x in X_j of g_j(x) ||f_j(x)||_2. It is a mean over the expert's own tokens, so a rare expert that
writes much ranks high; ``mass`` is the same sum over all tokens, in which a rare expert counts for little; ``norm`` is that
sum without the router's weights (what REAP's authors call the expert activation norm).

Super experts (Su et al. 2025, "Unveiling Super Experts in Mixture-of-Experts Large Language Models", arXiv 2507.23279) are few,
and without one of them a model breaks. They are told by the largest magnitude in their output, before the router's weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from moescope.capture.encode import Encoded
from moescope.errors import InputError
from moescope.models.experts.layers import ExpertLayer
from moescope.models.layered import Layered
from moescope.studies.prune.cut import Banks
from moescope.studies.prune.settings import CRITERIA, Criterion

_PERCENTILE, _OF_LARGEST, _DEPTH = 99.5, 0.1, 0.75
"""a super expert: beyond this percentile of all experts, beyond this share of the largest, in this first part of the layers"""


@dataclass(frozen=True, eq=False)
class Saliency:
    """Sums over T tokens of text, for each layer's E experts, layer by layer."""

    tokens: int
    n_layers: int
    """of the model, dense ones counted"""
    chosen: dict[int, np.ndarray]
    """layer -> float64 (E,): tokens that were sent to the expert"""
    weight: dict[int, np.ndarray]
    """layer -> float64 (E,): sum of the weights that they gave it"""
    output: dict[int, np.ndarray]
    """layer -> float64 (E,): sum of weight x ||expert's output||, the norm Euclidean, in units of the residual stream"""
    norm: dict[int, np.ndarray]
    """layer -> float64 (E,): sum of ||expert's output||"""
    largest: dict[int, np.ndarray]
    """layer -> float64 (E,): largest magnitude of a coordinate of its output"""
    written: dict[int, np.ndarray]
    """layer -> float32 (E, D): sum of weight x expert's output"""

    def by(self, criterion: Criterion) -> dict[int, np.ndarray]:
        """layer -> float64 (E,) saliency; 0 for an expert that no token was sent to.

        Raises:
            InputError: another criterion.
        """
        if criterion not in CRITERIA:
            raise InputError(f"{criterion!r} is none of {', '.join(CRITERIA)}", "by")
        if criterion == "reap":
            return {layer: total / np.maximum(self.chosen[layer], 1) for layer, total in self.output.items()}
        sums = {"frequency": self.chosen, "mass": self.output, "norm": self.norm}[criterion]
        return {layer: total / self.tokens for layer, total in sums.items()}

    def mean_output(self, layer: int) -> np.ndarray:
        """float32 (E, D): each expert's output, averaged by the weights of its own tokens; 0 where it has none."""
        weight = self.weight[layer][:, None]
        mean: np.ndarray = self.written[layer] / np.where(weight > 0, weight, 1)
        return mean.astype(np.float32)

    def super_experts(self) -> frozenset[tuple[int, int]]:
        """(layer, expert) whose largest output is beyond the 99.5th percentile of all experts' and a tenth of the largest of
        all, in the first three quarters of the layers, before which massive activations arise."""
        every = np.concatenate(list(self.largest.values()))
        least = max(float(np.percentile(every, _PERCENTILE)), _OF_LARGEST * float(every.max()))
        return frozenset(
            (layer, int(e))
            for layer, values in self.largest.items()
            if layer < _DEPTH * self.n_layers
            for e in np.flatnonzero(values > least)
        )

    def to_frame(self) -> pd.DataFrame:
        """One row per expert: layer, expert, mean_weight, largest, super, and each criterion."""
        rows: list[dict[str, Any]] = []
        measures = {criterion: self.by(criterion) for criterion in CRITERIA}
        guarded = self.super_experts()
        for layer, chosen in self.chosen.items():
            for expert, count in enumerate(chosen):
                rows.append(
                    {
                        "layer": layer,
                        "expert": expert,
                        "mean_weight": float(self.weight[layer][expert] / max(count, 1)),
                        "largest": float(self.largest[layer][expert]),
                        "super": (layer, expert) in guarded,
                        **{criterion: float(values[layer][expert]) for criterion, values in measures.items()},
                    }
                )
        return pd.DataFrame(rows)


def expert_saliency(
    layered: Layered,
    banks: Banks,
    encoded: Encoded,
    *,
    batch_tokens: int = 2048,
    progress: Callable[[int, int], None] | None = None,
) -> Saliency:
    """Read the saliency of every expert from the whole model's run over texts, layer by layer."""
    kinds = ("chosen", "weight", "output", "norm", "largest")
    sums: dict[str, dict[int, np.ndarray]] = {
        kind: {layer.layer: np.zeros(layer.n_experts) for layer in banks.layers} for kind in kinds
    }
    width = layered.model.d_model
    written = {layer.layer: np.zeros((layer.n_experts, width), np.float32) for layer in banks.layers}
    found = Saliency(int(encoded.lengths.sum()), layered.model.n_layers, **sums, written=written)
    at = {layer.layer: layer for layer in banks.layers}

    @contextmanager
    def reading(number: int, layer: Any) -> Iterator[Any]:
        if number not in at:
            yield layer
            return
        heard = at[number].rule.listen(at[number].module, lambda *dispatch: _add(found, at[number], *dispatch))
        try:
            yield layer
        finally:
            for handle in heard:
                handle.remove()

    begun = layered.begin([torch.from_numpy(row.astype(np.int64)) for row in encoded], batch_tokens)
    layered.sweep(begun, [reading], progress)
    return found


def _add(found: Saliency, layer: ExpertLayer, hidden: Tensor, ids: Tensor, weights: Tensor) -> None:
    """Add one batch of one layer, expert by expert, so that no (N, K, D) tensor of outputs is ever held."""
    at = layer.layer
    for expert in range(layer.n_experts):
        token, slot = torch.where(ids == expert)
        if not len(token):
            continue
        factor = weights[token, slot].float()
        out = layer.rule.expert(layer.module, expert, hidden[token]).float()
        size = out.norm(dim=-1)
        found.chosen[at][expert] += len(token)
        found.weight[at][expert] += float(factor.double().sum())
        found.output[at][expert] += float((size * factor).double().sum())
        found.norm[at][expert] += float(size.double().sum())
        found.largest[at][expert] = max(found.largest[at][expert], float(out.abs().max()))
        found.written[at][expert] += (factor @ out).cpu().numpy()
