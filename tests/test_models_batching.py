"""A model whose texts depend on what is beside them is noticed, and run on one text at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from moescope.capture import Encoded, activations, capture, moments
from moescope.errors import InputError
from moescope.intervene.text_loss import text_losses
from moescope.models import LoadedModel, from_model
from moescope.models.tiny import tiny_module
from moescope.study.protocol import Context
from moescope.study.run import Run
from moescope.study.settings import Settings
from moescope.types import Site
from tests.architectures import build, tiny_model, tiny_tokenizer

ROWS = [list(range(3, 3 + n)) for n in (9, 4, 12, 12, 7)]


class Company(nn.Module):
    """Adds to a token's values the mean over everything in the batch, padding too."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden_states: Tensor) -> Tensor:
        made: Tensor = self.inner(hidden_states)
        return made + 0.5 * made.mean(dim=(0, 1), keepdim=True)


def planted() -> LoadedModel:
    module = build("llama", head=True)
    module.model.layers[1].mlp = Company(module.model.layers[1].mlp)
    return from_model(module, tiny_tokenizer(), name="planted")


def last(model: LoadedModel) -> Site:
    return Site("resid", model.n_layers - 1)


def one_by_one(model: LoadedModel, rows: list[list[int]], site: Site) -> np.ndarray:
    """(N, D): the final token of each text, run by itself without any of our batching."""
    found = []
    with capture(model, [site]) as session:
        for row in rows:
            found.append(session.run(torch.tensor([row]))[site][0, -1].numpy())
    return np.stack(found)


def test_a_model_that_looks_at_its_batch_is_run_one_by_one() -> None:
    model = planted()
    site = last(model)
    assert not model.batching.allows("none")
    expected = one_by_one(model, ROWS, site)
    ids, mask = torch.zeros(5, 12, dtype=torch.long), torch.zeros(5, 12, dtype=torch.long)
    for n, row in enumerate(ROWS):
        ids[n, : len(row)], mask[n, : len(row)] = torch.tensor(row), 1
    with capture(model, [site]) as session:
        together = session.run(ids, mask)[site][0, len(ROWS[0]) - 1].numpy()
    assert np.abs(together - expected[0]).max() > 1e-2  # so that the plant is one
    for side in ("right", "left"):
        found = activations(model, Encoded.from_ids(ROWS), [site], padding_side=side)[:, 0]
        np.testing.assert_allclose(found, expected, atol=1e-6)
    counted = moments(model, Encoded.from_ids(ROWS), [site], [0] * 5)
    np.testing.assert_allclose(counted.mean[0, 0, 0], expected.mean(0), atol=1e-5)
    losses = text_losses(model, Encoded.from_ids(ROWS))
    alone = [text_losses(model, Encoded.from_ids([row]))[0] for row in ROWS]
    np.testing.assert_allclose(losses, alone, atol=1e-6)


@pytest.mark.parametrize("model_type", ["nystromformer", "convbert", "openai-gpt", "deepseek_v32"])
def test_padding_that_reaches_into_a_text_is_left_out(model_type: str) -> None:
    model = from_model(tiny_module(model_type), None, name=model_type)
    sides = ("left",) if model_type == "openai-gpt" else ("right", "left")  # which counts places, padding too
    rows = [list(range(3, 3 + n)) for n in (30, 50, 41)]
    site = last(model)
    assert model.batching.allows("none")
    expected = one_by_one(model, rows, site)
    for side in sides:
        assert not model.batching.allows(side, 50)  # type: ignore[arg-type]
        found = activations(model, Encoded.from_ids(rows), [site], padding_side=side)[:, 0]  # type: ignore[arg-type]
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_most_models_share_batches() -> None:
    for name in ("llama", "gpt2", "bert", "gemma3", "olmoe", "bloom"):
        model = tiny_model(name)
        assert all(model.batching.allows(side, 1000) for side in ("none", "right", "left")), (name, model.batching)
        assert model.batching.note() is None


def test_an_indexer_lets_short_texts_share_a_batch() -> None:
    model = from_model(tiny_module("deepseek_v32"), None, name="m")
    assert model.batching.allows("right", 16)
    assert not model.batching.allows("right", 17)
    assert model.batching.note() == "texts of more than 16 tokens were run one by one: in a batch they attend to other tokens"


def test_the_check_runs_once_and_is_seen_by_no_hook() -> None:
    model = tiny_model("llama")
    forward, calls, seen = model.body.forward, 0, 0

    def counting(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        return forward(*args, **kwargs)

    def hook(*_: object) -> None:
        nonlocal seen
        seen += 1

    model.body.forward = counting  # type: ignore[method-assign]
    handle = model.structure.layers[0].register_forward_hook(hook)
    first = model.batching
    handle.remove()
    assert first is model.batching
    assert (calls, seen) == (5, 0)
    assert first.tokens == 3 * (5 + 19) + 2 * 19  # each alone, both with padding on either side, two of the longer


def test_a_result_says_that_texts_were_run_one_by_one() -> None:
    context = Context("exit", Settings(), Run())
    model = planted()
    for _ in range(2):
        assert context.load(model).module is model.module
    (note,) = context.notes
    assert note.startswith("texts were run one by one: in a batch this model's activations change by ")
    context = Context("exit", Settings(), Run())
    context.load(tiny_model("llama"))
    assert not context.notes


def test_a_model_that_needs_more_than_token_ids_is_refused() -> None:
    model = tiny_model("llama")

    def needs(*args: object, **kwargs: object) -> None:
        raise ValueError("You have to specify bbox")

    model.body.forward = needs  # type: ignore[method-assign]
    with pytest.raises(InputError, match=r"'llama' does not run on token ids alone, so .*: You have to specify bbox"):
        Context("exit", Settings(), Run()).load(model)
