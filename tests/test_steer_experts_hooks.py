"""Banned, forced, boosted and scaled experts: what is dispatched, with which weights, and that nothing stays behind."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from moescope.capture.encode import Encoded
from moescope.errors import InputError
from moescope.intervene import Expert, ExpertEdits, steer_experts
from moescope.models import LoadedModel, from_model
from moescope.models.tiny import tiny_module
from moescope.routing import expert_layers, recording, trace_prompts
from moescope.routing.counts import routing_counts
from moescope.types import Site
from tests.architectures import EXPERT_LAYERS, tiny_model

FAMILIES = tuple(EXPERT_LAYERS)
IDS = torch.randint(5, 60, (3, 9), generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Text:
    id: str
    text: str
    category: str | None = None
    group: str | None = None


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> LoadedModel:
    return tiny_model(request.param, head=True)


@pytest.fixture
def olmoe() -> LoadedModel:
    return tiny_model("olmoe", head=True)


@torch.no_grad()
def run(model: LoadedModel, edits: ExpertEdits | None = None) -> tuple[Tensor, dict[int, tuple[Tensor, Tensor, Tensor]]]:
    """Logits, and by layer what the experts got: hidden states (N, D), ids and weights (N, K)."""
    with steer_experts(model, edits or ExpertEdits()), recording(model, hidden=True) as recorder:
        logits = model.module(IDS).logits
    steps = zip(recorder.layers, recorder.steps[0], strict=True)
    return logits, {layer.layer: (d.hidden, d.ids.long(), d.weights) for layer, d in steps}


def first_layer(model: LoadedModel) -> int:
    return EXPERT_LAYERS[model.name.removeprefix("tiny-")][0]


def hooks(model: LoadedModel) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + ("forward" in m.__dict__) for m in model.module.modules())


def test_a_banned_expert_gets_no_token_in_a_forward_pass_or_while_generating(model: LoadedModel) -> None:
    layer = first_layer(model)
    texts = [Text("a", "Once upon a time"), Text("b", "def f(x):\n    return")]
    clean = trace_prompts(model, texts, max_new_tokens=6)
    place = clean.layers.index(layer)
    favourite = int(clean.counts()[:, place].sum(0).argmax())
    assert (clean.ids[clean.generated, place] == favourite).any()
    with steer_experts(model, ExpertEdits(ban={(layer, favourite)})):
        banned = trace_prompts(model, texts, max_new_tokens=6)
    assert banned.generated.any()
    assert not (banned.ids[:, place] == favourite).any()
    assert (banned.ids[:, place] < clean.n_experts[place]).all()  # another took its slot


def reference(model: LoadedModel, hidden: Tensor, layer: int, banned: int) -> tuple[Tensor, Tensor]:
    """Ids and weights of a layer whose router never had the banned expert, written out for each kind of gating."""
    block = model.body.layers[layer]
    kind = model.config.model_type
    router = block.mlp.router if kind == "gpt_oss" else block.mlp.gate
    logits = torch.nn.functional.linear(hidden, router.weight, getattr(router, "bias", None))
    rest = [e for e in range(logits.shape[1]) if e != banned]
    k = model.config.num_experts_per_tok
    few = logits[:, rest]
    if kind == "gpt_oss":
        top = few.topk(k)
        weights, chosen = top.values.softmax(-1), top.indices
    elif kind == "glm4_moe":
        chosen = (few.sigmoid() + router.e_score_correction_bias[rest]).topk(k).indices
        weights = few.sigmoid().gather(1, chosen)
        weights = weights / weights.sum(1, keepdim=True) * model.config.routed_scaling_factor
    else:
        weights, chosen = few.softmax(-1).topk(k)
        if kind == "mixtral" or getattr(model.config, "norm_topk_prob", False):
            weights = weights / weights.sum(1, keepdim=True)
    return torch.tensor(rest)[chosen], weights


def dense_weights(ids: Tensor, weights: Tensor, n: int) -> Tensor:
    """(N, E): the order of the slots does not matter."""
    return torch.zeros(len(ids), n).scatter(1, ids, weights.float())


def test_the_rest_is_renormalised_as_the_architecture_does(model: LoadedModel) -> None:
    layer = first_layer(model)
    _, clean = run(model)
    hidden, ids, _ = clean[layer]
    banned = int(ids[:, 0].mode().values)
    _, steered = run(model, ExpertEdits(ban={(layer, banned)}))
    expected = dense_weights(*reference(model, hidden, layer, banned), 8)
    assert torch.allclose(dense_weights(*steered[layer][1:], 8), expected, atol=1e-6)


def test_a_forced_expert_is_always_chosen_with_its_own_score(model: LoadedModel) -> None:
    layer = first_layer(model)
    _, clean = run(model)
    n = 4 if "mixtral" in model.name or "gpt" in model.name else 6
    counts = torch.bincount(clean[layer][1].flatten(), minlength=n)
    rare = int(counts.argmin())
    assert counts[rare] < len(clean[layer][1])
    _, steered = run(model, ExpertEdits(force={(layer, rare)}))
    ids, weights = steered[layer][1:]
    assert (ids == rare).any(1).all()
    assert ids.sort(1).values.diff(dim=1).min() > 0  # no expert twice
    # the one that stays keeps its lead over the forced: both are read from the router's own scores
    was = clean[layer][1]
    stays = (ids != rare) & (ids[:, :, None] == was[:, None]).any(-1)
    assert stays.any(1).all()
    assert (weights >= 0).all()
    lowered = ~(was == rare).any(1)
    assert (dense_weights(ids, weights, 8)[lowered, rare] <= weights[lowered].max(1).values).all()


def test_an_infinite_boost_is_force_and_minus_infinity_is_a_ban(model: LoadedModel) -> None:
    layer = first_layer(model)
    for sign, other in ((1, ExpertEdits(force={(layer, 1)})), (-1, ExpertEdits(ban={(layer, 1)}))):
        boosted, _ = run(model, ExpertEdits(boost={Expert(layer, 1): sign * float("inf")}))
        assert torch.equal(boosted, run(model, other)[0])


def test_a_large_boost_chooses_what_force_chooses_and_a_boost_moves_the_logit(model: LoadedModel) -> None:
    layer = first_layer(model)
    large = run(model, ExpertEdits(boost={Expert(layer, 2): 30.0}))[1][layer][1]
    forced = run(model, ExpertEdits(force={(layer, 2)}))[1][layer][1]
    assert torch.equal(large.sort(1).values, forced.sort(1).values)
    clean = run(model)[1][layer]
    common = int(clean[1].flatten().mode().values)
    small = run(model, ExpertEdits(boost={Expert(layer, common): 0.5}))[1][layer]
    both = (small[1] == common).any(1) & (clean[1] == common).any(1)
    before, after = (dense_weights(*d[1:], 8)[both, common] for d in (clean, small))
    assert both.any()
    assert (after > before).all()


def test_scale_multiplies_the_weight_and_nothing_else(model: LoadedModel) -> None:
    layer = first_layer(model)
    _, clean = run(model)
    chosen = int(clean[layer][1][0, 0])
    _, steered = run(model, ExpertEdits(scale={Expert(layer, chosen): 0.25}))
    assert torch.equal(steered[layer][1], clean[layer][1])
    factor = torch.where(clean[layer][1] == chosen, 0.25, 1.0)
    assert torch.allclose(steered[layer][2], clean[layer][2] * factor)


def test_no_edit_changes_no_bit(model: LoadedModel) -> None:
    with torch.no_grad():
        plain = model.module(IDS).logits
    layer = first_layer(model)
    assert torch.equal(run(model)[0], plain)
    assert torch.equal(run(model, ExpertEdits(boost={Expert(layer, 1): 0.0}, scale={Expert(layer, 2): 1.0}))[0], plain)
    assert not torch.equal(run(model, ExpertEdits(boost={Expert(layer, 1): 2.0}))[0], plain)


def test_the_model_is_as_before_even_after_an_error(model: LoadedModel) -> None:
    plain, count = run(model)[0], hooks(model)
    layer = first_layer(model)

    def fail(*_: object) -> None:
        assert hooks(model) > count + 1
        raise RuntimeError("on purpose")

    # inside the block, where the torch function mode is on
    handle = model.tap_point(Site("router", layer)).module.register_forward_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="on purpose"):
            run(model, ExpertEdits(ban={(layer, 0)}))
    finally:
        handle.remove()
    assert hooks(model) == count
    assert torch.equal(run(model)[0], plain)
    # nor is a torch function mode left on
    assert torch.topk(torch.arange(6.0), 2).indices.tolist() == [5, 4]


def test_nested_edits_add_up(olmoe: LoadedModel) -> None:
    both = run(olmoe, ExpertEdits(ban={(0, 1), (0, 2)}))[0]
    with steer_experts(olmoe, ExpertEdits(ban={(0, 1)})):
        assert torch.equal(run(olmoe, ExpertEdits(ban={(0, 2)}))[0], both)
        assert torch.equal(run(olmoe)[0], run(olmoe, ExpertEdits(ban={(0, 1)}))[0])


def test_other_layers_choose_for_themselves(olmoe: LoadedModel) -> None:
    _, clean = run(olmoe)
    _, steered = run(olmoe, ExpertEdits(ban={(2, int(clean[2][1][0, 0]))}))
    for layer in (0, 1):
        assert torch.equal(steered[layer][1], clean[layer][1])


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ({"ban": {(7, 0)}}, "layer 7 has no experts; those with are 0, 1, 2"),
        ({"ban": {(1, 6)}}, "layer 1 has experts 0 to 5"),
        ({"ban": {(1, 0)}, "force": {(1, 0)}}, "1:0 is banned and also forced"),
        ({"boost": {(1, 0): float("nan")}}, "boost: 1:0=nan"),
        ({"scale": {(1, 0): float("inf")}}, "scale: 1:0=inf"),
    ],
)
def test_bad_edits_are_refused_before_the_model_runs(olmoe: LoadedModel, edits: dict, message: str) -> None:
    with pytest.raises(InputError, match=message), steer_experts(olmoe, ExpertEdits(**edits)):
        pass


def test_too_many_bans_or_forced_experts_are_refused(olmoe: LoadedModel) -> None:
    with pytest.raises(InputError, match="5 of 6 experts are banned, each token needs 2"):
        run(olmoe, ExpertEdits(ban={(1, e) for e in range(5)}))
    with pytest.raises(InputError, match="3 experts are forced and each token has 2"):
        run(olmoe, ExpertEdits(force={(1, e) for e in range(3)}))


def test_a_dense_model_and_a_dense_layer_are_refused() -> None:
    with pytest.raises(InputError, match="dense"), steer_experts(tiny_model("llama"), ExpertEdits(ban={(0, 0)})):
        pass
    mixed = tiny_model("qwen3_moe")
    refused = pytest.raises(InputError, match="layer 0 has no experts; those with are 1, 3")
    with refused, steer_experts(mixed, ExpertEdits(ban={(0, 0)})):
        pass


def test_routing_that_does_not_obey_is_an_error_and_not_a_silent_no_op(olmoe: LoadedModel) -> None:
    """The router is passed by, as a fused kernel would: the hooks see nothing, and the dispatch tells."""
    block = olmoe.body.layers[0].mlp

    def fused(hidden: Tensor) -> Tensor:
        flat = hidden.view(-1, hidden.shape[-1])
        probabilities = (flat @ block.gate.weight.T).softmax(-1)
        weights, ids = probabilities.sort(-1, descending=True)
        return block.experts(flat, ids[:, :2], weights[:, :2]).view(hidden.shape)

    favourite = int(run(olmoe)[1][0][1][0, 0])
    block.forward = fused
    for edits in (ExpertEdits(ban={(0, favourite)}), ExpertEdits(boost={Expert(0, 1): 1.0})):
        with pytest.raises(InputError, match="layer 0: this model's routing cannot be steered"):
            run(olmoe, edits)


# routing in the block rather than the router, top-k on axis 1, selection bias with groups, a sparse mixer, skipped experts …
OBEYS = (
    "aria_text",
    "dbrx",
    "deepseek_v3",
    "ernie4_5_moe",
    "gemma4_text",
    "granitemoe",
    "lfm2_moe",
    "longcat_flash",
    "nemotron_h",
)
PARTLY = {"jetmoe": {"scale"}, "llama4_text": {"scale"}, "phimoe": {"force"}}
REFUSES = {"doge": {"ban", "force", "boost", "scale"}, "zaya": {"ban", "force", "boost", "scale"}}


@pytest.mark.parametrize("kind", [*OBEYS, *PARTLY, *REFUSES])
def test_every_kind_of_routing_obeys_or_says_that_it_does_not(kind: str) -> None:
    model = from_model(tiny_module(kind), None, name=kind)
    layer = expert_layers(model)[-1]
    rng = np.random.default_rng(0)
    texts = Encoded.from_ids([rng.integers(5, 60, size=9) for _ in range(3)])

    def used(edits: ExpertEdits) -> np.ndarray:
        with steer_experts(model, edits):
            return routing_counts(model, texts)[:, -1].sum(0)

    clean = used(ExpertEdits())
    most, least = int(clean.argmax()), int(clean.argmin())
    edits = {
        "ban": ExpertEdits(ban={(layer.layer, most)}),
        "force": ExpertEdits(force={(layer.layer, least)}),
        "boost": ExpertEdits(boost={Expert(layer.layer, least): 30.0}),
        "scale": ExpertEdits(scale={Expert(layer.layer, most): 0.5}),
    }
    refused = PARTLY.get(kind) or REFUSES.get(kind) or set()
    for name in refused:
        with pytest.raises(InputError, match=f"layer {layer.layer}: this model's routing cannot be steered"):
            used(edits[name])
    found = {name: used(edit) for name, edit in edits.items() if name not in refused}
    if "ban" in found:
        assert found["ban"][most] == 0
        assert found["ban"].sum() == clean.sum()
    if "force" in found:
        assert found["force"][least] == texts.lengths.sum()
    if "boost" in found:
        assert found["boost"][least] > clean[least]
    if "scale" in found:
        assert np.array_equal(found["scale"], clean)
