"""Ways of choosing what of an MLP works on a token, under one interface: a way runs a layer on x (T, d), and counts its use.

All of them run the same codes, so that they differ in what is chosen alone. Definitions are those of the papers, as far as one
layer's input decides: CATS (arXiv:2404.08763) keeps neurons whose |act(gate x)| is beyond a threshold that calibration sets;
the indicator of M-COUNTDOWN (arXiv:2505.17701) is |up x|, likewise; TEAL (arXiv:2408.14690) keeps inputs of every matrix whose
size is beyond a threshold that calibration sets for that matrix; WINA (arXiv:2505.19427) keeps the largest |x| times the norm
of the matrix's column; LaRoSA (arXiv:2507.01299) turns a layer's input to the principal axes of calibration text, and keeps the
largest coordinates. Their fine-tuning, their sparsity of attention and their uneven budgets are not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from moescope.models.gated import GatedMLP
from moescope.models.rounding import Nested, nested
from moescope.models.sparse import largest, write_scores
from moescope.studies.sparsify.cost import Shape

PLANES, CHANCE, ANOTHER = "planes", "random", "another token"


@dataclass(frozen=True, eq=False)
class Layer:
    """One MLP by its codes; those of ``down`` have a row for each neuron."""

    mlp: GatedMLP
    gate: Nested
    up: Nested
    down: Nested

    @cached_property
    def norms(self) -> Tensor:
        """float32 (I,): of the neurons' output directions."""
        norms: Tensor = self.down.prefix().norm(dim=1)
        return norms

    @property
    def shape(self) -> Shape:
        return Shape(self.mlp.width, self.mlp.neurons)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """act(gate x) and up x, (T, I) each."""
        return self.mlp.activation(x @ self.gate.prefix().T), x @ self.up.prefix().T

    def write(self, h: Tensor) -> Tensor:
        """(T, I) to (T, d)."""
        return h @ self.down.prefix()


def coded(mlps: Sequence[GatedMLP], bits: int) -> list[Layer]:
    """The layers of a model, their weights as codes that nest."""
    return [Layer(mlp, nested(mlp.gate, bits), nested(mlp.up, bits), nested(mlp.down.T, bits)) for mlp in mlps]


def _nothing() -> dict[str, list[float]]:
    return {"neurons": [0.0, 0.0], "inputs": [0.0, 0.0]}


@dataclass(eq=False)
class Way:
    """Base: runs layers, and counts the shares of neurons and of inputs that were used on all tokens that it saw."""

    layers: Sequence[Layer]
    used: dict[str, list[float]] = field(default_factory=_nothing, init=False)

    def begin(self, batch: int) -> None:
        """Count from nought; what is drawn from here on depends on the batch's number alone."""
        self.used = _nothing()

    def run(self, number: int, x: Tensor) -> Tensor:
        """What layer ``number`` gives for x (T, d) float32."""
        raise NotImplementedError

    def count(self, what: str, mask: Tensor) -> Tensor:
        total = self.used[what]
        total[0] += float(mask.sum(dtype=torch.float64))
        total[1] += mask.numel()
        return mask

    def share(self, what: str) -> float:
        """Used, of all: neurons or inputs; 1 where none was left out."""
        some, every = self.used[what]
        return some / every if every else 1.0


Scores = Callable[[int, Layer, Tensor, Tensor, Tensor], Tensor]
"""Layer's number, the layer, x, act(gate x) and up x to a score (T, I)."""


@dataclass(eq=False)
class ByNeuron(Way):
    """Neurons work whose scores are the largest, ``limits[l]`` of them (int), or those of at least that score (float)."""

    scores: Scores
    limits: Sequence[float]
    drawing: torch.Generator | None = None
    """what ``scores`` draws from, if it does"""

    def __post_init__(self) -> None:
        self._seed = None if self.drawing is None else self.drawing.initial_seed()

    def begin(self, batch: int) -> None:
        super().begin(batch)
        if self.drawing is not None:
            self.drawing.manual_seed(hash((self._seed, batch)) & 0x7FFFFFFF)

    def run(self, number: int, x: Tensor) -> Tensor:
        layer = self.layers[number]
        a, u = layer.parts(x)
        scores, limit = self.scores(number, layer, x, a, u), self.limits[number]
        mask = largest(scores, limit) if isinstance(limit, int) else (scores >= limit).float()
        return layer.write(a * u * self.count("neurons", mask))


@dataclass(eq=False)
class ByInput(Way):
    """Inputs of each matrix are kept: those of gate and up by ``inputs``, those of down by ``hidden``: x to a mask like it."""

    inputs: Callable[[int, Layer, Tensor, str], Tensor]

    def run(self, number: int, x: Tensor) -> Tensor:
        layer = self.layers[number]
        sides = [x * self.count("inputs", self.inputs(number, layer, x, side)) for side in ("gate", "up")]
        h = layer.mlp.activation(sides[0] @ layer.gate.prefix().T) * (sides[1] @ layer.up.prefix().T)
        return layer.write(h * self.count("neurons", self.inputs(number, layer, h, "down")))


