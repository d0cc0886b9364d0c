"""The Triton kernels against the float64 reference (without a GPU in Triton's interpreter), and compiled without one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from moescope.kernels import reference
from moescope.kernels.routed import Routed

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("triton")


def _layer(x, w_in, w_out, gate, routed, dot, add):
    return add(gate * torch.relu(dot(x, w_in, routed)), w_out, routed)


@pytest.mark.parametrize(("tokens", "k", "m", "d"), [(5, 3, 7, 24), (3, 19, 40, 150), (1, 1, 1, 1), (6, 2, 300, 33)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_single_neuron_experts_forward_and_backward(tokens, k, m, d, dtype, tolerance) -> None:
    from moescope.kernels import triton_routed

    draw = torch.Generator().manual_seed(tokens)
    x, w_in, w_out, gate, up = (
        torch.randn(*shape, generator=draw, dtype=torch.float64)
        for shape in ((tokens, d), (m, d), (m, d), (tokens, k), (tokens, d))
    )
    index = torch.stack([torch.randperm(m, generator=draw)[:k] for _ in range(tokens)])
    truth_in = [t.clone().requires_grad_() for t in (x, w_in, w_out, gate)]
    truth = _layer(*truth_in, index, reference.gathered_dot, reference.gathered_sum)
    truth.backward(up)
    ours_in = [t.to(DEVICE, dtype).requires_grad_() for t in (x, w_in, w_out, gate)]
    ours = _layer(*ours_in, Routed(index.to(DEVICE), m), triton_routed.GatheredDot.apply, triton_routed.GatheredSum.apply)
    ours.backward(up.to(DEVICE, dtype))
    torch.testing.assert_close(ours.double().cpu(), truth, rtol=tolerance, atol=tolerance * 10)
    for found, expected in zip(ours_in, truth_in, strict=True):
        grad = found.grad.to_dense() if found.grad.is_sparse else found.grad
        torch.testing.assert_close(grad.double().cpu(), expected.grad, rtol=tolerance, atol=tolerance * 10)
    chosen = torch.unique(index)
    assert torch.equal(ours_in[1].grad._indices()[0].cpu(), chosen)  # rows distinct, ascending, no others


def test_sorted_pairs_agree_with_the_compiled_grouping() -> None:
    index = torch.randint(0, 9, (11, 4), generator=torch.Generator().manual_seed(1))
    routed = Routed(index, 9)
    groups = routed.groups()
    for ours, theirs in zip(routed.sorted(), (groups.rows, groups.offsets, groups.pairs), strict=True):
        assert ours.tolist() == theirs.tolist()


_COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from moescope.kernels import triton_routed as kernels

for element, total in (("fp32", kernels.tl.float32), ("bf16", kernels.tl.float32), ("fp64", kernels.tl.float64)):
    p = "*" + element
    for kernel, pointers in (
        (kernels.dot_kernel, (p, p, "*i64", p)),
        (kernels.sum_kernel, (p, p, "*i64", p)),
        (kernels.rows_kernel, (p, p, "*i64", "*i64", p)),
    ):
        names = kernel.arg_names
        signature = dict(zip(names, (*pointers, "i32", "i32"))) | {name: "constexpr" for name in names[-3:]}
        constants = {names[-3]: total, names[-2]: 16, names[-1]: 128}
        source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=constants)
        assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]
print("compiled")
"""


def test_every_kernel_compiles_to_machine_code_for_a_gpu(tmp_path) -> None:
    """In a process of its own: this one may have defined the kernels for the interpreter."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", _COMPILE], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "compiled" in done.stdout
