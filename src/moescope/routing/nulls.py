"""Routing without tasks: what similarity follows from the number of tokens, the experts' popularity, and the tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from moescope.errors import InputError
from moescope.kernels.loops import for_each
from moescope.routing.drawn import shuffled_rows, tally, uniform_ids
from moescope.routing.signatures import normalise
from moescope.routing.trace import RoutingTrace


def random_cosine(tokens: np.ndarray | float, n_experts: int, k: int) -> np.ndarray:
    """Expected cosine of two signatures of T tokens each that a uniformly random router sent to k of E experts.

    T / (T + (E - k) / k): expert counts are binomial, E[n·m] = T² k² / E and E|n|² = T k (1 - k / E) + T² k² / E; the
    expectation of the ratio is taken as the ratio of expectations, right to about 1 % from T = 8 on. For OLMoE (64
    experts, top-8) it is 0.53, 0.82, 0.90 and 0.95 at 8, 32, 64 and 128 tokens.
    """
    tokens = np.asarray(tokens, dtype=np.float64)
    return np.asarray(tokens / (tokens + (n_experts - k) / k))


def pooled_cosine(counts: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Expected cosine of every two prompts if each had drawn its tokens' routing from all prompts' together.

    The closed form of :func:`random_cosine` for prompts of different lengths and experts of different popularity: with
    q_le the share of tokens that reach expert e of layer l, E[n·m] = T U sum q² and E|n|² = T sum q (1 - q) + T² sum q².

    Args:
        counts: (N, L, E): tokens of each prompt that reached each expert.
        tokens: (N,) tokens of each prompt.

    Returns:
        (N, N) float64.
    """
    q = counts.sum(0) / tokens.sum()
    overlap, noise = (q**2).sum(), (q * (1 - q)).sum()
    length = np.sqrt(1 + noise / (np.maximum(overlap, 1e-300) * tokens))
    return np.asarray(1 / np.outer(length, length))


Router = Callable[[np.random.Generator], np.ndarray]


def uniform_router(trace: RoutingTrace) -> Router:
    """Load balance, first reading: every token takes as many experts of each layer as it did, uniformly at random.

    Returns:
        a function that draws counts (N, L, E).
    """
    used = (trace.ids != trace.empty).sum(2)  # (T, L)
    own = np.arange(len(trace))

    def draw(layer: int, seed: int, counts: np.ndarray) -> None:
        ids = np.full((len(trace), trace.top_k), trace.empty, trace.ids.dtype)
        uniform_ids(used[:, layer], trace.n_experts[layer], seed, ids)
        tally(ids, own, trace.sequence, trace.n_experts[layer], counts)

    return _by_layer(trace, draw)


def simulated_cosine(tokens: int, n_experts: int, k: int, *, pairs: int = 200, seed: int = 0) -> float:
    """Mean cosine of ``pairs`` independent pairs of signatures of uniformly random routing: checks :func:`random_cosine`."""
    rng = np.random.default_rng(seed)
    counts = np.zeros((2 * pairs, n_experts))
    ids = np.empty((len(counts) * tokens, k), np.int64)
    uniform_ids(np.full(len(ids), k), n_experts, int(rng.integers(2**62)), ids)
    tally(ids, np.arange(len(ids)), np.repeat(np.arange(len(counts)), tokens), n_experts, counts)
    unit = counts / np.linalg.norm(counts, axis=1, keepdims=True)
    return float((unit[:pairs] * unit[pairs:]).sum(1).mean())


def shuffled_router(trace: RoutingTrace, strata: np.ndarray | None = None) -> Router:
    """Load balance, second reading: each layer's own choices, dealt out anew among the tokens.

    The sets of experts that a layer's tokens chose are permuted among the tokens, each layer by itself, so every expert
    keeps exactly its number of tokens, experts that go together still do, and every prompt keeps its length.

    Args:
        strata: (T,) token labels (token ids, say): choices move only among tokens of one label, so that what a token's
            identity decides stays as it is.

    Returns:
        a function that draws counts (N, L, E).
    """
    labels = np.zeros(len(trace), np.int64) if strata is None else strata
    order = np.argsort(labels, kind="stable")
    bounds = np.concatenate([[0], np.flatnonzero(np.diff(labels[order])) + 1, [len(order)]])

    def draw(layer: int, seed: int, counts: np.ndarray) -> None:
        source = np.empty(len(trace), np.int64)
        shuffled_rows(order, bounds, seed, source)
        tally(trace.ids[:, layer], source, trace.sequence, trace.n_experts[layer], counts)

    return _by_layer(trace, draw)


def _by_layer(trace: RoutingTrace, draw: Callable[[int, int, np.ndarray], None]) -> Router:
    """Each layer drawn from a seed of its own: ``draw(layer, seed, counts (N, E))`` adds to its counts."""

    def router(rng: np.random.Generator) -> np.ndarray:
        counts = np.zeros((len(trace.layers), len(trace.sequences), max(trace.n_experts)))
        seeds = rng.integers(2**62, size=len(trace.layers)).tolist()
        for_each(lambda i: draw(i, seeds[i], counts[i]), range(len(trace.layers)))
        return np.ascontiguousarray(counts.swapaxes(0, 1))

    return router


def draws(router: Router, n: int, seed: int) -> Iterator[np.ndarray]:
    """``n`` null signatures (N, L, E), shares of each layer."""
    rng = np.random.default_rng(seed)
    for _ in range(n):
        yield normalise(router(rng))


def recurring(strata: np.ndarray) -> np.ndarray:
    """(T,) bool: tokens whose label occurs more than once, which a shuffle within labels can move."""
    _, code, size = np.unique(strata, return_inverse=True, return_counts=True)
    return np.asarray(size[code] > 1)


def token_pairs(trace: RoutingTrace) -> np.ndarray:
    """(T,) int64: a label for each token with the one before it in its sequence (none before the first).

    Raises:
        InputError: the trace has no token ids.
    """
    if trace.tokens is None:
        raise InputError("the trace has no token ids; trace again with them")
    before = np.concatenate([[-1], trace.tokens[:-1]])
    before[np.flatnonzero(np.diff(trace.sequence, prepend=-1))] = -1
    return np.asarray(np.unique(np.stack([before, trace.tokens]), axis=1, return_inverse=True)[1]).ravel()
