"""The Triton kernel of gated experts against float64 (in Triton's interpreter where there is no GPU), and compiled."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from tests.architectures import build
from tests.test_kernels_experts_forward import defined, problem

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("triton")


def found(x, index, scale, gate_up, down, activation: str, by_neuron: bool) -> torch.Tensor:
    """``down`` comes by neuron, (E, w, d); the kernel takes (E, d, w) as it is stored in either order."""
    from moescope.kernels import triton_experts

    down = down.transpose(1, 2)
    down = down if by_neuron else down.contiguous()
    given = [t.to(DEVICE) for t in (x, index, scale, gate_up, down)]
    assert given[4].is_contiguous() != by_neuron
    return triton_experts.few_tokens(*given, activation).cpu()


@pytest.mark.parametrize("by_neuron", [True, False], ids=["by neuron", "by column"])
@pytest.mark.parametrize("shape", [(1, 2, 4, 6, 24), (1, 3, 5, 37, 300), (3, 4, 6, 20, 70), (16, 2, 7, 16, 33)], ids=str)
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 2e-6), (torch.bfloat16, 6e-3), (torch.float16, 1e-3)], ids=["fp32", "bf16", "fp16"]
)
def test_few_tokens_is_the_definition(dtype: torch.dtype, bound: float, shape: tuple[int, ...], by_neuron: bool) -> None:
    x, index, scale, gate_up, down = problem(dtype, *shape)
    index[0, 0] = len(gate_up)  # an empty slot
    y = found(x, index, scale, gate_up, down, "silu", by_neuron)
    expected = defined(x, index, scale, gate_up, down, "silu")
    assert y.dtype == dtype
    assert (y.double() - expected).norm() <= bound * expected.norm()


@pytest.mark.parametrize("activation", ["relu", "gelu_pytorch_tanh", "gelu"])
@pytest.mark.parametrize("tokens", [1, 4])
def test_activations(activation: str, tokens: int) -> None:
    x, index, scale, gate_up, down = problem(torch.float32, tokens, 2, 5, 18, 40)
    expected = defined(x, index, scale, gate_up, down, activation)
    y = found(x, index, scale, gate_up, down, activation, True)
    assert (y.double() - expected).norm() <= 2e-6 * expected.norm()


def test_an_expert_that_a_token_has_twice_counts_twice() -> None:
    x, index, scale, gate_up, down = problem(torch.float32, 3, 3, 5, 18, 40)
    index[1] = index[0, 0]
    expected = defined(x, index, scale, gate_up, down, "silu")
    y = found(x, index, scale, gate_up, down, "silu", True)
    assert (y.double() - expected).norm() <= 2e-6 * expected.norm()


def test_a_module_on_a_gpu_takes_it_for_few_tokens_only(monkeypatch: pytest.MonkeyPatch) -> None:
    from moescope.kernels import experts, triton_experts

    module = build("olmoe", head=True).requires_grad_(False).to(DEVICE).model.layers[0].mlp.experts
    calls = []
    kernel = triton_experts.few_tokens
    monkeypatch.setattr(triton_experts, "few_tokens", lambda x, *rest: (calls.append(len(x)), kernel(x, *rest))[1])
    for tokens in (1, 16, 17):
        x, index, scale, *_ = problem(torch.float32, tokens, 2, 6, 24, 32)
        expected = defined(x, index, scale, module.gate_up_proj.cpu(), module.down_proj.cpu().transpose(1, 2), "silu")
        y = experts._on_gpu(module, *[t.to(DEVICE) for t in (x, index, scale)]).cpu()
        assert (y.double() - expected).norm() <= 2e-6 * expected.norm()
    assert calls == [1, 16]


_COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from moescope.kernels import triton_experts as kernels

def build(kernel, pointers, numbers, constants):
    names = kernel.arg_names
    kinds = (*pointers, *["i32"] * numbers, *["constexpr"] * len(constants))
    constants = dict(zip(names[-len(constants):], constants))
    source = triton.compiler.ASTSource(fn=kernel, signature=dict(zip(names, kinds, strict=True)), constexprs=constants)
    assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]

for element, activation in (("fp32", 0), ("bf16", 2), ("fp16", 3)):
    p, kind = "*" + element, getattr(kernels.tl, {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[element])
    build(kernels.experts_kernel, (p, "*i64", "*fp32", p, p, "*fp32"), 7, (activation, kind, 1, 16, 16, 256))
    if element != "fp16":
        build(kernels.experts_kernel, (p, "*i64", p, p, p, "*fp32"), 7, (activation, kind, 16, 16, 32, 64))
build(kernels.add_kernel, ("*fp32", "*i64", "*bf16"), 4, (16, 16, 128))
print("compiled")
"""


def test_every_kernel_compiles_to_machine_code_for_a_gpu(tmp_path) -> None:
    """In a process of its own: this one may have defined the kernels for the interpreter."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", _COMPILE], env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "compiled" in done.stdout
