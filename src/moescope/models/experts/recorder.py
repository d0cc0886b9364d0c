"""Recording the dispatch of every forward pass, ``generate`` included."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from moescope.errors import InputError
from moescope.models.experts.layers import ExpertLayer, expert_layers
from moescope.models.experts.scores import Meaning, listen_scores

if TYPE_CHECKING:
    from moescope.models import LoadedModel


@dataclass(frozen=True, eq=False)
class Dispatch:
    """What one layer did with the N tokens (batch x length, padding included) of one forward pass."""

    ids: Tensor
    """(N, K) uint8, or int16 or int32 where there are more experts: the experts chosen. A slot without one holds 255, or
    -1 in the signed types."""
    weights: Tensor | None
    """(N, K): the factor on each expert's output, or input (``ExpertLayer.rule.weight_on``); None if not wanted"""
    hidden: Tensor | None = None
    """(N, D): what the experts were given, if wanted"""
    scores: Tensor | None = None
    """(N, E) float32: the router's scores, if wanted and the router has them"""


class DispatchRecorder:
    """Made by :func:`recording`. ``steps`` holds, for each forward pass of the model, the dispatch of every layer."""

    def __init__(
        self, layers: Sequence[ExpertLayer], *, weights: torch.dtype | bool, hidden: bool, scores: bool, first: bool
    ) -> None:
        self.layers = tuple(layers)
        self.steps: list[tuple[Dispatch, ...]] = []
        self.meanings: dict[int, Meaning] = {}
        """what the scores of each layer are"""
        self._hidden = hidden
        self.columns: dict[str, torch.dtype | None] = {"ids": None}
        """what is kept of every pass; a dtype where it is converted"""
        if weights is not False:
            self.columns["weights"] = None if weights is True else weights
        if scores:
            self.columns["scores"] = None
        self._first = first
        self._seen: list[Dispatch | None] = [None] * len(self.layers)
        self._scores: list[Tensor | None] = [None] * len(self.layers)
        self._sums: list[Tensor] = [torch.zeros(())] * len(self.layers)
        counts = [layer.n_experts for layer in self.layers]
        self._types = [torch.uint8 if n <= 255 else torch.int16 if n < 2**15 else torch.int32 for n in counts]

    def begin(self, *_: Any) -> None:
        self._seen = [None] * len(self.layers)
        self._scores = [None] * len(self.layers)
        self._sums = [torch.zeros(())] * len(self.layers)

    def record(self, index: int, hidden: Tensor, ids: Tensor, weights: Tensor) -> None:
        if self._seen[index] is not None:
            raise InputError(f"{self.layers[index]}: its experts were called twice in one forward pass")
        self._sums[index] = weights.detach().sum(dtype=torch.float32)
        kept = None
        if self._first or "weights" in self.columns:
            kept = weights.detach().to(None if self._first else self.columns["weights"], copy=True)
        self._seen[index] = Dispatch(
            # -1, a slot without expert, becomes 255 in uint8
            ids.to(self._types[index], copy=True),
            kept,
            hidden.detach().clone() if self._hidden else None,
            self._scores[index],
        )

    def score(self, index: int, scores: Tensor, meaning: Meaning) -> None:
        if not self._first and "scores" not in self.columns:
            return
        self._scores[index] = scores.detach().clone()
        self.meanings[self.layers[index].layer] = meaning

    def end(self, *_: Any) -> None:
        done = []
        for layer, dispatch in zip(self.layers, self._seen, strict=True):
            if dispatch is None:
                raise InputError(
                    f"{layer}: its experts were not called in a forward pass, so its routing is unknown; a kernel may have"
                    " replaced it: load the model without kernels"
                )
            done.append(dispatch)
        # one transfer a pass: a sum that is finite has finite terms
        finite = torch.stack([total.to(self._sums[0].device) for total in self._sums]).isfinite()
        if not bool(finite.all()):
            raise InputError(
                f"{self.layers[int((~finite).nonzero()[0])]}: its router's weights are not finite, so its choice is none; "
                "the model's weights are damaged, or overflow in this dtype (load it in fp32 or bf16)"
            )
        self.steps.append(tuple(done))
        self._first = False


@contextmanager
def recording(
    model: LoadedModel,
    *,
    weights: torch.dtype | bool = True,
    hidden: bool = False,
    scores: bool = False,
    first: bool = False,
) -> Iterator[DispatchRecorder]:
    """Record the dispatch of every forward pass of ``model.body`` inside the context.

    Args:
        weights: False leaves them out, a dtype converts them.
        hidden: keep what the experts were given.
        scores: keep the routers' scores.
        first: of the first pass keep weights, in the layer's own type, and scores, whatever is kept of the others.

    Raises:
        InputError: the model is dense, or (in a forward pass) a layer sent its tokens nowhere or twice, or by weights that are
            not finite.
    """
    recorder = DispatchRecorder(expert_layers(model), weights=weights, hidden=hidden, scores=scores, first=first)
    handles = [model.body.register_forward_pre_hook(recorder.begin)]
    try:
        for index, layer in enumerate(recorder.layers):
            if (scores or first) and layer.router is not None:
                handles += listen_scores(layer.router, layer.n_experts, partial(recorder.score, index))
            handles += layer.rule.listen(layer.module, partial(recorder.record, index))
        handles.append(model.body.register_forward_hook(recorder.end))
        yield recorder
    finally:
        for handle in handles:
            handle.remove()
