"""Traces of requests in which something about the experts is planted, or nothing is."""

from __future__ import annotations

import numpy as np

from moescope.routing import RoutingTrace, TracedSequence

E, K, L = 16, 2, 3


def requests(
    n: int = 40,
    tokens: int = 60,
    *,
    prompt: int = 0,
    hot: dict[str, list[int]] | None = None,
    pull: float = 3.0,
    again: float = 0.0,
    n_experts: int = E,
    k: int = K,
    seed: int = 0,
    groups: int | None = None,
) -> RoutingTrace:
    """Requests whose tokens take k of E experts of three layers at random.

    Args:
        prompt: tokens of each that are its prompt; the others count as generated.
        hot: by category, the experts that its tokens favour, in every layer.
        again: chance that a token takes the experts of the token before.
        groups: topics that the requests take turns in; None for each its own.
    """
    rng = np.random.default_rng(seed)
    categories = list(hot or {"": []})
    ids = np.empty((n, tokens, L, k), np.uint8)
    for i in range(n):
        noise = rng.gumbel(size=(tokens, L, n_experts))
        noise[..., (hot or {}).get(categories[i % len(categories)], [])] += pull
        ids[i] = np.argsort(-noise, -1)[..., :k]
        for t in np.flatnonzero(rng.random(tokens) < again):
            if t:
                ids[i, t] = ids[i, t - 1]
    position = np.tile(np.arange(tokens, dtype=np.int32), n)
    named = [None if groups is None else f"topic{i % groups}" for i in range(n)]
    return RoutingTrace(
        layers=(1, 2, 4),
        n_experts=(n_experts,) * L,
        ids=ids.reshape(n * tokens, L, k),
        weights=None,
        sequence=np.repeat(np.arange(n, dtype=np.int32), tokens),
        position=position,
        generated=position >= prompt if prompt else np.zeros(n * tokens, bool),
        tokens=None,
        sequences=tuple(TracedSequence(f"r{i}", categories[i % len(categories)] or None, named[i]) for i in range(n)),
        meta={"model": "planted"},
    ).validate()
