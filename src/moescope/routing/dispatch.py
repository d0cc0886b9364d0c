"""Where a running model sends its tokens: the arguments of its experts modules, which are the dispatch itself.

``output_router_logits`` is not the dispatch: dense layers are skipped in it, a selection bias or a group limit is applied
after it, and ``generate`` never returns it. What the experts are called with is what happens.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from moescope.errors import InputError

if TYPE_CHECKING:
    from moescope.models import LoadedModel


@dataclass(frozen=True, eq=False)
class Dispatch:
    """What one mixture-of-experts layer did with the N tokens (batch x length, padding included) of one forward pass."""

    hidden: Tensor | None
    """(N, D): what the experts were given; kept only on request"""
    ids: Tensor
    """(N, K) integers"""
    weights: Tensor | None
    """(N, K), in the dtype of the model"""


@dataclass(frozen=True, eq=False)
class ExpertLayer:
    """A mixture-of-experts layer and the module whose call is its dispatch."""

    layer: int
    path: str
    """name of the experts module in the model's body"""
    experts: nn.Module
    n_experts: int


def expert_layers(model: LoadedModel) -> tuple[ExpertLayer, ...]:
    """The mixture-of-experts layers of a model, ascending; empty for a dense one."""
    names = {id(module): name for name, module in model.body.named_modules()}
    found = []
    for number, layer in enumerate(model.structure.layers):
        for module in layer.modules():
            if _takes_dispatch(module):
                stacked = next(p for p in module.parameters() if p.dim() >= 2)
                found.append(ExpertLayer(number, names[id(module)], module, int(stacked.shape[0])))
    return tuple(found)


def _takes_dispatch(module: nn.Module) -> bool:
    parameters = list(inspect.signature(module.forward).parameters)
    return len(parameters) == 3 and parameters[1] == "top_k_index" and parameters[2] == "top_k_weights"


class DispatchRecorder:
    """Made by :func:`recording`. ``steps`` holds, per forward pass of the model, the dispatch of every layer."""

    def __init__(self, layers: Sequence[ExpertLayer], keep: Callable[[ExpertLayer, Tensor, Tensor, Tensor], Dispatch]) -> None:
        self.layers = tuple(layers)
        self.steps: list[tuple[Dispatch, ...]] = []
        self._keep = keep
        self._seen: dict[int, Dispatch] = {}

    def begin(self, *_: Any) -> None:
        self._seen = {}

    def record(self, layer: ExpertLayer, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden, ids, weights = (*args, *kwargs.values())
        if layer.layer in self._seen:
            raise InputError(f"layer {layer.layer} ({layer.path}): its experts were called twice in one forward pass")
        self._seen[layer.layer] = self._keep(layer, hidden, ids, weights)

    def end(self, *_: Any) -> None:
        for layer in self.layers:
            if layer.layer not in self._seen:
                raise InputError(f"layer {layer.layer} ({layer.path}): its experts were not called in a forward pass")
        self.steps.append(tuple(self._seen[layer.layer] for layer in self.layers))


@contextmanager
def recording(
    model: LoadedModel, *, hidden: bool = False, weights: bool = True, weight_dtype: torch.dtype | None = None
) -> Iterator[DispatchRecorder]:
    """Record the dispatch of every forward pass inside the context, ``generate`` included.

    Raises:
        InputError: the model has no mixture-of-experts layer; in a forward pass, a layer sent its tokens nowhere or twice.
    """
    layers = expert_layers(model)
    if not layers:
        raise InputError(f"model {model.name} is dense: it has no experts to trace; study it with `moescope circuits`")

    def keep(layer: ExpertLayer, x: Tensor, ids: Tensor, factors: Tensor) -> Dispatch:
        return Dispatch(
            x.detach().clone() if hidden else None,
            ids.detach().to(torch.uint8 if layer.n_experts <= 255 else torch.int16, copy=True),
            factors.detach().to(weight_dtype or factors.dtype, copy=True) if weights else None,
        )

    recorder = DispatchRecorder(layers, keep)
    handles = [model.body.register_forward_pre_hook(recorder.begin)]
    try:
        for layer in layers:
            handles.append(layer.experts.register_forward_pre_hook(partial(recorder.record, layer), with_kwargs=True))
        handles.append(model.body.register_forward_hook(recorder.end))
        yield recorder
    finally:
        for handle in handles:
            handle.remove()
