"""Routing during generation, and what cannot be traced."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from moescope.capture.session import CaptureSession
from moescope.errors import InputError
from moescope.models import LoadedModel, from_model
from moescope.models.tiny import tiny_module
from moescope.routing import Decoding, RoutingTrace, expert_layers, recording, trace_prompts
from tests.architectures import tiny_model

TEXTS = ["hello", "a much longer text here", "x"]
PROMPTS = [SimpleNamespace(id=f"p{n}", text=text, category=None, group=None) for n, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return tiny_model("olmoe", head=True)


@pytest.mark.parametrize(
    "decoding", [Decoding(), Decoding(sample=True, top_k=20), Decoding(beams=3)], ids=["greedy", "sampled", "beam"]
)
def test_the_routing_of_generated_text_is_that_of_reading_it(model: LoadedModel, decoding: Decoding) -> None:
    trace = trace_prompts(model, PROMPTS, max_new_tokens=6, decoding=decoding).validate()
    assert trace.lengths.tolist() == [len(text) + 1 + 5 for text in TEXTS]  # <bos>, and the last token is not fed
    for number in range(3):
        one = trace.select([number])
        assert one.position.tolist() == list(range(len(one)))
        assert one.generated.tolist() == [False] * (len(TEXTS[number]) + 1) + [True] * 5
        with recording(model, weights=torch.float16) as recorder:
            CaptureSession(model, (), stop=False).run(torch.from_numpy(one.tokens[None].astype(np.int64)))
        read = torch.stack([dispatch.ids for dispatch in recorder.steps[0]], 1).numpy()
        np.testing.assert_array_equal(one.ids, read)
        weights = torch.stack([dispatch.weights for dispatch in recorder.steps[0]], 1).numpy()
        np.testing.assert_allclose(one.weights, weights, atol=2e-3)


@pytest.mark.parametrize("decoding", [Decoding(), Decoding(beams=3)], ids=["greedy", "beam"])
def test_a_batch_is_its_rows_one_by_one(model: LoadedModel, decoding: Decoding) -> None:
    together = trace_prompts(model, PROMPTS, max_new_tokens=6, decoding=decoding)
    alone = RoutingTrace.concat([trace_prompts(model, [p], max_new_tokens=6, decoding=decoding) for p in PROMPTS])
    for name in ("ids", "tokens", "sequence", "position", "generated"):
        np.testing.assert_array_equal(getattr(together, name), getattr(alone, name))


def test_what_comes_after_the_end_of_a_text_is_left_out(model: LoadedModel) -> None:
    full = trace_prompts(model, PROMPTS, max_new_tokens=6)
    third = full.select(["p0"], part="generated").tokens[2]
    module: Any = model.module
    before = module.generation_config.eos_token_id
    try:
        module.generation_config.eos_token_id = int(third)  # the third generated token of p0 now ends it
        ended = trace_prompts(model, PROMPTS, max_new_tokens=6)
    finally:
        module.generation_config.eos_token_id = before
    stopped = ended.select(["p0"])
    assert int(stopped.generated.sum()) == np.flatnonzero(full.select(["p0"], part="generated").tokens == third)[0]
    np.testing.assert_array_equal(stopped.ids, full.select(["p0"]).ids[: len(stopped)])


def test_sampling_leaves_the_callers_random_numbers_alone(model: LoadedModel) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = trace_prompts(model, PROMPTS, max_new_tokens=4, decoding=Decoding(sample=True, seed=1))
    torch.testing.assert_close(torch.rand(3), expected)
    again = trace_prompts(model, PROMPTS, max_new_tokens=4, decoding=Decoding(sample=True, seed=1))
    other = trace_prompts(model, PROMPTS, max_new_tokens=4, decoding=Decoding(sample=True, seed=2))
    np.testing.assert_array_equal(first.tokens, again.tokens)
    assert not np.array_equal(first.tokens, other.tokens)


def test_scores_are_the_logits_and_their_top_k_the_ids(model: LoadedModel) -> None:
    trace = trace_prompts(model, PROMPTS, scores=True, weight_dtype="float32").validate()
    assert trace.meta["scores"] == "logits"
    assert trace.meta["gating"] == "softmax; top-k of the scores"
    top = np.argsort(-trace.scores, axis=-1)[..., :2]
    np.testing.assert_array_equal(top, trace.ids)
    assert trace_prompts(model, PROMPTS, tokens=False, weights=False).tokens is None


def test_hooks_are_gone_afterwards(model: LoadedModel) -> None:
    before = _hooks(model)
    trace_prompts(model, PROMPTS[:1], max_new_tokens=2, scores=True)
    assert _hooks(model) == before
    with recording(model) as recorder:
        assert _hooks(model) > before + len(recorder.layers)
    assert _hooks(model) == before


def _hooks(model: LoadedModel) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.module.modules())


def test_a_dense_model_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"tiny-llama is dense.*moescope circuits"):
        trace_prompts(tiny_model("llama"), PROMPTS)


def test_generation_needs_the_head() -> None:
    with pytest.raises(InputError, match="without its head"):
        trace_prompts(tiny_model("olmoe"), PROMPTS, max_new_tokens=2)


def test_a_layer_that_sends_its_tokens_nowhere_is_an_error() -> None:
    model = from_model(tiny_module("olmoe"), None, name="m")
    block = model.body.layers[2].mlp
    block.forward = lambda hidden: torch.zeros_like(hidden)  # as a fused kernel would, past the experts module
    with recording(model), pytest.raises(InputError, match=r"layer 2 \(layers.2.mlp.experts, OlmoeExperts\).*not called"):
        model.body(torch.tensor([[3, 4]]))


def test_a_layer_that_is_called_twice_is_an_error() -> None:
    model = from_model(tiny_module("olmoe"), None, name="m")
    block = model.body.layers[1].mlp
    forward = type(block).forward
    block.forward = lambda hidden: forward(block, hidden) + forward(block, hidden)
    with recording(model), pytest.raises(InputError, match=r"layer 1 .*called twice"):
        model.body(torch.tensor([[3, 4]]))


class _Unknown(nn.ModuleList):
    """A bank of experts of someone's own, called in an unknown way."""


@pytest.mark.parametrize("name", ["_Unknown", "Mxfp4Experts"])
def test_unknown_experts_are_refused_with_their_layer(name: str) -> None:
    model = from_model(tiny_module("olmoe"), None, name="m")
    model.body.layers[3].mlp.experts = type(name, (_Unknown,), {})([nn.Linear(32, 32), nn.Linear(32, 32)])
    mend = "dequantize=True" if name.startswith("Mxfp4") else "not known"
    with pytest.raises(InputError, match=rf"layers.3.mlp.experts: {name} holds experts.*{mend}"):
        expert_layers(model)


def test_bad_options_are_one_line(model: LoadedModel) -> None:
    for options in ({"max_new_tokens": -1}, {"weight_dtype": "int8"}):
        with pytest.raises(InputError):
            trace_prompts(model, PROMPTS, **options)
    with pytest.raises(InputError, match="beams"):
        Decoding(beams=0)