@contextmanager
def replaced(way: Way) -> Iterator[None]:
    """For a time, the MLPs of the model run so."""
    modules = [layer.mlp.module for layer in way.layers]

    def forward_of(number: int) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            return way.run(number, x.reshape(-1, x.shape[-1]).float()).reshape(x.shape).to(x.dtype)

        return forward

    try:
        for number, module in enumerate(modules):
            module.forward = forward_of(number)
        yield
    finally:
        for module in modules:
            vars(module).pop("forward", None)


# Scores of neurons


def by_planes(bits: int) -> Scores:
    """What the first ``bits`` of gate and up expect each neuron to write."""
    return lambda number, layer, x, a, u: write_scores(x, layer.gate, layer.up, bits, layer.norms, layer.mlp.activation)


def by_another_token(bits: int, generator: torch.Generator) -> Scores:
    """The same, of another token of the same batch: what the choice is worth where it is not of this token."""
    planes = by_planes(bits)

    def scores(number: int, layer: Layer, x: Tensor, a: Tensor, u: Tensor) -> Tensor:
        other = torch.randperm(len(x), generator=generator).to(x.device)
        return planes(number, layer, x[other], a, u)

    return scores


def by_chance(generator: torch.Generator) -> Scores:
    """Any neurons, drawn anew for every token."""
    return lambda number, layer, x, a, u: torch.rand(a.shape, generator=generator).to(a.device)


def by_oracle(number: int, layer: Layer, x: Tensor, a: Tensor, u: Tensor) -> Tensor:
    """What each neuron writes: nothing that is cheaper than to compute it tells it."""
    return (a * u).abs() * layer.norms


def by_gate(number: int, layer: Layer, x: Tensor, a: Tensor, u: Tensor) -> Tensor:
    """|act(gate x)| times the norm of the output direction; up is read for the chosen alone."""
    return a.abs() * layer.norms


def by_gate_alone(number: int, layer: Layer, x: Tensor, a: Tensor, u: Tensor) -> Tensor:
    """|act(gate x)|, as in CATS."""
    return a.abs()


def by_up_alone(number: int, layer: Layer, x: Tensor, a: Tensor, u: Tensor) -> Tensor:
    """|up x|, as in M-COUNTDOWN."""
    return u.abs()


def by_average(importance: Sequence[Tensor]) -> Scores:
    """The same neurons for every token: those that write most on average."""
    return lambda number, layer, x, a, u: importance[number].expand(len(x), -1)


# Masks of inputs


def beyond_thresholds(x_least: Sequence[float], h_least: Sequence[float]) -> Callable[[int, Layer, Tensor, str], Tensor]:
    """Inputs of at least a size, each matrix's own, as in TEAL; gate and up have the same input."""
    return lambda number, layer, x, side: (x.abs() >= (h_least if side == "down" else x_least)[number]).float()


def by_column_norms(layers: Sequence[Layer], share: float) -> Callable[[int, Layer, Tensor, str], Tensor]:
    """The largest |x| times the norm of the column that it is multiplied with, as in WINA."""
    norms = [{"gate": at.gate.prefix().norm(dim=0), "up": at.up.prefix().norm(dim=0), "down": at.norms} for at in layers]
    return lambda number, layer, x, side: largest(x.abs() * norms[number][side], max(1, round(share * x.shape[1])))


def by_size(share: float) -> Callable[[int, Layer, Tensor, str], Tensor]:
    """The largest |x| of each token."""
    return lambda number, layer, x, side: largest(x.abs(), max(1, round(share * x.shape[1])))


@dataclass(eq=False)
class Rotated(Way):
    """As :class:`ByInput`, on inputs turned by ``axes[l]`` (d, d), columns the axes; gate and up are turned and then coded."""

    axes: Sequence[Tensor]
    turned: Sequence[Layer]
    keep: float

    def run(self, number: int, x: Tensor) -> Tensor:
        layer, mask = self.turned[number], by_size(self.keep)
        z = x @ self.axes[number]
        z = z * self.count("inputs", mask(number, layer, z, "gate"))
        a, u = layer.parts(z)
        h = a * u
        return layer.write(h * self.count("neurons", mask(number, layer, h, "down")))


def turned(layers: Sequence[Layer], axes: Sequence[Tensor], bits: int) -> list[Layer]:
    """The layers with gate and up for turned inputs, coded anew."""

    def coded_anew(weight: Tensor, q: Tensor) -> Nested:
        return nested(weight.float() @ q.to(weight.device), bits)

    return [
        Layer(at.mlp, coded_anew(at.mlp.gate, q), coded_anew(at.mlp.up, q), at.down) for at, q in zip(layers, axes, strict=True)
    ]
