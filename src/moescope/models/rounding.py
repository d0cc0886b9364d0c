"""Weights rounded to few bits: the cheapest way to read fewer bytes, which other ways of saving them are held against."""

from __future__ import annotations

import math

from torch import Tensor

_GROUP = 32


def rounded(weight: Tensor, bits: int = 8) -> Tensor:
    """The nearest of ``2 ** bits - 1`` multiples of a scale, one for 32 neighbours in a row and itself of 16 bits (with 8 bits
    llama.cpp's Q8_0)."""
    most = 2 ** (bits - 1) - 1
    groups = weight.float().reshape(-1, math.gcd(_GROUP, weight.shape[-1]))
    scale = (groups.abs().amax(1, keepdim=True) / most).half().float().clamp_min(1e-8)
    near: Tensor = (groups / scale).round().clamp(-most, most) * scale
    return near.reshape(weight.shape).to(weight.dtype)


def share_of_bytes(bits: int) -> float:
    """Of what 16-bit weights take, the scales included."""
    return (bits + 16 / _GROUP) / 16
