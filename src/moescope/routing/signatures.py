"""Routing signatures: what share of a prompt's routing each expert gets, layer by layer.

"Task-Conditioned Routing Signatures in Sparse Mixture-of-Experts Transformers" (arXiv 2603.11114): the signature of a prompt
is the histogram of the experts that its tokens, prompt and generated, were sent to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from moescope.errors import InputError
from moescope.routing.trace import Part, RoutingTrace

Quantity = Literal["frequency", "weight"]
QUANTITIES: tuple[Quantity, ...] = ("frequency", "weight")


@dataclass(frozen=True, eq=False)
class Signatures:
    """The signatures of N prompts over L layers of up to E experts."""

    values: np.ndarray
    """(N, L, E) float64; each layer of a prompt sums to 1 (to 0 where no token reached an expert)"""
    tokens: np.ndarray
    """(N,) int64: how many tokens each signature is made of"""
    layers: tuple[int, ...]
    n_experts: tuple[int, ...]
    quantity: Quantity = "frequency"
    part: Part = "all"

    def flat(self, layer: int | None = None) -> np.ndarray:
        """(N, L * E) all layers side by side, or (N, E) of the layer with true number ``layer``."""
        if layer is None:
            return self.values.reshape(len(self.values), -1)
        return self.values[:, self.layers.index(layer)]


def signatures_of(trace: RoutingTrace, *, quantity: Quantity = "frequency", part: Part = "all") -> Signatures:
    """The signature of every sequence of a trace.

    Args:
        quantity: ``"frequency"`` counts how often an expert was chosen (published), ``"weight"`` adds up its weights.
        part: tokens of the prompt, generated ones, or all (published).

    Raises:
        InputError: the part has no token of some sequence, or weights are asked for and were not recorded.
    """
    if not isinstance(trace, RoutingTrace):
        raise InputError(f"{type(trace).__name__} is no RoutingTrace; record one with moescope.trace(…)", "trace")
    if quantity not in QUANTITIES:
        raise InputError(f"{quantity!r} is none of {', '.join(QUANTITIES)}", "quantity")
    tokens = np.bincount(trace.sequence[trace.mask(part)], minlength=len(trace.sequences))
    if not len(tokens):
        raise InputError("the trace has no sequences; trace at least two prompts of each category")
    if not tokens.all():
        name = trace.sequences[int(np.argmin(tokens))].id
        what = "tokens" if part == "all" else f"{part} tokens"
        raise InputError(f"prompt {name!r} has no {what} in the trace; leave it out or trace it again")
    counts = trace.counts(weighted=quantity == "weight", part=part)
    return Signatures(normalise(counts), tokens, trace.layers, trace.n_experts, quantity, part)


def normalise(counts: np.ndarray) -> np.ndarray:
    """Counts (N, L, E) as shares of their layer; a layer without any count stays 0."""
    total = counts.sum(axis=-1, keepdims=True)
    return np.asarray(np.divide(counts, total, out=np.zeros(counts.shape), where=total > 0))
