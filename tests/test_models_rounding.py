"""Weights of few bits: what is lost, and that a prefix of a nested code is a code."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moescope.errors import InputError
from moescope.models.rounding import nested, rounded


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_a_prefix_of_a_nested_code_is_off_by_half_of_its_own_step_at_most(bits: int) -> None:
    weight = _weight()
    found = nested(weight, 8)
    finest = found.scale.float().repeat_interleave(32, 1)
    assert bool(((found.prefix(bits) - weight).abs() <= finest * 2 ** (8 - bits) / 2 + finest).all())


def test_a_prefix_loses_little_beside_a_code_of_its_own() -> None:
    weight = _weight()
    for bits in (4, 6):
        error = (nested(weight, 8).prefix(bits) - weight).square().mean()
        assert error < 1.2 * (nested(weight, bits).prefix() - weight).square().mean()
        assert error < 1.4 * (rounded(weight, bits) - weight).square().mean()


@pytest.mark.parametrize("bits", [1, 9])
def test_bits_of_a_nested_code_are_from_two_to_eight(bits: int) -> None:
    with pytest.raises(InputError, match="from 2 to 8"):
        nested(_weight(), bits)


def _weight() -> Tensor:
    return torch.randn(48, 96, generator=torch.Generator().manual_seed(0))
