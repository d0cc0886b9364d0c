"""Fused blocks of GLM-4-MoE against transformers' own, and what sends them back to it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeTopkRouter

from moescope.errors import InputError
from moescope.kernels import block_cpu
from moescope.kernels import experts as kernels
from tests.architectures import build


@pytest.fixture
def model() -> Any:
    made: Any = build("glm4_moe", head=True).requires_grad_(False)
    draw = torch.Generator().manual_seed(0)
    for block in blocks(made):  # as in a trained model: scores far apart, a bias that changes the choice
        block.gate.weight.copy_(torch.randn(block.gate.weight.shape, generator=draw))
        block.gate.e_score_correction_bias.copy_(0.3 * torch.randn(len(block.gate.weight), generator=draw))
    return made


def blocks(model: Any) -> list[Any]:
    return [module for module in model.modules() if type(module).__name__ == "Glm4MoeMoE"]


@pytest.fixture(autouse=True)
def always_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "fastest", lambda *_: "few")


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of each call of a block that went the fused way."""
    calls: list[int] = []
    whole = block_cpu.choose
    monkeypatch.setattr(block_cpu, "choose", lambda x, gate: (calls.append(len(x)), whole(x, gate))[1])
    return calls


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
def test_a_fused_model_predicts_the_same(model: Any, dtype: torch.dtype, bound: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model.to(dtype)
    for block in blocks(model):
        block.gate.weight.data = block.gate.weight.data.float()  # as transformers keeps it
        block.gate.e_score_correction_bias = block.gate.e_score_correction_bias.float()
    ids = torch.randint(0, 250, (2, 9), generator=torch.Generator().manual_seed(0))
    model.set_experts_implementation("moescope")
    expected = model(ids).logits
    calls = counted(monkeypatch)
    assert block_cpu.fuse(model) == len(blocks(model)) > 0
    assert (model(ids).logits - expected).norm() <= bound * expected.norm()
    assert calls == [18] * len(blocks(model))
    block_cpu.unfuse(model)
    assert torch.equal(model(ids).logits, expected)
    assert len(calls) == len(blocks(model))


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("k", [1, 3, 8])
def test_the_choice_is_the_routers(k: int, normalise: bool) -> None:
    config: Any = build("glm4_moe", head=True).config
    config.num_experts_per_tok, config.norm_topk_prob, config.n_routed_experts, config.routed_scaling_factor = (
        k,
        normalise,
        8,
        2.5,
    )
    router = Glm4MoeTopkRouter(config)
    draw = torch.Generator().manual_seed(k)
    with torch.no_grad():
        router.weight.copy_(torch.randn(router.weight.shape, generator=draw) / 4)
        router.e_score_correction_bias.copy_(torch.randn(len(router.weight), generator=draw) / 4)
        x = torch.randn(40, config.hidden_size, generator=draw)
        _, scale, index = router(x)
        found_index, found_scale = block_cpu.choose(x, router)
    order, found_order = index.argsort(1), found_index.argsort(1)
    assert torch.equal(index.gather(1, order), found_index.gather(1, found_order))
    torch.testing.assert_close(found_scale.gather(1, found_order), scale.gather(1, order))


@pytest.mark.parametrize("why", ["implementation", "hook", "gradient", "groups"])
def test_what_is_not_covered_goes_to_the_blocks_own_forward(model: Any, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = torch.randint(0, 250, (1, 5), generator=torch.Generator().manual_seed(0))
    model.set_experts_implementation("eager" if why == "implementation" else "moescope")
    seen: list[int] = []
    first = blocks(model)[0]
    if why == "hook":
        first.gate.register_forward_hook(lambda *_: seen.append(1))
    if why == "gradient":
        first.shared_experts.up_proj.weight.requires_grad_(True)
    if why == "groups":
        first.gate.num_group, first.gate.topk_group = 2, 1
    expected = model(ids).logits
    block_cpu.fuse(model)
    calls = counted(monkeypatch)
    found = model(ids).logits
    assert (found - expected).norm() <= 2e-6 * expected.norm()
    # after a part that is trained everything has a gradient
    assert len(calls) == (0 if why in ("implementation", "gradient") else len(blocks(model)) - 1)
    assert len(seen) == (2 if why == "hook" else 0)


def test_a_first_call_with_gradients_does_not_keep_later_ones_from_it(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = torch.randint(0, 250, (1, 5), generator=torch.Generator().manual_seed(0))
    model.set_experts_implementation("moescope")
    model.requires_grad_(True)
    block_cpu.fuse(model)
    calls = counted(monkeypatch)
    model(ids).logits.sum().backward()
    assert calls == []
    with torch.no_grad():
        model(ids)
    assert len(calls) == len(blocks(model))


def test_a_model_without_such_blocks_is_refused() -> None:
    with pytest.raises(InputError, match="OlmoeForCausalLM has no block of a kind that can be fused"):
        block_cpu.fuse(build("olmoe", head=True))
