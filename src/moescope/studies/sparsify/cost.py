"""Bytes of the MLPs' weights that a token reads, counted, as a share of what 16-bit weights take.

A third of the weights each are gate, up and down. A weight of B bits takes B bits and its part of a scale (16 bits for 32
neighbours). What chooses by how much a neuron writes also reads the norm of each output direction, 16 bits a neuron.
"""

from __future__ import annotations

from dataclasses import dataclass

from moescope.models.rounding import group_of, share_of_bytes


@dataclass(frozen=True)
class Shape:
    """Of one MLP: the model's width d, and the number I of its neurons."""

    width: int
    neurons: int

    @property
    def scale(self) -> float:
        """Bits of scale that a weight takes, in rows of the model's width."""
        return 16 / group_of(self.width)

    @property
    def norms(self) -> float:
        """Share of the bytes that the norms of all neurons take."""
        return 1 / (3 * self.width)


def plain(shape: Shape, bits: int, down: int) -> float:
    """All weights, gate and up rounded to ``bits`` and down to ``down``, each matrix along its own rows."""
    return (2 * share_of_bytes(bits, shape.width) + share_of_bytes(down, shape.neurons)) / 3


def by_planes(shape: Shape, share: float, bits: int, choose: int) -> float:
    """The first ``choose`` bits of gate and up with their scales; of ``share`` of the neurons the rest, and down."""
    first = 2 / 3 * (choose + shape.scale) / 16
    rest = share * (2 / 3 * (bits - choose) + 1 / 3 * (bits + shape.scale)) / 16
    return first + rest + shape.norms


def by_first(shape: Shape, share: float, bits: int, *, norms: bool) -> float:
    """One of gate and up of every neuron; of ``share`` of them the other, and down."""
    return (1 / 3 + 2 / 3 * share) * (bits + shape.scale) / 16 + (shape.norms if norms else 0)


def by_oracle(shape: Shape, share: float, bits: int) -> float:
    """``share`` of the neurons and nothing to choose them by: what an oracle, chance or a fixed choice reads."""
    return share * (bits + shape.scale) / 16


def by_inputs(shape: Shape, inputs: float, neurons: float, bits: int) -> float:
    """The columns of gate and up for a share of the model's coordinates, and of down for a share of the neurons."""
    return (2 / 3 * inputs + 1 / 3 * neurons) * (bits + shape.scale) / 16
