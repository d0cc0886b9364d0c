"""Forward tokens are what a model ran: no padding, no cache, no layers that were skipped."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moescope.capture import capture, encode
from moescope.intervene import resumed
from moescope.intervene.text_loss import loss_per_token, text_losses
from moescope.models import LoadedModel
from moescope.models.forward_tokens import ForwardTokens
from moescope.models.past import past_argument, past_of
from moescope.types import Site
from tests.architectures import SETTINGS, tiny_model
from tests.planted_llama import planted_llama


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return planted_llama()


IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])


@pytest.mark.parametrize("family", sorted(SETTINGS))
def test_padding_does_not_count(family: str) -> None:
    model, tokens = tiny_model(family, head=True), ForwardTokens()
    with tokens.of(model, "here"), torch.no_grad():
        model.body(input_ids=IDS + 5, attention_mask=MASK)
        model.module(input_ids=IDS + 5, attention_mask=MASK)
    with torch.no_grad():
        model.body(input_ids=IDS + 5, attention_mask=MASK)  # outside the block: for nobody
    assert tokens.totals() == {"here": 12}


def test_what_a_cache_holds_does_not_count(model: LoadedModel) -> None:
    tokens = ForwardTokens()
    with tokens.of(model, "prompt"), torch.no_grad():
        cache = past_of(model.body(input_ids=IDS[:1], use_cache=True))
    with tokens.of(model, "one"), torch.no_grad():
        given = {"attention_mask": torch.ones(1, 5), "use_cache": True, **past_argument(model.body, cache)}
        model.body(input_ids=IDS[:1, -1:], **given)
    assert tokens.totals() == {"prompt": 4, "one": 1}


def test_skipped_layers_do_not_count(model: LoadedModel) -> None:
    tokens = ForwardTokens()
    eight = torch.full((2, 4), 6)
    with tokens.of(model, "late"), torch.no_grad(), resumed(model, 2, torch.zeros(2, 4, model.d_model)):
        model.body(input_ids=eight)
    with tokens.of(model, "early"), capture(model, [Site("resid", 0)]) as session:
        session.run(eight)
    assert tokens.totals() == {"late": 2, "early": 2}  # one layer of four, of eight tokens


def test_the_loss_of_all_tokens_is_the_models_own(model: LoadedModel) -> None:
    encoded = encode(model, ["w1 w2 w3 w4 w5", "w6 w7 w8", "w9"])
    with torch.no_grad():
        own = []
        for ids in list(encoded)[:2]:
            row = torch.from_numpy(ids.astype(np.int64))[None]
            own.append(float(model.module(input_ids=row, labels=row).loss))
    loss, count = loss_per_token(model, encoded)
    assert count == 4 + 2
    assert loss == pytest.approx((4 * own[0] + 2 * own[1]) / 6, abs=1e-6)
    assert text_losses(model, encoded)[:2] == pytest.approx(own, abs=1e-6)
