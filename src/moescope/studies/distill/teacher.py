"""The layer that is distilled: a function on vectors, and, where it is a plain MLP, its neurons."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

from moescope.capture import capture
from moescope.errors import InputError
from moescope.models.copies import copy_of
from moescope.models.spread import Recipe
from moescope.studies.distill.students import LayerShape
from moescope.types import Site

if TYPE_CHECKING:
    from moescope.models import LoadedModel

_ACTIVATION_FIELDS = ("hidden_act", "hidden_activation", "activation_function", "activation")
_CHUNK = 4096  # vectors labelled at a time


@dataclass(frozen=True, eq=False)
class MlpNeurons:
    """``y = w_outᵀ · (act(w_in · x + bias) [· (w_lin · x + bias_lin)]) + bias_out``, neurons along the first axis."""

    w_in: Tensor
    """float32 (F, d_in)"""
    bias: Tensor
    """float32 (F,)"""
    w_lin: Tensor | None
    bias_lin: Tensor | None
    w_out: Tensor
    """float32 (F, d_out)"""
    bias_out: Tensor
    activation: nn.Module

    def activations(self, x: Tensor) -> Tensor:
        """float32 (B, F): what the down projection receives."""
        hidden: Tensor = self.activation(F.linear(x, self.w_in, self.bias))
        return hidden if self.w_lin is None else hidden * F.linear(x, self.w_lin, self.bias_lin)

    def __call__(self, x: Tensor) -> Tensor:
        return self.activations(x) @ self.w_out + self.bias_out


class Teacher:
    """The MLP (or expert block) of one layer of a model, as a function of the vectors at ``mlp_in``.

    Raises:
        InputError: the model has no such layer, or the layer has no MLP.
    """

    def __init__(self, model: LoadedModel, layer: int) -> None:
        if not 0 <= layer < model.n_layers:
            raise InputError(f"layer={layer}: {model.name} has layers 0 to {model.n_layers - 1}")
        self.model, self.layer = model, layer
        self.site_in, self.site_out = Site("mlp_in", layer), Site("mlp_out", layer)
        have = [site.layer for site in model.sites("mlp_in")]
        if layer not in have:
            raise InputError(f"layer={layer}: layer {layer} of {model.name} has no MLP; layers with one: {_list(have)}")
        self.entry, self.exit = model.tap_point(self.site_in), model.tap_point(self.site_out)

    def __reduce__(self) -> tuple[Any, ...]:
        """In another process: the same layer of that one's own copy of the model.

        Raises:
            TypeError: the model is not spread over processes.
        """
        if self.model.spread is None:
            raise TypeError(f"{self.model.name} is in this process alone")
        return _elsewhere, (self.model.spread.recipe, self.model.fingerprint, self.layer)

    @cached_property
    def shape(self) -> LayerShape:
        name = next((getattr(self.model.config, f, None) for f in _ACTIVATION_FIELDS if hasattr(self.model.config, f)), None)
        if not isinstance(name, str) or name not in ACT2FN:
            raise InputError(f"{self.model.name}: its activation {name!r} is not known to transformers; it cannot be distilled")
        neurons = self._parts()
        # blocks of experts are gated MLPs in all but a few architectures
        glu = True if neurons is None else neurons[1] is not None
        return LayerShape(self.entry.width, self.exit.width, name, glu)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Outputs float32 (N, d_out) for inputs (N, d_in), token by token: in the model's dtype, without its other layers
        where the architecture allows."""
        run = self._block if any(m is self.exit.module for m in self.entry.module.modules()) else self._body
        return torch.cat([run(part) for part in x.split(_CHUNK)]) if len(x) else x.new_zeros(0, self.exit.width)

    def _block(self, x: Tensor) -> Tensor:
        seen: list[Tensor] = []
        self.entry.shape.value = (1, len(x))
        handle = self.exit.attach(lambda tensor: seen.append(tensor))
        try:
            self.entry.module(x[None].to(self.model.device, self.model.dtype))
        finally:
            handle.remove()
        return seen[0][0].float().to(x.device)

    def _body(self, x: Tensor) -> Tensor:
        """Through the whole body on meaningless tokens, whose MLP input is replaced: for layers whose up and down maps hang
        in no module of their own (OPT, BERT)."""
        width = 32
        rows = -(-len(x) // width)
        padded = F.pad(x, (0, 0, 0, rows * width - len(x))).reshape(rows, width, -1)
        ids = torch.zeros(rows, width, dtype=torch.long)
        handle = self.entry.attach(lambda _: padded.to(self.model.device, self.model.dtype))
        try:
            with capture(self.model, [self.site_out]) as session:
                out: Tensor = session.run(ids)[self.site_out]
        finally:
            handle.remove()
        return out.float().reshape(rows * width, -1)[: len(x)].to(x.device)

    @cached_property
    def neurons(self) -> MlpNeurons:
        """The MLP's neurons, checked against the layer itself.

        Raises:
            InputError: the layer is a block of experts, or is built in a way that its parts do not add up to.
        """
        parts = self._parts()
        problem = f"layer {self.layer} of {self.model.name}: its neurons cannot be told apart"
        if parts is None:
            raise InputError(f"{problem} (a block of experts, or an unknown structure); use start=random")
        up, lin, down = parts
        first, bias = _map(up)
        w_lin = bias_lin = None
        out, bias_out = _map(down)
        if lin is up:  # gate and up in one matrix, gate first (Phi-3)
            (first, w_lin), (bias, bias_lin) = first.chunk(2), bias.chunk(2)
        elif lin is not None:
            w_lin, bias_lin = _map(lin)
        found = MlpNeurons(first, bias, w_lin, bias_lin, out.T.contiguous(), bias_out, ACT2FN[self.shape.activation])
        probe = torch.randn(8, self.shape.d_in, generator=torch.Generator().manual_seed(0))
        truth, ours = self(probe), found(probe)
        if float((ours - truth).norm() / truth.norm().clamp(min=1e-12)) > 0.02:  # bf16 models round at each step
            raise InputError(f"{problem} (an unknown structure); use start=random")
        return found

    def _parts(self) -> tuple[nn.Module, nn.Module | None, nn.Module] | None:
        """(activated map, linear factor if gated, down map) of a dense MLP."""
        act = Site("mlp_act", self.layer)
        if act not in self.model.sites("mlp_act"):
            return None
        inner, down = self.model.width(act), self.exit.module
        maps = [(n, m) for n, m in self.entry.module.named_modules() if m is not down and _shape(m)[0] == self.entry.width]
        fused = [m for _, m in maps if _shape(m)[1] == 2 * inner]
        ups = [(name, m) for name, m in maps if _shape(m)[1] == inner]
        if fused:
            return fused[0], fused[0], down
        if len(ups) == 1:
            return ups[0][1], None, down
        if len(ups) == 2:
            gate = next((i for i, (name, _) in enumerate(ups) if "gate" in name.lower()), 0)
            return ups[gate][1], ups[1 - gate][1], down
        return None


def _shape(module: nn.Module) -> tuple[int, int]:
    """(in, out) of a linear map, else zeros; GPT-2's Conv1D is stored transposed."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2 or "norm" in type(module).__name__.lower():
        return 0, 0
    rows, columns = weight.shape
    return (rows, columns) if type(module).__name__ == "Conv1D" else (columns, rows)


def _map(module: Any) -> tuple[Tensor, Tensor]:
    """Weight (out, in) and bias (out,) as float32 on the CPU."""
    weight = module.weight.detach().float().cpu()
    weight = weight.T if type(module).__name__ == "Conv1D" else weight
    bias = getattr(module, "bias", None)
    return weight, torch.zeros(len(weight)) if bias is None else bias.detach().float().cpu()


def _list(layers: list[int]) -> str:
    return ", ".join(map(str, layers)) or "none"


def _elsewhere(recipe: Recipe, fingerprint: str, layer: int) -> Teacher:
    return Teacher(copy_of(recipe, fingerprint), layer)
