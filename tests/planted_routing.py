"""Made-up routing traces: uniformly random, or with experts planted for a category, so that the right answer is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from moescope.routing import RoutingTrace, TracedSequence

CATEGORIES = ("code", "math", "story", "factual")
VOCABULARY = 40


def random_trace(
    n_per_category: int = 8,
    *,
    tokens: int | Mapping[str, int] = 24,
    layers: Sequence[int] = (1, 3, 4),
    n_experts: int = 16,
    k: int = 4,
    planted: Mapping[tuple[int, str], Sequence[int]] | None = None,
    strength: float = 0.5,
    categories: Sequence[str] = CATEGORIES,
    popularity: np.ndarray | None = None,
    lexical: bool = False,
    templates: int = 3,
    seed: int = 0,
) -> RoutingTrace:
    """Tokens that take k of E experts at random.

    Args:
        tokens: of each prompt, or by category.
        planted: (layer, category) -> experts that a token of that category takes with probability ``strength`` on top.
        popularity: (E,) relative weight of each expert; None for equal.
        templates: how many the prompts of each category take turns in.
        lexical: a token's experts are a function of its id, and each category has its own mix of ids.
    """
    rng = np.random.default_rng(seed)
    length = tokens if isinstance(tokens, Mapping) else dict.fromkeys(categories, tokens)
    sequences, ids, ends, words = [], [], [], []
    table = rng.random((VOCABULARY, len(layers), n_experts)).argsort(-1)[:, :, :k]
    mix = {c: rng.dirichlet(np.full(VOCABULARY, 0.3)) for c in categories}
    for i in range(n_per_category):
        for c in categories:
            sequences.append(TracedSequence(f"{c}-{i}", c, f"topic{i % 4}/template{i % templates}"))
            gumbel = rng.gumbel(size=(length[c], len(layers), n_experts))
            if popularity is not None:
                gumbel += np.log(popularity)
            for (layer, category), experts in (planted or {}).items():
                if category == c:
                    pulled = rng.random(length[c]) < strength
                    gumbel[np.ix_(pulled, [list(layers).index(layer)], list(experts))] += 100
            word = rng.choice(VOCABULARY, length[c], p=mix[c]) if lexical else rng.integers(VOCABULARY, size=length[c])
            words.append(word)
            ids.append(table[word] if lexical else (-gumbel).argsort(-1)[:, :, :k])
            ends.append(length[c])
    total = sum(ends)
    position = np.concatenate([np.arange(n) for n in ends]).astype(np.int32)
    flat = np.concatenate(ids).astype(np.uint8)
    return RoutingTrace(
        layers=tuple(layers),
        n_experts=(n_experts,) * len(layers),
        ids=flat,
        weights=np.full(flat.shape, 1 / k, np.float16),
        sequence=np.repeat(np.arange(len(ends)), ends).astype(np.int32),
        position=position,
        generated=position >= np.repeat(np.array(ends) // 2, ends),
        tokens=np.concatenate(words).astype(np.int32),
        sequences=tuple(sequences),
        meta={"model": f"{total} random tokens"},
    ).validate()


def codes(trace: RoutingTrace, categories: Sequence[str] = CATEGORIES) -> np.ndarray:
    return np.array([list(categories).index(s.category or "") for s in trace.sequences])
