"""The compiled expert kernels against plain torch in float64, and against the definition written out in loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from moescope.errors import InputError
from moescope.kernels import Routed, gathered_dot, gathered_sum, reference, top_rows
from moescope.kernels.adam import adam_rows

TOKENS, EXPERTS, WIDTH, ACTIVE = 37, 50, 12, 5


def problem(dtype: torch.dtype = torch.float64, seed: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)

    index = torch.stack([torch.randperm(EXPERTS - 9, generator=draw)[:ACTIVE] for _ in range(TOKENS)])
    index[3] = index[4]  # tokens that share all their experts; the last nine experts get no token
    return {
        "x": normal(TOKENS, WIDTH),
        "w_in": normal(EXPERTS, WIDTH),
        "w_out": normal(EXPERTS, WIDTH + 3),
        "bias": normal(EXPERTS),
        "gate": normal(TOKENS, ACTIVE),
        "index": index,
    }


def by_kernel(p: dict[str, Tensor]) -> Tensor:
    routed = Routed(p["index"], EXPERTS)
    hidden = gathered_dot(p["x"], p["w_in"], routed) + p["bias"][p["index"]]
    return gathered_sum(p["gate"] * torch.nn.functional.gelu(hidden), p["w_out"], routed)


def by_reference(p: dict[str, Tensor]) -> Tensor:
    hidden = reference.gathered_dot(p["x"], p["w_in"], p["index"]) + p["bias"][p["index"]]
    return reference.gathered_sum(p["gate"] * torch.nn.functional.gelu(hidden), p["w_out"], p["index"])


def test_reference_is_the_definition() -> None:
    p = problem()
    y = by_reference(p)
    for b in range(TOKENS):
        expected = torch.zeros(WIDTH + 3, dtype=torch.float64)
        for j in range(ACTIVE):
            i = int(p["index"][b, j])
            hidden = float(p["w_in"][i] @ p["x"][b] + p["bias"][i])
            gelu = hidden * 0.5 * (1 + math.erf(hidden / math.sqrt(2)))
            expected += p["gate"][b, j] * p["w_out"][i] * gelu
        torch.testing.assert_close(y[b], expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize("threads", [1, 2])
def test_forward_and_backward_equal_float64_reference(dtype: torch.dtype, tolerance: float, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        grads = {}
        for name, function, kind in (("kernel", by_kernel, dtype), ("reference", by_reference, torch.float64)):
            p = problem(dtype)
            p = {key: value if key == "index" else value.to(kind).requires_grad_() for key, value in p.items()}
            y = function(p)
            (y * torch.linspace(-1, 1, y.numel()).reshape(y.shape)).sum().backward()
            grads[name] = [y.detach()] + [p[key].grad.to_dense() for key in ("x", "w_in", "w_out", "bias", "gate")]
    finally:
        torch.set_num_threads(before)
    for ours, truth in zip(grads["kernel"], grads["reference"], strict=True):
        torch.testing.assert_close(ours.double(), truth, atol=tolerance, rtol=tolerance)


def test_gradcheck() -> None:
    p = problem()
    index = p["index"][:6]
    routed = Routed(index, EXPERTS)

    class Dense(torch.autograd.Function):
        """gradcheck wants dense gradients."""

        @staticmethod
        def forward(ctx, weight: Tensor) -> Tensor:
            return weight.clone()

        @staticmethod
        def backward(ctx, grad: Tensor) -> Tensor:
            return grad.to_dense()

    x, gate = p["x"][:6].requires_grad_(), p["gate"][:6].requires_grad_()
    w_in, w_out = p["w_in"].requires_grad_(), p["w_out"].requires_grad_()
    assert torch.autograd.gradcheck(lambda a, w: gathered_dot(a, Dense.apply(w), routed), (x, w_in))
    assert torch.autograd.gradcheck(lambda a, w: gathered_sum(a, Dense.apply(w), routed), (gate, w_out))


def test_weight_gradient_holds_only_the_experts_that_were_used() -> None:
    p = problem()
    weight = p["w_in"].requires_grad_()
    gathered_dot(p["x"], weight, Routed(p["index"], EXPERTS)).sum().backward()
    assert weight.grad.is_sparse
    assert weight.grad._indices()[0].tolist() == sorted(set(p["index"].flatten().tolist()))


def test_largest_intermediate_is_not_tokens_by_k_by_d() -> None:
    """The reference saves (tokens, k, d) for its backward pass; the kernel must save nothing of that size."""
    sizes: dict[str, int] = {}
    for name, function in (("kernel", by_kernel), ("reference", by_reference)):
        p = {key: value if key == "index" else value.requires_grad_() for key, value in problem().items()}
        saved: list[int] = []

        def keep(tensor: Tensor, saved: list[int] = saved) -> Tensor:
            saved.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            function(p)
        sizes[name] = max(saved)
    assert sizes["reference"] >= TOKENS * ACTIVE * WIDTH
    assert sizes["kernel"] < TOKENS * ACTIVE * WIDTH


@pytest.mark.parametrize("bad", [-1, EXPERTS])
def test_an_expert_that_does_not_exist_is_refused(bad: int) -> None:
    index = problem()["index"]
    index[2, 1] = bad
    with pytest.raises(InputError, match=f"outside 0..{EXPERTS - 1}"):
        Routed(index, EXPERTS)


@pytest.mark.parametrize("m", [5, 128, 1000])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_top_rows_equal_torch_topk(m: int, bias: bool, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(m)
    x, weight = torch.randn(70, 8, generator=draw, dtype=dtype), torch.randn(m, 8, generator=draw, dtype=dtype)
    shift = torch.randn(m, generator=draw, dtype=dtype) * 3 if bias else None
    from moescope.kernels import topk

    values, index = topk.top_rows(x, weight, 5, shift, block=300)  # several blocks, the last one short
    expected, where = reference.top_rows(x, weight, 5, shift)
    torch.testing.assert_close(values, expected)
    assert torch.equal(index, where)


def test_top_rows_in_bfloat16_finds_nearly_the_same() -> None:
    draw = torch.Generator().manual_seed(0)
    x, weight = torch.randn(64, 32, generator=draw), torch.randn(500, 32, generator=draw)
    _, exact = top_rows(x, weight, 16)
    _, rough = top_rows(x, weight, 16, half=True)
    shared = [len(set(a) & set(b)) for a, b in zip(exact.tolist(), rough.tolist(), strict=True)]
    assert sum(shared) / exact.numel() > 0.97


def test_top_rows_of_nan_is_an_error_not_a_wrong_index() -> None:
    x, weight = torch.randn(4, 8), torch.randn(20, 8)
    x[2, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="not finite"):
        top_rows(x, weight, 3)


def _two_adams(lazy: bool) -> tuple[Tensor, Tensor]:
    """Weights after five steps: of ours with row-sparse gradients, of torch's with the same gradients made dense."""
    draw = torch.Generator().manual_seed(3)
    start = torch.randn(40, 7, generator=draw, dtype=torch.float64)
    ours, theirs = start.clone(), torch.nn.Parameter(start.clone())
    first, second = torch.zeros_like(ours), torch.zeros_like(ours)
    kind = torch.optim.SparseAdam if lazy else torch.optim.Adam
    optimizer = kind([theirs], lr=0.1, eps=1e-15)  # tiny: SparseAdam adds it before its bias correction, Adam after
    for step in range(1, 6):
        rows = torch.randperm(40, generator=draw)[:9].sort().values
        values = torch.randn(9, 7, generator=draw, dtype=torch.float64)
        adam_rows(ours, first, second, rows, values, lr=0.1, betas=(0.9, 0.999), eps=1e-15, step=step, lazy=lazy)
        grad = torch.sparse_coo_tensor(rows[None], values, (40, 7), check_invariants=True)
        theirs.grad = grad if lazy else grad.to_dense()
        optimizer.step()
    return ours, theirs.detach()


@pytest.mark.parametrize("lazy", [False, True])
def test_adam_on_rows_equals_torch(lazy: bool) -> None:
    ours, theirs = _two_adams(lazy)
    torch.testing.assert_close(ours, theirs, atol=1e-11, rtol=0)
    other, _ = _two_adams(not lazy)
    assert not torch.allclose(ours, other, atol=1e-3)
