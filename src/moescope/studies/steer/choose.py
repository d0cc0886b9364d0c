"""Which experts to steer, by what a trace says of a category."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np

from moescope.errors import InputError
from moescope.intervene.experts import Expert, ExpertEdits

if TYPE_CHECKING:
    from moescope.routing.trace import RoutingTrace


def category_usage(trace: RoutingTrace) -> dict[str, np.ndarray]:
    """Category -> float64 (L, E): the share of its tokens sent to each expert, mean over its sequences.

    Raises:
        InputError: fewer than two categories are known.
    """
    shares = trace.counts() / np.maximum(trace.lengths, 1)[:, None, None]
    names = [s.category for s in trace.sequences]
    categories = list(dict.fromkeys(name for name in names if name is not None))
    if len(categories) < 2:
        raise InputError("prompts of at least two categories are needed to tell which experts belong to one")
    return {c: shares[[n == c for n in names]].mean(0) for c in categories}


def top_experts(trace: RoutingTrace, category: str, per_layer: int) -> tuple[Expert, ...]:
    """In every layer, the experts used most for ``category`` beyond what the other categories use them (difference of
    usage), most first.

    Raises:
        InputError: an unknown category, or more experts than a layer has to spare beside its top-k.
    """
    usage = category_usage(trace)
    own, others = _against(usage, category)
    found = []
    for place, (layer, n) in enumerate(zip(trace.layers, trace.n_experts, strict=True)):
        if not 1 <= per_layer <= n - trace.top_k:
            raise InputError(f"top experts: {per_layer} in a layer of {n} with top-{trace.top_k}; take 1 to {n - trace.top_k}")
        order = np.argsort(-(own - others)[place, :n], kind="stable")[:per_layer]
        found += [Expert(layer, int(i)) for i in order]
    return tuple(found)


def route_like(
    trace: RoutingTrace, category: str, strength: float = 1.0, *, against: Collection[str] | None = None
) -> ExpertEdits:
    """Boosts that make any prompt route like ``category``: strength x log of (usage in it / usage in the others).

    The logit of an expert's softmax probability is moved by as much as the category moves its usage. Usage is smoothed
    by one token in a hundred, so that an expert that was never seen has a finite boost.

    Args:
        against: the categories that count as the others; None: all but ``category``.

    Raises:
        InputError: an unknown category.
    """
    usage = category_usage(trace)
    if against is not None:
        usage = {c: u for c, u in usage.items() if c == category or c in against}
    own, others = _against(usage, category)
    lift = strength * np.log((own + 0.01) / (others + 0.01))
    return ExpertEdits(
        boost={
            Expert(layer, i): float(lift[place, i])
            for place, (layer, n) in enumerate(zip(trace.layers, trace.n_experts, strict=True))
            for i in range(n)
        }
    )


def check_known(category: str, categories: Collection[str]) -> None:
    """Whether the prompts have a category.

    Raises:
        InputError: they do not.
    """
    if category not in categories:
        raise InputError(f"category {category!r} is not among the prompts'; those are {', '.join(categories)}")


def _against(usage: dict[str, np.ndarray], category: str) -> tuple[np.ndarray, np.ndarray]:
    check_known(category, usage)
    return usage[category], np.mean([u for c, u in usage.items() if c != category], axis=0)
