"""The key-value cache is found and handed on by either of its names."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from moescope.models.past import past_argument, past_of
from tests.architectures import tiny_model


class New(nn.Module):
    def forward(self, ids: Tensor, cache: object = None) -> Tensor:
        return ids


class Old(nn.Module):
    def forward(self, ids: Tensor, past_key_values: object = None) -> Tensor:
        return ids


def test_either_name() -> None:
    cache = DynamicCache()
    assert past_of({"cache": cache}) is cache
    assert past_of({"past_key_values": cache}) is cache
    assert past_of({"cache": None, "past_key_values": cache}) is cache  # what a renaming leaves behind
    assert past_of({"cache": None}) is None
    assert past_of({}) is None
    assert past_argument(New(), cache) == {"cache": cache}
    assert past_argument(Old(), cache) == {"past_key_values": cache}


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
@pytest.mark.filterwarnings("error")
def test_a_model_goes_on_from_its_own_cache(family: str) -> None:
    """With the installed transformers' own name for it: no warning that it is an old one, and the same logits."""
    model = tiny_model(family, head=True).module
    ids = torch.arange(3, 11)[None]
    whole = model(input_ids=ids, use_cache=False).logits
    begun = model(input_ids=ids[:, :5], use_cache=True)
    assert past_of(begun).get_seq_length() == 5
    rest = model(input_ids=ids[:, 5:], use_cache=True, **past_argument(model, past_of(begun))).logits
    assert (rest - whole[:, 5:]).abs().max() < 1e-5
