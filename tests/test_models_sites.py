"""Every site, of every architecture, holds what an independent recomputation from the published block formulas gives."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moescope.errors import InputError
from moescope.models import LoadedModel, describe_sites, from_model, parse_sites
from moescope.types import Site
from tests.architectures import D_MODEL, EXPERT_LAYERS, REFUSED, SETTINGS, VOCAB, build, tiny_model, tiny_tokenizer

ARCHITECTURES = sorted(SETTINGS)
TOLERANCE = 2e-5

FINAL_NORM = {"gpt2": "ln_f", "bloom": "ln_f", "gpt_neox": "final_layer_norm", "opt": "decoder.final_layer_norm", "bert": None}
GATED = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "olmo2", "qwen3_moe", "glm4_moe")
# inner width of the dense MLP (four times the model's where the config of the family says no other)
INNER = {"gpt2": 4 * D_MODEL, "bloom": 4 * D_MODEL}


@cache
def read(name: str) -> tuple[LoadedModel, dict[Site, Tensor], tuple[Tensor, ...]]:
    """A tiny model, all its sites on one batch, and the hidden states that transformers itself reports."""
    model = tiny_model(name)
    ids = torch.randint(0, VOCAB - 4, (3, 11), generator=torch.Generator().manual_seed(1))
    seen: dict[Site, Tensor] = {}

    def keep(site: Site) -> Any:
        return lambda tensor: seen.__setitem__(site, tensor.clone())

    handles = [model.tap_point(site).attach(keep(site)) for site in model.sites()]
    try:
        with torch.no_grad():
            output = model.body(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True)
    finally:
        for handle in handles:
            handle.remove()
    return model, seen, output.hidden_states


def close(got: Tensor, expected: Tensor, what: str = "") -> None:
    assert got.shape == expected.shape, what
    assert (got - expected).abs().max() <= TOLERANCE * max(1.0, float(expected.abs().max())), what


def layer_of(model: LoadedModel, index: int) -> nn.Module:
    return model.structure.layers[index]


def after_attention(name: str, layer: Any, x: Tensor, attn_out: Tensor) -> tuple[Tensor, Tensor]:
    """(stream after attention, what the MLP reads), as the family defines them."""
    if name in ("gemma2", "gemma3"):
        stream = x + layer.post_attention_layernorm(attn_out)
        return stream, layer.pre_feedforward_layernorm(stream)
    if name == "olmo2":
        stream = x + layer.post_attention_layernorm(attn_out)
        return stream, stream
    if name == "bert":
        stream = layer.attention.output.LayerNorm(x + attn_out)
        return stream, stream
    stream = x + attn_out
    if name == "gpt_neox":  # attention and MLP side by side
        return stream, layer.post_attention_layernorm(x)
    norm = {"gpt2": "ln_2", "opt": "final_layer_norm"}.get(name, "post_attention_layernorm")
    return stream, getattr(layer, norm)(stream)


def after_mlp(name: str, layer: Any, stream: Tensor, mlp_out: Tensor) -> Tensor:
    if name in ("gemma2", "gemma3", "olmo2"):
        return stream + layer.post_feedforward_layernorm(mlp_out)
    if name == "bert":
        return layer.output.LayerNorm(stream + mlp_out)
    return stream + mlp_out


def activation(name: str, layer: Any, mlp_in: Tensor) -> tuple[Tensor, Tensor]:
    """(hidden activation, MLP output) of a dense MLP from its weights alone."""
    tanh = {"approximate": "tanh"}
    if name == "phi3":
        gate, up = (mlp_in @ layer.mlp.gate_up_proj.weight.T).chunk(2, dim=-1)
        act = F.silu(gate) * up
        return act, act @ layer.mlp.down_proj.weight.T
    if name in GATED:
        gate = mlp_in @ layer.mlp.gate_proj.weight.T
        act = (F.gelu(gate, **tanh) if "gemma" in name else F.silu(gate)) * (mlp_in @ layer.mlp.up_proj.weight.T)
        return act, act @ layer.mlp.down_proj.weight.T
    if name == "gpt2":  # Conv1D keeps its weight transposed
        act = F.gelu(mlp_in @ layer.mlp.c_fc.weight + layer.mlp.c_fc.bias, **tanh)
        return act, act @ layer.mlp.c_proj.weight + layer.mlp.c_proj.bias
    first, second, function = {
        "gpt_neox": ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h", F.gelu),
        "bloom": ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h", lambda x: F.gelu(x, **tanh)),
        "opt": ("fc1", "fc2", F.relu),
        "bert": ("intermediate.dense", "output.dense", F.gelu),
    }[name]
    up, down = layer.get_submodule(first), layer.get_submodule(second)
    act = function(mlp_in @ up.weight.T + up.bias)
    return act, act @ down.weight.T + down.bias


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_layer_has_its_sites_and_widths(name: str) -> None:
    model, seen, _ = read(name)
    n = model.n_layers
    assert n == SETTINGS[name][1]["num_hidden_layers"]
    assert model.sites("embed") == (Site("embed", 0),)
    for kind in ("resid", "attn_out", "mlp_in", "mlp_out"):
        assert model.sites(kind) == tuple(Site(kind, i) for i in range(n))
    experts = EXPERT_LAYERS.get(name, ())
    assert tuple(site.layer for site in model.sites("router")) == experts
    assert tuple(site.layer for site in model.sites("mlp_act")) == tuple(i for i in range(n) if i not in experts)
    inner = INNER.get(name, 48)
    n_experts = {"mixtral": 4, "gpt_oss": 4}.get(name, 6)
    for site, tensor in seen.items():
        width = {"mlp_act": inner, "router": n_experts}.get(site.kind, D_MODEL)
        assert model.width(site) == width
        assert tensor.shape == (3, 11, width)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_residual_stream_equals_hidden_states(name: str) -> None:
    model, seen, hidden = read(name)
    assert len(hidden) == model.n_layers + 1
    close(seen[Site("embed", 0)], hidden[0])
    for i in range(model.n_layers - 1):
        close(seen[Site("resid", i)], hidden[i + 1], f"layer {i}")
    last, norm = seen[Site("resid", model.n_layers - 1)], FINAL_NORM.get(name, "norm")
    if norm is not None:  # transformers reports the last one after the final norm; the site is before it
        last = model.body.get_submodule(norm)(last)
    if name == "opt":  # whose word embeddings are narrower than its stream
        last = model.body.decoder.project_out(last)
    close(last, hidden[-1])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_block_outputs_add_up_to_the_residual_stream(name: str) -> None:
    model, seen, _ = read(name)
    for i in range(model.n_layers):
        layer = layer_of(model, i)
        x = seen[Site("resid", i - 1)] if i else seen[Site("embed", 0)]
        stream, mlp_in = after_attention(name, layer, x, seen[Site("attn_out", i)])
        close(seen[Site("mlp_in", i)], mlp_in, f"mlp_in:{i}")
        close(seen[Site("resid", i)], after_mlp(name, layer, stream, seen[Site("mlp_out", i)]), f"resid:{i}")


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in EXPERT_LAYERS] + ["qwen3_moe", "glm4_moe"])
def test_dense_mlp_from_its_weights(name: str) -> None:
    model, seen, _ = read(name)
    sites = model.sites("mlp_act")
    assert sites
    for site in sites:
        act, out = activation(name, layer_of(model, site.layer), seen[Site("mlp_in", site.layer)])
        close(seen[site], act, str(site))
        close(seen[Site("mlp_out", site.layer)], out, f"mlp_out:{site.layer}")


@pytest.mark.parametrize("name", sorted(EXPERT_LAYERS))
def test_router_scores_are_logits_before_any_choice(name: str) -> None:
    model, seen, _ = read(name)
    for site in model.sites("router"):
        block: Any = layer_of(model, site.layer).mlp
        router = block.router if name == "gpt_oss" else block.gate
        logits = seen[Site("mlp_in", site.layer)] @ router.weight.T
        if name == "gpt_oss":
            logits = logits + router.bias
        close(seen[site], logits, str(site))


@pytest.mark.parametrize("name", ["llama", "bert", "olmoe"])
def test_a_head_changes_no_site(name: str) -> None:
    body, with_head = tiny_model(name), tiny_model(name, head=True)
    assert with_head.has_head
    assert not body.has_head
    assert with_head.sites() == body.sites()


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused_by_name(name: str) -> None:
    with pytest.raises(InputError, match=f"'{name}' is not supported: it has no stack of layers") as error:
        from_model(REFUSED[name](), tiny_tokenizer())
    assert "\n" not in str(error.value)


def test_router_that_chooses_inside_cannot_be_replaced() -> None:
    model = tiny_model("olmoe")
    handle = model.tap_point(Site("router", 1)).attach(lambda logits: logits + 1)
    try:
        with pytest.raises(InputError, match="router:1 can be read but not replaced"):
            model.body(input_ids=torch.zeros(1, 3, dtype=torch.long))
    finally:
        handle.remove()


def test_resolving_twice_adds_one_hook() -> None:
    module = build("mixtral")
    for _ in range(3):
        from_model(module, tiny_tokenizer())
    assert sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in module.modules()) == 1


def S(kind: str, *layers: int) -> tuple[Site, ...]:
    return tuple(Site(kind, layer) for layer in layers)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("resid", S("resid", 0, 1, 2, 3)),
        ("resid:*", S("resid", 0, 1, 2, 3)),
        ("resid:-1", S("resid", 3)),
        ("resid:2,0,2", S("resid", 2, 0)),
        ("mlp_act", S("mlp_act", 0, 2)),
        ("router", S("router", 1, 3)),
        ("embed; router:3 resid:0-1", S("embed", 0) + S("router", 3) + S("resid", 0, 1)),
    ],
)
def test_sites_in_words(text: str, expected: tuple[Site, ...]) -> None:
    assert parse_sites(text, tiny_model("qwen3_moe")) == expected  # which has experts at layers 1 and 3


def test_a_range_must_exist_whole() -> None:
    with pytest.raises(InputError, match=r"'mlp_act:1' does not exist: tiny-qwen3_moe has .*mlp_act:0,2"):
        parse_sites("mlp_act:0-2", tiny_model("qwen3_moe"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("residual", "'residual' is unknown: .* has embed:0, resid:0-3"),
        ("", "is unknown"),
        ("resid:4", "has layers 0-3"),
        ("resid:-5", "-1 to -4"),
        ("resid:3-1", "runs backwards"),
        ("resid:one", "write layers as"),
        ("router", "'router' does not exist"),
        ("router:1", "'router:1' does not exist"),
    ],
)
def test_sites_that_are_not_there(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        parse_sites(text, tiny_model("llama"))
    assert "\n" not in str(error.value)


def test_describe_sites() -> None:
    assert describe_sites([*S("resid", 0, 1, 2, 5), *S("router", 3)]) == "resid:0-2,5, router:3"
    assert describe_sites([]) == "no sites"
