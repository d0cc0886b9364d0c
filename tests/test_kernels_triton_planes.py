"""MLPs of few bits in Triton against float64 (in Triton's interpreter where there is no GPU), and compiled."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from moescope.errors import InputError
from moescope.kernels import reference
from moescope.models.rounding import Nested, nested

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("triton")
silu = torch.nn.functional.silu


def drawn(tokens: int, *shapes: tuple[int, int], bits: int = 8) -> tuple[torch.Tensor, list[Nested]]:
    draw = torch.Generator().manual_seed(tokens)
    x = torch.randn(tokens, shapes[0][1], generator=draw).to(DEVICE)
    weights = [torch.randn(*shape, generator=draw).to(DEVICE) / shape[1] ** 0.5 for shape in shapes]
    return x, [nested(weight, bits) for weight in weights]


def far(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def as_defined(x: torch.Tensor, codes: list[Nested], counts: list[int]) -> torch.Tensor:
    on_cpu = [Nested(c.codes.cpu(), c.scale.cpu(), c.bits) for c in codes]
    return reference.sparse_mlp(x.cpu(), *on_cpu, counts, silu)[0].to(x.device)


@pytest.mark.parametrize(("tokens", "neurons", "width", "count"), [(1, 24, 64, 9), (3, 40, 96, 17), (9, 17, 32, 17)])
def test_chosen_neurons_are_the_definition(tokens: int, neurons: int, width: int, count: int) -> None:
    from moescope.kernels import triton_planes as planes

    x, codes = drawn(tokens, *[(neurons, width)] * 3)
    found = planes.sparse_mlp(x, planes.pack(*codes), count, "silu")
    assert far(found, as_defined(x, codes, [count] * tokens)) < 1e-4
    assert torch.equal(found, planes.sparse_mlp(x, planes.pack(*codes), count, "silu"))


def test_each_token_has_its_own_number() -> None:
    from moescope.kernels import triton_planes as planes

    x, codes = drawn(4, *[(40, 64)] * 3)
    found = planes.sparse_mlp(x, planes.pack(*codes), [0, 3, 40, 11], "silu")
    assert not found[0].any()
    assert far(found, as_defined(x, codes, [0, 3, 40, 11])) < 1e-4


@pytest.mark.parametrize("count", [1, 5, 7, 12, 30])
def test_of_equal_scores_the_lower_neuron_comes_first(count: int) -> None:
    from moescope.kernels import triton_planes as planes

    score = torch.tensor([3.0, 1, 2, 2, 5, 2, 0, 2, 2, 2] * 3, device=DEVICE)
    order = planes._chosen(score[None], torch.tensor([count], dtype=torch.int32, device=DEVICE), count)
    assert order[0].tolist() == sorted(score.argsort(descending=True, stable=True)[:count].tolist())


def test_what_is_no_number_stays_in_its_token() -> None:
    from moescope.kernels import triton_planes as planes

    x, codes = drawn(2, *[(24, 64)] * 3)
    x[0, 3] = torch.nan
    found = planes.sparse_mlp(x, planes.pack(*codes), 5, "silu")
    assert found[0].isnan().all()
    assert found[1].isfinite().all()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("tokens", [1, 3])
def test_plain_codes_are_the_definition(tokens: int, bits: int) -> None:
    from moescope.kernels import triton_planes as planes

    x, (gate, up, down) = drawn(tokens, (64, 96), (64, 96), (96, 64), bits=bits)
    wide = [codes.prefix().double() for codes in (gate, up, down)]
    expected = (silu(x.double() @ wide[0].T) * (x.double() @ wide[1].T)) @ wide[2].T
    assert far(planes.dense_mlp(x, planes.pack_gated(gate, up, down), "silu"), expected) < 2e-4
    assert far(planes.linear(x, planes.pack_rows(gate)), x.double() @ wide[0].T) < 1e-4


def test_calls_that_do_not_fit_are_refused() -> None:
    from moescope.kernels import triton_planes as planes

    x, codes = drawn(1, *[(24, 64)] * 3)
    packed = planes.pack(*codes)
    for call, why in (
        (lambda: planes.sparse_mlp(x, packed, 25, "silu"), "count: must be from 0 to 24"),
        (lambda: planes.sparse_mlp(x[:, :32], packed, 5, "silu"), "x: must be"),
        (lambda: planes.sparse_mlp(x, packed, 5, "swoosh"), "activation: must be one of"),
        (lambda: planes.pack(*codes, choose_bits=3), "choose_bits: must be 4"),
    ):
        with pytest.raises(InputError, match=why):
            call()


_COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from moescope.kernels import triton_planes_loop as kernels

def build(kernel, pointers, numbers, constants, warps):
    names = kernel.arg_names
    kinds = (*pointers, *["i32"] * numbers, *["constexpr"] * len(constants))
    constants = dict(zip(names[-len(constants):], constants))
    source = triton.compiler.ASTSource(fn=kernel, signature=dict(zip(names, kinds, strict=True)), constexprs=constants)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    assert made.asm["cubin"]
    return made.asm["ptx"]

I, F, H, B = "*i32", "*fp32", "*fp16", "*bf16"
build(kernels.round_kernel, (B, I, F, I), 2, (2, 32639, 4), 1)
assert "dp4a" in build(kernels.score_kernel, (I, F, I, I, H, F, F, F, F), 3, (0, 2, 1, 128), 1)
build(kernels.choose_kernel, (F, I, I), 2, (1024,), 8)
assert "dp4a" in build(kernels.hidden_kernel, (I, F, I, I, H, F, F, I, I, F), 4, (2, 2, 64), 2)
build(kernels.down_kernel, ("*u8", H, I, I, F, F), 2, (4, 16), 4)
build(kernels.add_kernel, (F, B), 2, (64, 32), 4)
for bits in (4, 8):
    assert "dp4a" in build(kernels.rows_kernel, (I, F, I, I, I, H, H, F), 3, (3, True, bits, 2, 1, 64), 2)
print("compiled")
"""


def test_every_kernel_compiles_to_machine_code_for_a_gpu(tmp_path) -> None:
    """In a process of its own: this one may have defined the kernels for the interpreter."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", _COMPILE], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "compiled" in done.stdout
