"""Reach into one layer's routing: the router's logits, its top-k, and what arrives at the experts.

Every architecture turns logits into chosen experts and weights in its own way. Instead of writing each anew, the
router's own code runs and two of its operations are intercepted while it does: the linear map that gives the logits,
and the top-k over all experts. A ban or a boost changes the logits; a ban or a forced expert changes the top-k's
choice but not its values, which are read from the scores that the router made.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from moescope.errors import InputError
from moescope.models.experts import ExpertLayer, expert_layers
from moescope.models.experts.rules import DbrxCall, ExpertsCall

if TYPE_CHECKING:
    from moescope.models import LoadedModel

_LINEAR = frozenset({nn.functional.linear, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.mm})
_TOPK = frozenset({torch.topk, torch.Tensor.topk})


@dataclass(frozen=True)
class LayerEdit:
    """The edits of one layer, by expert number."""

    ban: tuple[int, ...] = ()
    force: tuple[int, ...] = ()
    boost: Mapping[int, float] | None = None
    scale: Mapping[int, float] | None = None

    @property
    def routing(self) -> bool:
        """Whether the choice of experts is edited, and not only their weights."""
        return bool(self.ban or self.force or self.boost)


@contextmanager
def attach(model: LoadedModel, layer: int, edit: LayerEdit) -> Iterator[None]:
    """Edit the routing of ``layer`` inside the block."""
    found = next((e for e in expert_layers(model) if e.layer == layer), None)
    if found is None:
        raise InputError(f"layer {layer} of {model.name} has no experts")
    mode = _Routing(edit, found)
    restore: list[Callable[[], None]] = []
    try:
        if edit.routing:
            if found.router is None:
                raise mode.refusal("no router was found")
            restore.append(_wrap(found.router, mode.in_router))
            restore.append(_wrap(_around(model, found), mode.in_block))
        if edit.scale:
            restore.append(_scaling(found, mode).remove)
        restore += [handle.remove for handle in found.rule.listen(found.module, mode.at_dispatch)]
        yield
    finally:
        for undo in reversed(restore):
            undo()


def _around(model: LoadedModel, layer: ExpertLayer) -> nn.Module:
    """The module in whose forward logits become chosen experts: it holds the router."""
    inside = any(module is layer.router for module in layer.module.modules())
    return layer.module if inside else model.body.get_submodule(layer.path.rpartition(".")[0])


def _scaling(layer: ExpertLayer, mode: _Routing) -> RemovableHandle:
    """Multiply the weights among the arguments of the experts module."""
    if type(layer.rule) not in (ExpertsCall, DbrxCall):
        raise mode.refusal("no module is handed the experts' weights, so they cannot be scaled")
    # first of the hooks there, so that a trace taken at the same time sees the scaled weights
    return layer.module.register_forward_pre_hook(mode.scale, with_kwargs=True, prepend=True)


class _Routing(TorchFunctionMode):
    """The interception itself; one per edited layer."""

    def __init__(self, edit: LayerEdit, experts: ExpertLayer) -> None:
        super().__init__()
        self.edit, self.layer, self.n_experts = edit, experts.layer, experts.n_experts
        self._in_router = False
        self._logits_seen = False
        self._open = False
        self._constants: dict[Any, Tensor] = {}

    def in_block(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._logits_seen, self._open = False, True
        try:
            with self:
                return forward(*args, **kwargs)
        finally:
            self._open = False

    def in_router(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._in_router = True
        try:
            return forward(*args, **kwargs)
        finally:
            self._in_router = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._open:
            if func in _TOPK and self._logits_seen:
                return self._topk(func, args, kwargs)
            if self._in_router and not self._logits_seen and func in _LINEAR:
                out = func(*args, **kwargs)
                if out.shape[-1] == self.n_experts:
                    self._logits_seen = True
                    return self._logits(out)
                return out
        return func(*args, **kwargs)

    def _logits(self, logits: Tensor) -> Tensor:
        if self.edit.boost:
            logits = logits + self._vector("boost", logits, self.edit.boost, 0.0)
        if self.edit.ban:
            # the least finite number instead of -inf: every softmax and sigmoid gives exactly 0, and none a NaN
            least = torch.finfo(logits.dtype).min
            logits = logits.masked_fill(self._mask("ban", logits, self.edit.ban), least)
        return logits

    def _topk(self, func: Any, args: Any, kwargs: Any) -> Any:
        scores = args[0] if args else kwargs["input"]
        k, dim, largest, ordered = _topk_options(*args[1:], **{n: v for n, v in kwargs.items() if n != "input"})
        if scores.dim() != 2 or scores.shape[-1] != self.n_experts or dim not in (-1, 1) or not largest:
            return func(*args, **kwargs)
        edit = self.edit
        if len(edit.force) > k:
            raise InputError(f"layer {self.layer}: {len(edit.force)} experts are forced and each token has {k}: force fewer")
        if self.n_experts - len(edit.ban) < k:
            raise InputError(
                f"layer {self.layer}: {len(edit.ban)} of {self.n_experts} experts are banned, each token needs {k}: ban fewer"
            )
        choice = scores
        if edit.ban:
            choice = choice.masked_fill(self._mask("ban", scores, edit.ban), -torch.inf)
        if edit.force:
            choice = choice.masked_fill(self._mask("force", scores, edit.force), torch.inf)
        indices = torch.topk(choice, k, dim=-1).indices
        values = scores.gather(-1, indices)
        if edit.force and ordered:  # the forced came first
            values, order = values.sort(dim=-1, descending=True, stable=True)
            indices = indices.gather(-1, order)
        return torch.return_types.topk((values, indices))

    def scale(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Forward pre-hook on the experts."""
        assert self.edit.scale is not None
        hidden, ids, weights = (*args, *kwargs.values())
        return (hidden, ids, weights * self._vector("scale", weights, self.edit.scale, 1.0)[ids]), {}

    def at_dispatch(self, hidden: Tensor, ids: Tensor, weights: Tensor) -> None:
        """Check what really arrives at the experts."""
        self._open = False
        for expert in self.edit.ban:
            if bool((ids == expert).any()):
                raise self.refusal(f"expert {expert} was chosen in spite of its ban")
        for expert in self.edit.force:
            if not bool((ids == expert).any(-1).all()):
                raise self.refusal(f"expert {expert} was not chosen in spite of being forced")
        if self.edit.boost and not self._logits_seen:
            raise self.refusal("its router's logits could not be told")

    def refusal(self, reason: str) -> InputError:
        return InputError(f"layer {self.layer}: this model's routing cannot be steered: {reason}")

    def _vector(self, name: str, like: Tensor, values: Mapping[int, float], rest: float) -> Tensor:
        key = (name, like.dtype, like.device)
        if key not in self._constants:
            vector = torch.full((self.n_experts,), rest, dtype=like.dtype, device=like.device)
            for index, number in values.items():
                vector[index] = number
            self._constants[key] = vector
        return self._constants[key]

    def _mask(self, name: str, like: Tensor, experts: tuple[int, ...]) -> Tensor:
        key = (name, like.device)
        if key not in self._constants:
            mask = torch.zeros(self.n_experts, dtype=torch.bool, device=like.device)
            mask[list(experts)] = True
            self._constants[key] = mask
        return self._constants[key]


def _topk_options(k: int, dim: int = -1, largest: bool = True, sorted: bool = True, **_: Any) -> tuple[int, int, bool, bool]:
    return k, dim, largest, sorted


def _wrap(module: nn.Module, around: Callable[..., Any]) -> Callable[[], None]:
    """Let ``around(forward, ...)`` run in place of the module's forward; returns what undoes it.

    A hook would not do: a torch function mode must be left even when the forward raises, innermost first.
    """
    before = module.__dict__.get("forward")
    forward = module.forward

    @functools.wraps(forward)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return around(forward, *args, **kwargs)

    module.__dict__["forward"] = wrapped

    def undo() -> None:
        if before is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = before

    return undo
