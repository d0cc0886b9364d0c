"""The registered expert kernel against the definition in float64, and inside real mixture-of-experts models."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.nn import functional as F

from moescope.kernels import choice, experts, openmp
from moescope.kernels.experts_cpu import few_tokens
from tests.architectures import build

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


def defined(x: Tensor, index: Tensor, scale: Tensor, gate_up: Tensor, down: Tensor, activation: str) -> Tensor:
    """The definition, token by token and expert by expert in float64; ids of E or more are empty slots."""
    out = torch.zeros(x.shape, dtype=torch.float64)
    for t in range(len(x)):
        for j, e in enumerate(index[t].tolist()):
            if e < len(gate_up):
                gate, up = (gate_up[e].double() @ x[t].double()).chunk(2)
                out[t] += scale[t, j].double() * ((ACTIVATIONS[activation](gate) * up) @ down[e].double())
    return out


def problem(dtype: torch.dtype, tokens: int, k: int, n: int, width: int, d: int) -> tuple[Tensor, ...]:
    draw = torch.Generator().manual_seed(tokens + width)
    x, scale = torch.randn(tokens, d, generator=draw), torch.rand(tokens, k, generator=draw)
    gate_up, down = torch.randn(n, 2 * width, d, generator=draw), torch.randn(n, width, d, generator=draw)
    index = torch.rand(tokens, n, generator=draw).topk(k).indices
    return x.to(dtype), index, scale.to(dtype), gate_up.to(dtype), down.to(dtype)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.float64, 1e-14), (torch.bfloat16, 4e-3)])
@pytest.mark.parametrize("shape", [(1, 2, 4, 6, 8), (7, 3, 7, 5, 18), (3, 4, 4, 1, 6)], ids=str)
def test_few_tokens_is_the_definition(dtype: torch.dtype, bound: float, shape: tuple[int, ...]) -> None:
    """bfloat16's bound is half of its own last digit: sums are float32, only the result is rounded."""
    x, index, scale, gate_up, down = problem(dtype, *shape)
    index[0, 0] = len(gate_up)  # an empty slot
    found = few_tokens(x, index, scale, gate_up, down, "silu")
    expected = defined(x, index, scale, gate_up, down, "silu")
    assert found.dtype == dtype
    assert (found.double() - expected).norm() <= bound * expected.norm()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation: str) -> None:
    x, index, scale, gate_up, down = problem(torch.float64, 4, 2, 5, 6, 10)
    found = few_tokens(x, index, scale, gate_up, down, activation)
    assert torch.allclose(found, defined(x, index, scale, gate_up, down, activation), rtol=1e-12)


def test_any_number_of_threads_covers_every_neuron() -> None:
    x, index, scale, gate_up, down = problem(torch.float32, 5, 3, 6, 7, 12)
    expected = defined(x, index, scale, gate_up, down, "silu")
    for threads in (1, 2, 64):
        found = few_tokens(x, index, scale, gate_up, down, "silu", threads=threads)
        assert (found.double() - expected).norm() <= 1e-6 * expected.norm()


def test_without_torchs_openmp_the_result_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x, index, scale, gate_up, down = problem(torch.float32, 5, 3, 6, 7, 12)
    usual = few_tokens(x, index, scale, gate_up, down, "silu", threads=3)
    monkeypatch.setattr(openmp, "_gomp_parallel", lambda: None)
    assert torch.equal(few_tokens(x, index, scale, gate_up, down, "silu", threads=3), usual)


def test_shared_experts_are_added() -> None:
    x, index, scale, gate_up, down = problem(torch.float32, 4, 2, 5, 6, 10)
    more = problem(torch.float32, 4, 1, 1, 13, 10)
    shared = more[3][0, :13].contiguous(), more[3][0, 13:].contiguous(), more[4][0]
    expected = defined(x, index, scale, gate_up, down, "silu")
    expected += defined(x, torch.zeros(4, 1, dtype=torch.int64), torch.ones(4, 1), *more[3:], "silu")
    found = few_tokens(x, index, scale, gate_up, down, "silu", shared=shared)
    assert (found.double() - expected).norm() <= 1e-6 * expected.norm()


