"""MLPs in few bits against float64 of the same weights, on every way that a processor may multiply."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numba import njit
from torch import Tensor
from torch.nn import functional as F

from moescope.errors import InputError
from moescope.kernels import planes, reference, vectors
from moescope.models.rounding import Nested, nested

HERE = vectors.way()
BOUND = 1e-4  # a token's numbers are rounded to 16 bits in each group, with one fifty times the others here
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "relu": F.relu,
    "gelu_pytorch_tanh": lambda g: F.gelu(g, approximate="tanh"),
    "gelu": F.gelu,
}


def weights(n: int, d: int, seed: int = 0) -> tuple[Nested, Nested, Nested]:
    """gate, up and the transposed down projection"""
    draw = torch.Generator().manual_seed(seed)
    gate, up, down_t = (nested(torch.randn(n, d, generator=draw) / math.sqrt(d)) for _ in range(3))
    return gate, up, down_t


def tokens(t: int, d: int, seed: int = 1) -> Tensor:
    """With a number much larger than the others, as in trained models."""
    x = torch.randn(t, d, generator=torch.Generator().manual_seed(seed))
    x[:, 3] *= 50
    return x


def apart(scores: Tensor, counts: list[int]) -> bool:
    """Whether rounding cannot change the choice: the last score that counts is larger than the next by a ten-thousandth."""
    ordered = scores.sort(1, descending=True).values
    edges = [(row[c - 1] - row[c]) / row[c] for row, c in zip(ordered, counts, strict=True) if 0 < c < len(row)]
    return all(edge > 1e-4 for edge in edges)


def difference(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("way", {"vnni": ["vnni", "avx2"], "avx2": ["avx2", "plain"], "plain": ["plain"]}[HERE])
def test_the_result_is_that_of_the_chosen_neurons_in_float64(way: str) -> None:
    tested = 0
    for n, d, counts in ((70, 96, [20]), (64, 256, [64]), (100, 544, [50, 1, 100]), (333, 1024, [100, 0, 7, 160, 30])):
        gate, up, down_t = weights(n, d)
        packed, x = planes.pack(gate, up, down_t), tokens(len(counts), d)
        expected, scores = reference.sparse_mlp(x, gate, up, down_t, counts, F.silu)
        if not apart(scores, counts):
            continue
        tested += 1
        found = planes.sparse_mlp(x, packed, counts, "silu", way=way)
        assert difference(found, expected) < BOUND
        if way == HERE:
            assert difference(planes.sparse_mlp(x.bfloat16(), packed, counts, "silu").float(), expected) < 2e-2
        else:  # whole numbers are the same; only the last sums may be rounded elsewhere
            assert difference(found, planes.sparse_mlp(x, packed, counts, "silu").double()) < 1e-6
    assert tested >= 3


@pytest.mark.parametrize("bits", [4, 5, 6, 7])
@pytest.mark.parametrize("way", ["plain", "avx2", "vnni"][: ["plain", "avx2", "vnni"].index(HERE) + 1])
def test_codes_of_fewer_bits_run_as_they_are(way: str, bits: int) -> None:
    """Their own levels, of gate, up and down, and the choice by their first four bits."""
    draw = torch.Generator().manual_seed(bits)
    gate, up, down_t = (nested(torch.randn(70, 96, generator=draw) / 10, bits) for _ in range(3))
    packed, x = planes.pack(gate, up, down_t), torch.randn(3, 96, generator=draw)
    for counts in ([70] * 3, [9, 30, 44]):
        expected, scores = reference.sparse_mlp(x, gate, up, down_t, counts, F.silu)
        assert apart(scores, counts)
        assert difference(planes.sparse_mlp(x, packed, counts, "silu", way=way), expected) < BOUND
    held = planes.pack(*(Nested(w.codes << (8 - bits), w.scale, 8) for w in (gate, up, down_t)))
    assert packed.bytes_read(9) == held.bytes_read(9)


def test_every_number_of_threads_gives_the_same_choice() -> None:
    gate, up, down_t = weights(90, 64)
    packed, x = planes.pack(gate, up, down_t), tokens(2, 64)
    one, three = (planes.sparse_mlp(x, packed, 30, "silu", threads=threads) for threads in (1, 3))
    assert difference(three, one.double()) < BOUND  # neurons are rounded sixteen at a time
    assert torch.equal(three, planes.sparse_mlp(x, packed, 30, "silu", threads=3))


@pytest.mark.parametrize("activation", FUNCTIONS)
def test_activations(activation: str) -> None:
    gate, up, down_t = weights(80, 128)
    x = 3 * tokens(2, 128)
    expected, _ = reference.sparse_mlp(x, gate, up, down_t, [80, 80], FUNCTIONS[activation])
    packed = planes.pack(gate, up, down_t)
    assert difference(planes.sparse_mlp(x, packed, 80, activation), expected) < BOUND


def test_numbers_of_one_byte_cost_what_is_stated() -> None:
    gate, up, down_t = weights(320, 256)
    packed, x = planes.pack(gate, up, down_t), torch.randn(6, 256, generator=torch.Generator().manual_seed(2))
    expected, _ = reference.sparse_mlp(x, gate, up, down_t, [320] * 6, F.silu)
    assert 1e-3 < difference(planes.sparse_mlp(x, packed, 320, "silu", bytes_each=1), expected) < 1e-2


def test_of_equal_scores_the_first_are_chosen() -> None:
    gate, up, down_t = (Nested(w.codes[:1].repeat(50, 1), w.scale[:1].repeat(50, 1), 8) for w in weights(1, 64))
    draw = torch.Generator().manual_seed(3)
    codes = torch.randint(0, 256, (50, 64), generator=draw, dtype=torch.uint8)
    packed = planes.pack(gate, up, Nested(codes, down_t.scale, 8))
    planes_same = planes.Planes(packed.high, packed.low, torch.ones_like(packed.norm), packed.starts, 50, 64)
    x = tokens(1, 64)
    h = F.silu(x.double() @ gate.prefix()[0].double()) * (x.double() @ up.prefix()[0].double())
    for count in (1, 17, 49):
        expected = h * Nested(codes, down_t.scale, 8).prefix()[:count].double().sum(0)
        assert difference(planes.sparse_mlp(x, planes_same, count, "silu")[0], expected) < 2 * BOUND


def test_the_best_are_found_among_many_equal_and_extreme_scores() -> None:
    from moescope.kernels.planes_loop import _choose

    draw = torch.Generator().manual_seed(4)
    for scores in (
        torch.rand(333, generator=draw),
        torch.randint(0, 4, (333,), generator=draw).float(),
        torch.cat([torch.zeros(300), torch.tensor([float("inf"), 1e-40, 3e38] * 11)]),
    ):
        keys = F.pad(scores, (0, -len(scores) % 16)).numpy().view("uint32")
        for count in (0, 1, 5, 33, 166, 332, 333):
            mask = torch.full((333,), 7, dtype=torch.uint8).numpy()
            _choose(keys, count, 333, mask)
            best = scores.argsort(descending=True, stable=True)[:count].sort().values
            assert mask.nonzero()[0].tolist() == best.tolist()
            assert set(mask.tolist()) <= {0, 1}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_stays_with_its_token(bad: float) -> None:
    gate, up, down_t = weights(40, 96)
    packed, x = planes.pack(gate, up, down_t), tokens(3, 96)
    expected = planes.sparse_mlp(x, packed, 10, "silu")
    x[1, 40] = bad
    found = planes.sparse_mlp(x, packed, 10, "silu")
    assert found[1].isnan().all()
    assert difference(found[0::2], expected[0::2].double()) < BOUND  # beside others of the sixteen than before
    assert (planes.sparse_mlp(x, packed, 0, "silu") == 0).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_dense_forms_are_products_with_the_same_weights(bits: int) -> None:
    draw = torch.Generator().manual_seed(bits)
    for n, d, t in ((64, 96, 1), (96, 544, 3)):
        x = tokens(t, d)
        wide = x.double()
        gate, up = (nested(torch.randn(n, d, generator=draw) / math.sqrt(d), bits) for _ in range(2))
        down = nested(torch.randn(d, n, generator=draw), bits)
        matrix = nested(torch.randn(n + 7, d, generator=draw), bits)
        assert difference(planes.linear(x, planes.pack_rows(matrix)), wide @ matrix.prefix().double().T) < BOUND
        hidden = F.silu(wide @ gate.prefix().double().T) * (wide @ up.prefix().double().T)
        found = planes.dense_mlp(x, planes.pack_gated(gate, up, down), "silu")
        assert difference(found, hidden @ down.prefix().double().T) < 2 * BOUND


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("way", ["plain", "avx2", "vnni"][: ["plain", "avx2", "vnni"].index(HERE) + 1])
def test_every_way_multiplies_the_largest_codes_exactly(way: str, bits: int) -> None:
    scale = weights(1, 64)[0].scale.repeat(64, 1)
    extreme = Nested(torch.full((64, 64), 2**bits - 1, dtype=torch.uint8), scale, bits)
    x = torch.ones(1, 64)
    x[0, ::3] = -1.0
    expected = x.double() @ extreme.prefix().double().T
    assert difference(planes.linear(x, planes.pack_rows(extreme), way=way), expected) < 1e-5


def test_halves_are_widened_exactly_without_an_instruction_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "_HAS_HALVES", False)

    @njit
    def widen(words: np.ndarray, out: np.ndarray) -> None:
        for i in range(0, len(words), 16):
            vectors.store_floats(out, i, vectors.load_floats(words, i))

    words = np.arange(1 << 16, dtype=np.uint16)
    out, expected = np.empty(len(words), np.float32), words.view(np.float16).astype(np.float32)
    widen(words, out)
    finite = np.isfinite(expected)
    assert finite.sum() == 2 * 0x7C00
    assert np.array_equal(out[finite], expected[finite])


def test_bytes_are_those_of_the_memory() -> None:
    gate, up, down_t = weights(64, 256)
    packed = planes.pack(gate, up, down_t)
    memory = packed.high.numel() + packed.low.numel() + 4 * packed.norm.numel() - 128
    assert packed.bytes_read(64) == memory
    assert packed.bytes_read(0) < packed.bytes_read(1) < memory / 1.8


def test_what_does_not_fit_is_refused() -> None:
    gate, up, down_t = weights(64, 96)
    packed = planes.pack(gate, up, down_t)
    x = tokens(2, 96)
    with pytest.raises(InputError, match="up: has shape"):
        planes.pack(gate, weights(32, 96)[0], down_t)
    with pytest.raises(InputError, match="gate: must have 8 or 7 or 6 or 5 or 4 bits, got 3"):
        planes.pack(*(nested(w.prefix(), 3) for w in (gate, up, down_t)))
    with pytest.raises(InputError, match="up: must have 6 bits, got 8"):
        planes.pack(nested(gate.prefix(), 6), up, down_t)
    with pytest.raises(InputError, match="gate: must have rows of a multiple of 32 numbers, got 40"):
        planes.pack(*weights(8, 40))
    with pytest.raises(InputError, match="choose_bits: must be 4, got 3"):
        planes.pack(gate, up, down_t, 3)
    with pytest.raises(InputError, match="down: must be"):
        planes.pack_gated(gate, up, down_t)
    for bad in (65, -1, [3, 65]):
        with pytest.raises(InputError, match="count: must be from 0 to 64"):
            planes.sparse_mlp(x, packed, bad, "silu")
    with pytest.raises(InputError, match=r"x: must be \(tokens, 96\)"):
        planes.sparse_mlp(x[:, :64], packed, 5, "silu")
    with pytest.raises(InputError, match="activation: must be one of"):
        planes.sparse_mlp(x, packed, 5, "tanh")
    with pytest.raises(InputError, match="bytes_each: must be 1 or 2"):
        planes.sparse_mlp(x, packed, 5, "silu", bytes_each=3)
    with pytest.raises(InputError, match="rows: are of a matrix alone"):
        planes.dense_mlp(x, planes.pack_rows(gate), "silu")
