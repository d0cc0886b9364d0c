"""Weights rounded to few bits: the cheapest way to read fewer bytes, which other ways of saving them are held against.

And codes that nest: the first bits of every code are a coarser copy of the same weights, so that a copy that chooses costs no
byte beside the one that computes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from moescope.errors import InputError

GROUP = 32
"""Neighbours in a row that share a scale of 16 bits."""


def group_of(width: int) -> int:
    """How many neighbours share a scale in rows of ``width``: as many of :data:`GROUP` as divide it."""
    return math.gcd(GROUP, width)


def rounded(weight: Tensor, bits: int = 8) -> Tensor:
    """The nearest of ``2 ** bits - 1`` multiples of a scale, one for 32 neighbours in a row and itself of 16 bits (with 8 bits
    llama.cpp's Q8_0)."""
    most = 2 ** (bits - 1) - 1
    groups = weight.float().reshape(-1, group_of(weight.shape[-1]))
    scale = (groups.abs().amax(1, keepdim=True) / most).half().float().clamp_min(1e-8)
    near: Tensor = (groups / scale).round().clamp(-most, most) * scale
    return near.reshape(weight.shape).to(weight.dtype)


def share_of_bytes(bits: float, width: int = GROUP) -> float:
    """Of what 16-bit weights take, the scales of rows of ``width`` included."""
    return (bits + 16 / group_of(width)) / 16


@dataclass(frozen=True, eq=False)
class Nested:
    """Codes of which any first bits are codes of the same weights.

    ``codes`` uint8 (N, d); ``scale`` float16 (N, d / G), one for G neighbours in a row; ``bits`` of a code. A weight is
    ``scale · (code - (2 ** bits - 1) / 2)``: levels lie on both sides of nought, none on it. The first b bits c of a code then
    stand for the middle of the weights that share them, ``scale · 2 ** (bits - b) · (c - (2 ** b - 1) / 2)``, and no copy needs
    a scale or a level of its own. (Codes with a level at nought, or between a least and a largest weight, do not nest so.)
    """

    codes: Tensor
    scale: Tensor
    bits: int

    def prefix(self, bits: int | None = None) -> Tensor:
        """float32 (N, d): the weights by the first ``bits`` of their codes (default: by all)."""
        own = self.bits if bits is None else bits
        left = self.bits - own
        code = (self.codes >> left).float() - (2**own - 1) / 2
        step = self.scale.float() * 2**left
        weights: Tensor = code * step.repeat_interleave(code.shape[1] // step.shape[1], 1)
        return weights


def nested(weight: Tensor, bits: int = 8) -> Nested:
    """Codes that nest, of weights (N, d); a group's largest weight is its last level.

    Raises:
        InputError: ``bits`` is not from 2 to 8.
    """
    if not 2 <= bits <= 8:
        raise InputError(f"must be from 2 to 8, got {bits}", "bits")
    rows = weight.detach().float()
    width = group_of(rows.shape[1])
    groups = rows.reshape(len(rows), -1, width)
    levels = 2**bits - 1
    scale = (groups.abs().amax(2) * (2 / levels)).half()
    steps = rows / scale.float().clamp_min(1e-8).repeat_interleave(width, 1) + levels / 2
    return Nested(steps.round().clamp(0, levels).to(torch.uint8), scale, bits)