@pytest.fixture
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every call goes the one way or the other."""
    monkeypatch.setattr(experts, "fastest", lambda *_: request.param)
    return str(request.param)


@pytest.mark.parametrize("path", list(experts.PATHS), indirect=True)
@pytest.mark.parametrize("name", ["olmoe", "mixtral", "qwen2_moe", "qwen3_moe", "glm4_moe"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-6), (torch.float64, 1e-13)])
def test_models_predict_the_same(name: str, dtype: torch.dtype, bound: float, path: str) -> None:
    model = build(name, head=True).to(dtype).requires_grad_(False)
    ids = torch.randint(0, 250, (2, 9), generator=torch.Generator().manual_seed(0))
    model.set_experts_implementation("eager")
    expected = model(ids).logits
    model.set_experts_implementation("moescope")
    assert (model(ids).logits - expected).norm() <= bound * expected.norm()


@pytest.mark.parametrize("path", list(experts.PATHS), indirect=True)
def test_bfloat16_is_as_close_to_the_truth_as_eager(path: str) -> None:
    model = build("olmoe", head=True).requires_grad_(False).to(torch.bfloat16)
    layer: Any = model.model.layers[0].mlp.experts
    x, index, scale, *_ = problem(torch.bfloat16, 6, 2, 6, 24, 32)
    truth = defined(x, index, scale, layer.gate_up_proj, layer.down_proj.transpose(1, 2), "silu")
    errors = {}
    for name in ("eager", "moescope"):
        model.set_experts_implementation(name)
        errors[name] = float((layer(x, index, scale).double() - truth).norm())
    assert errors["moescope"] <= 1.1 * errors["eager"]


def test_generation_writes_the_same_tokens() -> None:
    model = build("glm4_moe", head=True).requires_grad_(False)
    ids = torch.randint(0, 250, (1, 5), generator=torch.Generator().manual_seed(0))
    written = {}
    for name in ("eager", "moescope"):
        model.set_experts_implementation(name)
        written[name] = model.generate(ids, max_new_tokens=12, do_sample=False).tolist()
    assert written["moescope"] == written["eager"]


def test_packing_changes_strides_only_and_the_model_still_saves(tmp_path: Any) -> None:
    model = build("olmoe", head=True).requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    ids = torch.randint(0, 250, (1, 5))
    model.set_experts_implementation("moescope")
    model(ids)
    down = model.model.layers[0].mlp.experts.down_proj
    assert not down.is_contiguous()
    assert down.transpose(1, 2).is_contiguous()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert all(torch.equal(before[name], tensor) for name, tensor in again.state_dict().items())


def test_what_it_does_not_cover_goes_to_grouped_mm() -> None:
    ids = torch.randint(0, 250, (1, 5), generator=torch.Generator().manual_seed(0))
    biased = build("gpt_oss", head=True).requires_grad_(False)
    logits = {}
    for name in ("grouped_mm", "moescope"):
        biased.set_experts_implementation(name)
        logits[name] = biased(ids).logits
    assert torch.equal(logits["moescope"], logits["grouped_mm"])
    trained = build("olmoe", head=True)
    trained.set_experts_implementation("moescope")
    trained(ids).logits.sum().backward()
    gradient = trained.model.layers[0].mlp.experts.down_proj.grad
    assert gradient is not None
    assert gradient.abs().sum() > 0


def test_the_choice_is_measured_once_for_each_power_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = build("olmoe", head=True).requires_grad_(False).model.layers[0].mlp.experts
    seen: list[int] = []

    def steady(_experts: Any, x: Tensor, *_: Tensor) -> Tensor:  # as long for one token as for 512
        seen.append(len(x))
        time.sleep(0.002)
        return x

    def growing(_experts: Any, x: Tensor, *_: Tensor) -> Tensor:
        time.sleep(1e-4 * len(x))
        return x

    monkeypatch.setattr(choice, "_found", {})
    paths = {"growing": growing, "steady": steady}
    chosen = [choice.fastest(paths, module, tokens, 2) for tokens in (2, 4, 33, 64, 5000, 600, 3)]
    assert chosen == ["growing", "growing", "steady", "steady", "steady", "steady", "growing"]
    assert sorted(set(seen)) == [2, 4, 64, 512]
    assert len(seen) <= 5 * 4


def test_a_hopeless_path_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = build("olmoe", head=True).requires_grad_(False).model.layers[0].mlp.experts
    calls: list[str] = []

    def quick(_experts: Any, x: Tensor, *_: Tensor) -> Tensor:
        return x

    def slow(_experts: Any, x: Tensor, *_: Tensor) -> Tensor:
        calls.append("slow")
        time.sleep(0.02)
        return x

    monkeypatch.setattr(choice, "_found", {})
    assert choice.fastest({"quick": quick, "slow": slow}, module, 8, 2) == "quick"
    assert len(calls) == 2


@pytest.mark.parametrize("name", list(experts.PATHS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_path_leaves_out_empty_slots(name: str, dtype: torch.dtype) -> None:
    module: Any = build("olmoe", head=True).requires_grad_(False).model.layers[0].mlp.experts.to(dtype)
    x, index, scale, *_ = problem(dtype, 9, 2, 6, 24, 32)
    index[::2, 1] = len(module.gate_up_proj)
    expected = defined(x, index, scale, module.gate_up_proj, module.down_proj.transpose(1, 2), "silu")
    found = experts.PATHS[name](module, x, index, scale)
    assert (found.double() - expected).norm() <= 1e-6 * expected.norm()
    nowhere = torch.full_like(index, len(module.gate_up_proj))
    assert not experts.PATHS[name](module, x, nowhere, scale).any()
