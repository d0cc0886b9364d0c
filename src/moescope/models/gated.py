"""The gated MLPs of a dense decoder: down(act(gate x) · up x), a neuron a row of gate and up and a column of down."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moescope.errors import InputError
from moescope.models.weights import quantization_of

if TYPE_CHECKING:
    from moescope.models.load import LoadedModel

_ACTIVATIONS = ("act_fn", "activation_fn", "act")


@dataclass(frozen=True, eq=False)
class GatedMLP:
    """One layer's MLP: ``gate`` and ``up`` (I, d), ``down`` (d, I), and the function of the gate."""

    layer: int
    path: str
    """from the whole model's root"""
    module: nn.Module
    gate: Tensor = field(repr=False)
    up: Tensor = field(repr=False)
    down: Tensor = field(repr=False)
    activation: nn.Module = field(repr=False)

    @property
    def neurons(self) -> int:
        return len(self.gate)

    @property
    def width(self) -> int:
        return self.gate.shape[1]


def gated_mlps(model: LoadedModel) -> list[GatedMLP]:
    """The MLP of every layer, in order.

    Raises:
        InputError: a layer has experts, or an MLP that is not gated, has biases, or computes something else; names the type.
    """
    if (quantised := quantization_of(model.config)) is not None:
        raise InputError(
            f"the weights of {model.name} are codes ({quantised}): give the model that they were made from", "model"
        )
    names = {id(module): name for name, module in model.module.named_modules()}
    found = [_of_layer(model, number, layer, names) for number, layer in enumerate(model.structure.layers)]
    if gated_modules(model.module) != [mlp.path for mlp in found]:
        raise InputError(f"{model.name} has gated MLPs that are of no layer of its own, so they cannot be told apart", "model")
    return found


def gated_modules(model: nn.Module) -> list[str]:
    """Paths of all modules that are built like gated MLPs, in order."""
    return [name for name, module in model.named_modules() if _parts(module) is not None]


def activation_of(module: nn.Module) -> nn.Module | None:
    """The function of an MLP's gate."""
    found = (getattr(module, name, None) for name in _ACTIVATIONS)
    return next((f for f in found if isinstance(f, nn.Module)), None)


def _of_layer(model: LoadedModel, number: int, layer: nn.Module, names: dict[int, str]) -> GatedMLP:
    where = f"model type {getattr(model.config, 'model_type', '?')!r}, layer {number}"
    if any(site.kind == "router" and site.layer == number for site in model.sites("router")):
        raise InputError(f"{where}: has experts, and neurons are chosen in dense MLPs; see moescope prune", "model")
    for module in layer.modules():
        parts = _parts(module)
        if parts is None:
            continue
        gate, up, down = parts
        activation = activation_of(module)
        if activation is None or any(name.endswith("bias") for name, _ in module.named_parameters()):
            raise InputError(f"{where}: its MLP has biases or no activation of its own, which is not supported", "model")
        found = GatedMLP(number, names[id(module)], module, gate, up, down, activation)
        _check(found, where)
        return found
    raise InputError(f"{where}: its MLP is not gated (no gate, up and down projection), so no neuron can be chosen", "model")


def _parts(module: Any) -> tuple[Tensor, Tensor, Tensor] | None:
    """gate, up and down of a module that holds them, apart or gate and up in one (Phi-3)."""
    down = _weight(module, "down_proj")
    gate, up = _weight(module, "gate_proj"), _weight(module, "up_proj")
    both = _weight(module, "gate_up_proj")
    if down is None or (both is None and (gate is None or up is None)):
        return None
    if both is not None:
        gate, up = both.chunk(2)
    return gate, up, down  # type: ignore[return-value]


def _weight(module: Any, name: str) -> Tensor | None:
    linear = getattr(module, name, None)
    return linear.weight.detach() if isinstance(linear, nn.Linear) else None


@torch.no_grad()
def _check(mlp: GatedMLP, where: str) -> None:
    """That what its parts give is what the module gives: one that does more (a norm, a clamp, sparsity of its own) is told."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, mlp.width, generator=generator).to(mlp.gate.device, mlp.gate.dtype)
    try:
        own = mlp.module(x)
        parts = F.linear(mlp.activation(F.linear(x, mlp.gate)) * F.linear(x, mlp.up), mlp.down)
        same = isinstance(own, Tensor) and bool((own - parts).abs().max() <= 0.02 * own.abs().max())
    except (RuntimeError, TypeError, AttributeError):
        same = False
    if not same:
        raise InputError(f"{where}: its MLP computes something else than down(act(gate x) · up x)", "model")
