"""Recording the dispatch of every forward pass, ``generate`` included."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

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
        self.columns: dict[str, torch.dtype | None] = {"ids": None}
        """what is kept of every pass; a dtype where it is converted"""
        if weights is not False:
            self.columns["weights"] = None if weights is True else weights
        if scores:
            self.columns["scores"] = None
        self.brief: list[RemovableHandle] = []
        """hooks that end with the first pass"""
        self._hidden = hidden
        self._first = first
        # no copy is made of what the model was seen to leave as it was to the end of a pass, on this shape
        self._lasting: set[torch.Size] = set()
        self._rewritten = False
        counts = [layer.n_experts for layer in self.layers]
        self._types = [torch.uint8 if n <= 255 else torch.int16 if n < 2**15 else torch.int32 for n in counts]
        self.begin()

    def begin(self, *_: Any) -> None:
        none = [None] * len(self.layers)
        self._given: list[tuple[Tensor, Tensor] | None] = [*none]
        self._copies: list[tuple[Tensor, Tensor] | None] = [*none]
        self._inputs: list[Tensor | None] = [*none]
        self._scores: list[Tensor | None] = [*none]

    def record(self, index: int, hidden: Tensor, ids: Tensor, weights: Tensor) -> None:
        if self._given[index] is not None:
            raise InputError(f"{self.layers[index]}: its experts were called twice in one forward pass")
        weights = weights.detach()
        self._given[index] = ids, weights
        if self._rewritten or ids.shape not in self._lasting:
            self._copies[index] = ids.clone(), weights.clone()
        if self._hidden:
            self._inputs[index] = hidden.detach().clone()

    def score(self, index: int, scores: Tensor, meaning: Meaning) -> None:
        self._scores[index] = scores.detach().clone()
        self.meanings[self.layers[index].layer] = meaning

    def end(self, *_: Any) -> None:
        ids, weights = self._dispatched()
        # one transfer a pass: a sum that is finite has finite terms
        finite = _sums(weights).isfinite()
        if not bool(finite.all()):
            raise InputError(
                f"{self.layers[int((~finite).nonzero()[0])]}: its router's weights are not finite, so its choice is none; "
                "the model's weights are damaged, or overflow in this dtype (load it in fp32 or bf16)"
            )
        kept: Sequence[Tensor | None] = [None] * len(weights)
        if self._first or "weights" in self.columns:
            kept = _converted(weights, [None if self._first else self.columns["weights"]] * len(weights))
        # -1, a slot without expert, becomes 255 in uint8
        chosen = _converted(ids, self._types)
        self.steps.append(tuple(map(Dispatch, chosen, kept, self._inputs, self._scores)))
        if self._first:
            self._first = False
            for handle in self.brief:
                handle.remove()

    def _dispatched(self) -> tuple[list[Tensor], list[Tensor]]:
        """Ids and weights of every layer: the copies, of a shape that is new or that the model writes into during the pass."""
        ids, weights = [], []
        for layer, given, copies in zip(self.layers, self._given, self._copies, strict=True):
            if given is None:
                raise InputError(
                    f"{layer}: its experts were not called in a forward pass, so its routing is unknown; a kernel may have"
                    " replaced it: load the model without kernels"
                )
            if copies is not None and not self._rewritten:
                self._rewritten = not all(map(torch.equal, given, copies))
                self._lasting.add(given[0].shape)
            ids.append((copies or given)[0])
            weights.append((copies or given)[1])
        return ids, weights


def _alike(tensors: Sequence[Tensor]) -> bool:
    return len({(t.shape, t.dtype, t.device) for t in tensors}) == 1


def _sums(weights: Sequence[Tensor]) -> Tensor:
    """(L,) float32"""
    if _alike(weights):
        return torch.stack(tuple(weights)).flatten(1).sum(1, dtype=torch.float32)
    return torch.stack([w.sum(dtype=torch.float32).to(weights[0].device) for w in weights])


def _converted(tensors: Sequence[Tensor], dtypes: Sequence[torch.dtype | None]) -> Sequence[Tensor]:
    """Copies in these types; in one operation for all layers where they are alike."""
    if _alike(tensors) and len(set(dtypes)) == 1:
        return torch.stack(tuple(tensors)).to(dtypes[0]).unbind()
    return [t.to(dtype, copy=True) for t, dtype in zip(tensors, dtypes, strict=True)]


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
                heard = listen_scores(layer.router, layer.n_experts, partial(recorder.score, index))
                handles += heard
                recorder.brief += [] if scores else heard
            handles += layer.rule.listen(layer.module, partial(recorder.record, index))
        handles.append(model.body.register_forward_hook(recorder.end))
        yield recorder
    finally:
        for handle in handles:
            handle.remove()
