"""An MLP that reads, of its weights, those of the neurons that a coarse copy of them chooses for each token.

The codes nest (:mod:`moescope.models.rounding`): the first ``choose`` bits of gate and up are read for every neuron, and tell
how much each would write; the further bits, and the rows of down, are read for the neurons that write most alone. How many
work on a token is fixed for each layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moescope.errors import InputError
from moescope.models.gated import activation_of, gated_modules
from moescope.models.rounding import Nested, group_of


class CodedLinear(nn.Module):
    """A linear map by codes that nest: ``codes`` uint8 (N, d) and ``scale`` float16 (N, d / G), a row for each neuron.

    Args:
        by_input: the neurons are the map's inputs (down), not its outputs (gate, up).
    """

    codes: nn.Parameter
    scale: nn.Parameter

    def __init__(self, neurons: int, width: int, bits: int, *, by_input: bool = False) -> None:
        super().__init__()
        self.bits, self.by_input = bits, by_input
        self.in_features, self.out_features = (neurons, width) if by_input else (width, neurons)
        groups = width // group_of(width)
        self.codes = nn.Parameter(torch.empty(neurons, width, dtype=torch.uint8), requires_grad=False)
        self.scale = nn.Parameter(torch.empty(neurons, groups, dtype=torch.float16), requires_grad=False)

    @property
    def nested(self) -> Nested:
        return Nested(self.codes, self.scale, self.bits)

    def take(self, codes: Nested) -> None:
        """Hold these."""
        self.codes = nn.Parameter(codes.codes, requires_grad=False)
        self.scale = nn.Parameter(codes.scale, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (…, in_features) to (…, out_features), by all bits."""
        rows = self.nested.prefix()
        return F.linear(x.float(), rows.T if self.by_input else rows).to(x.dtype)


class SparseMLP(nn.Module):
    """down(h), with h = act(gate x) · up x of the ``neurons`` that the first ``choose`` bits of gate and up expect to write
    most: the largest |act(ĝ x) · û x| · ‖d‖. Sums are in float32.

    ``execute`` computes that; :func:`reference` is what it means.
    """

    def __init__(self, width: int, inner: int, neurons: int, bits: int, choose: int, activation: nn.Module) -> None:
        super().__init__()
        self.gate_proj = CodedLinear(inner, width, bits)
        self.up_proj = CodedLinear(inner, width, bits)
        self.down_proj = CodedLinear(inner, width, bits, by_input=True)
        self.act_fn = activation
        self.neurons, self.choose = neurons, choose
        self.execute: Callable[[SparseMLP, Tensor], Tensor] = reference
        self._norms: Tensor | None = None

    @property
    def norms(self) -> Tensor:
        """float32 (I,): of each neuron's output direction, by all bits of down."""
        if self._norms is None or self._norms.device != self.down_proj.codes.device:
            self._norms = self.down_proj.nested.prefix().norm(dim=1)
        return self._norms

    def forward(self, x: Tensor) -> Tensor:
        """x (…, d) to (…, d)."""
        return self.execute(self, x.reshape(-1, x.shape[-1])).reshape(x.shape)


def reference(mlp: SparseMLP, x: Tensor) -> Tensor:
    """What a :class:`SparseMLP` gives for x (T, d), in plain torch: every neuron is computed, and those not chosen left out."""
    x32 = x.float()
    scores = write_scores(x32, mlp.gate_proj.nested, mlp.up_proj.nested, mlp.choose, mlp.norms, mlp.act_fn)
    h = mlp.act_fn(mlp.gate_proj(x32)) * mlp.up_proj(x32)
    written: Tensor = mlp.down_proj(h * largest(scores, mlp.neurons))
    return written.to(x.dtype)


def write_scores(
    x: Tensor, gate: Nested, up: Nested, bits: int | None, norms: Tensor, activation: Callable[[Tensor], Tensor]
) -> Tensor:
    """(T, I) float32: how much each neuron would write on x (T, d), by the first ``bits`` of gate and up (None: by all)."""
    estimate: Tensor = activation(x @ gate.prefix(bits).T) * (x @ up.prefix(bits).T)
    return estimate.abs() * norms


def largest(scores: Tensor, count: int) -> Tensor:
    """(T, I) float32 of ones and noughts: the ``count`` largest of each row."""
    if count >= scores.shape[1]:
        return torch.ones_like(scores)
    return torch.zeros_like(scores).scatter_(1, scores.topk(count, dim=1, sorted=False).indices, 1.0)


def sparse_mlps(model: nn.Module) -> list[SparseMLP]:
    """Those of a model, by layer."""
    return [module for module in model.modules() if isinstance(module, SparseMLP)]


@contextmanager
def every_neuron(model: nn.Module) -> Iterator[None]:
    """For a time, all neurons work on every token: the dense model of the same codes."""
    mlps = sparse_mlps(model)
    kept = [mlp.neurons for mlp in mlps]
    try:
        for mlp in mlps:
            mlp.neurons = mlp.gate_proj.out_features
        yield
    finally:
        for mlp, count in zip(mlps, kept, strict=True):
            mlp.neurons = count


def put_sparse(model: nn.Module, neurons: Sequence[int], bits: int, choose: int) -> list[SparseMLP]:
    """Put a :class:`SparseMLP` without codes in the place of each gated MLP, on the device that it is on.

    Raises:
        InputError: the model has another number of gated MLPs than ``neurons`` counts, or one of fewer neurons.
    """
    paths = gated_modules(model)
    if len(paths) != len(neurons):
        raise InputError(f"{len(paths)} gated MLPs, and numbers of neurons for {len(neurons)}")
    made = []
    for path, count in zip(paths, neurons, strict=True):
        old: Any = model.get_submodule(path)
        inner, width = old.down_proj.in_features, old.down_proj.out_features
        activation = activation_of(old)
        if activation is None or not 1 <= count <= inner:
            raise InputError(f"{path}: {count} is not between 1 and its {inner} neurons")
        with torch.device(old.down_proj.weight.device):
            made.append(SparseMLP(width, inner, count, bits, choose, activation))
        model.set_submodule(path, made[-1])
    return made
