"""Nine ways in which routing is read wrongly; each test shows that the naive reading is wrong and ours right."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from moescope.capture.encode import Encoded
from moescope.errors import InputError
from moescope.models import LoadedModel, from_model
from moescope.models.experts import Dispatch, describe_gating, expert_layers, routed_output
from moescope.models.tiny import VOCABULARY, tiny_module
from moescope.routing import RoutingTrace, TracedSequence, recording, trace_prompts
from tests.architectures import build, tiny_model

IDS = torch.arange(3, 3 + 24).reshape(2, 12)


def tiny(model_type: str) -> LoadedModel:
    return from_model(tiny_module(model_type), None, name=model_type)


def run(model: LoadedModel, ids: Tensor = IDS, **options: Any) -> tuple[dict[int, Dispatch], Any]:
    """(dispatch by true layer, model output) of one forward pass with router logits asked for."""
    with recording(model, hidden=True, scores=True) as recorder, torch.no_grad():
        output = model.module(input_ids=ids, use_cache=False, **options)
    return {layer.layer: step for layer, step in zip(recorder.layers, recorder.steps[0], strict=True)}, output


def trace(model: LoadedModel, rows: list[list[int]], **options: Any) -> RoutingTrace:
    return trace_prompts(model, [TracedSequence(str(n)) for n in range(len(rows))], encoded=Encoded.from_ids(rows), **options)


def sets(ids: Tensor) -> list[frozenset[int]]:
    return [frozenset(row) for row in ids.tolist()]


def agreement(a: Tensor, b: Tensor) -> float:
    return float(np.mean([x == y for x, y in zip(sets(a), sets(b), strict=True)]))


def test_1_index_in_the_tuple_is_not_the_layer_number() -> None:
    model = from_model(build("qwen3_moe", head=True), None)  # experts in every second layer
    dispatch, output = run(model, output_router_logits=True)
    naive = list(range(len(output.router_logits)))
    assert naive == [0, 1]
    assert list(dispatch) == [1, 3]
    assert not hasattr(model.body.layers[0].mlp, "experts")
    # what the tuple calls 0 is layer 1
    assert agreement(output.router_logits[0].topk(2, dim=-1).indices, dispatch[1].ids) == 1


def test_2_hash_routed_layers_are_missing_from_the_recorded_logits() -> None:
    dispatch, output = run(tiny("deepseek_v4"), output_router_logits=True)
    assert len(output.router_logits) == 1
    assert list(dispatch) == [0, 1, 2, 3]
    # such a layer chooses by the token alone
    by_token: dict[int, set[frozenset[int]]] = {}
    repeated, _ = run(tiny("deepseek_v4"), torch.tensor([[5, 9, 5, 7, 9, 5]]))
    for token, chosen in zip([5, 9, 5, 7, 9, 5], sets(repeated[0].ids), strict=True):
        by_token.setdefault(token, set()).add(chosen)
    assert all(len(chosen) == 1 for chosen in by_token.values())


def test_3_attention_routers_are_among_the_recorded_logits() -> None:
    model = tiny("jetmoe")
    dispatch, output = run(model, output_router_logits=True)
    assert len(output.router_logits) > len(dispatch) == model.n_layers
    naive = [agreement(output.router_logits[n].topk(2, dim=-1).indices, dispatch[n].ids) for n in dispatch]
    assert min(naive) < 0.5


def test_4_top_k_of_the_logits_is_not_the_dispatch_where_a_bias_selects() -> None:
    model = tiny("deepseek_v3")
    dispatch, output = run(model, output_router_logits=True)
    for logits, (_, chosen) in zip(output.router_logits, dispatch.items(), strict=True):
        assert agreement(logits.topk(2, dim=-1).indices, chosen.ids) < 0.8
        assert not describe_gating(logits, chosen.ids.int(), chosen.weights).top_k_of_scores


@pytest.mark.parametrize("model_type", ["gpt_oss", "granitemoe"])
def test_5_weights_are_a_softmax_over_the_chosen_logits(model_type: str) -> None:
    dispatch, _ = run(tiny(model_type))
    for found in dispatch.values():
        chosen = found.scores.topk(2, dim=-1)
        naive = found.scores.softmax(-1).gather(1, chosen.indices)
        assert (naive - found.weights).abs().max() > 0.01
        torch.testing.assert_close(chosen.values.softmax(-1), found.weights, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("model_type", "function"), [("olmoe", "softmax"), ("dots1", "sigmoid")])
def test_5_and_elsewhere_they_are_not(model_type: str, function: str) -> None:
    dispatch, _ = run(tiny(model_type))
    for found in dispatch.values():
        logits = found.scores.gather(1, found.ids.long())
        assert (logits.softmax(-1) - found.weights).abs().max() > 0.01
        gating = describe_gating(found.scores, found.ids.int(), found.weights)
        assert (gating.function, gating.renormalised) == (function, False)


def test_6_generation_returns_no_router_logits() -> None:
    model = tiny_model("olmoe", head=True)
    ids = torch.tensor([[10, 11, 12, 13], [256, 256, 14, 15]])
    mask = (ids != 256).long()
    with pytest.raises(RuntimeError):  # the load-balancing loss of a padded prompt does not fit a cached step
        model.module.generate(ids, attention_mask=mask, max_new_tokens=3, do_sample=False, output_router_logits=True)
    plain = model.module.generate(ids, attention_mask=mask, max_new_tokens=3, return_dict_in_generate=True)
    assert "router_logits" not in plain
    ours = trace(model, [[10, 11, 12, 13], [14, 15]], max_new_tokens=3)
    assert ours.generated.sum() == 4  # two fed tokens of each row
    np.testing.assert_array_equal(ours.tokens[ours.generated], plain.sequences[:, 4:6].flatten().numpy())


class _OldRouter(nn.Module):
    """A router as of transformers 5.0 to 5.5: under the name of logits it returns probabilities."""

    def __init__(self, router: nn.Module) -> None:
        super().__init__()
        self.weight, self.router = router.weight, router

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, weights, ids = self.router(hidden)
        return logits.softmax(-1), weights, ids


def test_7_probabilities_under_the_name_of_logits() -> None:
    model = tiny("olmoe")
    for layer in model.body.layers:
        layer.mlp.gate = _OldRouter(layer.mlp.gate)
    with recording(model, scores=True) as recorder, torch.no_grad():
        model.body(IDS)
    assert set(recorder.meanings.values()) == {"softmax probabilities"}
    found = recorder.steps[0][0]
    naive = found.scores.softmax(-1).gather(1, found.ids.long())  # a softmax of what is one already
    assert (naive - found.weights).abs().max() > 0.05
    torch.testing.assert_close(found.scores.gather(1, found.ids.long()), found.weights)
    with recording(tiny("olmoe"), scores=True) as recorder:
        recorder.layers[0].router(torch.randn(3, 32))
    assert recorder.meanings == {0: "logits"}


def test_8_another_precision_is_another_routing() -> None:
    rng = np.random.default_rng(0)
    rows = [rng.integers(3, VOCABULARY, 48).tolist() for _ in range(8)]
    fp32 = trace(tiny("mixtral"), rows)
    bf16 = trace(from_model(tiny_module("mixtral").to(torch.bfloat16), None, name="mixtral"), rows)
    flipped = (np.sort(fp32.ids, -1) != np.sort(bf16.ids, -1)).any(-1).mean()
    assert 0 < flipped < 0.2  # so the two may not be joined as one model's
    with pytest.raises(InputError, match="of another model"):
        RoutingTrace.concat([fp32, bf16])


def test_9_padding_is_routed_and_must_be_left_out() -> None:
    model = tiny("olmoe")
    rows = [[5, 6, 7, 8, 9, 10, 11, 12], [13, 14, 15]]
    padded = torch.tensor([rows[0], [*rows[1], 0, 0, 0, 0, 0]])
    dispatch, _ = run(model, padded, attention_mask=(padded != 0).long())
    naive = torch.bincount(dispatch[0].ids.flatten(), minlength=8)
    ours = trace(model, rows)
    assert naive.sum() == 32
    assert ours.counts()[:, 0].sum() == 22
    alone = np.concatenate([trace(model, [row]).counts() for row in rows])
    np.testing.assert_array_equal(ours.counts(), alone)


def test_a_skipped_token_is_not_expert_0() -> None:
    model = tiny("zaya")
    for layer in model.body.layers:
        layer.mlp.gate.balancing_biases[-1] = 0.9  # let the skip win often
    called: list[tuple[Tensor, Tensor]] = []
    handle = model.body.layers[1].mlp.experts.register_forward_pre_hook(lambda _, args: called.append((args[1], args[2])))
    dispatch, _ = run(model)
    handle.remove()
    naive, weights = called[0]
    skipped = weights == 0
    assert skipped.any()
    assert (naive[skipped] == 0).all()  # the naive ids say expert 0
    assert (dispatch[1].ids[skipped] == 255).all()
    assert (dispatch[1].ids[~skipped] == naive[~skipped]).all()


def test_recomputing_fails_with_another_dispatch() -> None:
    """The check of the coverage table can fail: one wrong id is seen."""
    model = tiny("olmoe")
    outputs: list[Tensor] = []
    with recording(model, hidden=True) as recorder, torch.no_grad():
        layer = recorder.layers[0]
        handles = layer.rule.watch(layer.module, outputs.append)
        model.body(IDS)
    handles[0].remove()
    found = recorder.steps[0][0]
    torch.testing.assert_close(routed_output(layer, found), outputs[0], atol=1e-5, rtol=1e-5)
    wrong = found.ids.clone()
    wrong[0, 0] = (wrong[0, 0] + 1) % 8
    changed = Dispatch(wrong, found.weights, found.hidden)
    assert (routed_output(layer, changed) - outputs[0]).abs().max() > 1e-3


def test_prompts_need_only_four_fields() -> None:
    prompt = SimpleNamespace(id="a", text="hello", category="greeting", group="g/t")
    found = trace_prompts(tiny_model("olmoe"), [prompt])
    assert found.sequences == (TracedSequence("a", "greeting", "g/t"),)


def test_what_a_model_overwrites_after_the_dispatch_is_recorded_as_it_was() -> None:
    """Its own arrays are kept to the end of a pass, without a copy of each, only where it was seen to leave them alone."""
    model = tiny("olmoe")
    with recording(model) as plain, torch.no_grad():
        for _ in range(3):
            model.module(input_ids=IDS, use_cache=False)
    banks = [layer.mlp.experts for layer in model.body.layers]

    def overwrite(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        args[1].zero_()
        args[2].mul_(2)

    with recording(model) as recorder, torch.no_grad():
        handles = [bank.register_forward_hook(overwrite) for bank in banks]
        for _ in range(3):
            model.module(input_ids=IDS, use_cache=False)
    for handle in handles:
        handle.remove()
    for expected, found in zip(plain.steps, recorder.steps, strict=True):
        for a, b in zip(expected, found, strict=True):
            assert torch.equal(a.ids, b.ids)
            assert torch.equal(a.weights, b.weights)


def test_experts_that_took_the_place_of_others_are_found_again() -> None:
    model = tiny("olmoe")
    before = expert_layers(model)
    assert expert_layers(model) is before
    model.body.layers[0].mlp.experts = copy.deepcopy(model.body.layers[0].mlp.experts)
    assert expert_layers(model)[0].module is model.body.layers[0].mlp.experts
