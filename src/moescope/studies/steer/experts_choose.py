"""Which experts to steer: read from the command line's notation, or from what a trace says of a category."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from moescope.errors import InputError
from moescope.intervene.experts import Expert, ExpertEdits

if TYPE_CHECKING:
    from moescope.routing.trace import RoutingTrace

_EXPERT = re.compile(r"\s*(\d+)\s*:\s*(\d+)\s*")


def parse_experts(option: str, texts: Sequence[str]) -> frozenset[Expert]:
    """``["5:17,5:3", "2:0"]`` -> experts.

    Raises:
        InputError: naming the option and what is not LAYER:EXPERT.
    """
    return frozenset(_expert(option, part) for text in texts for part in text.split(","))


def parse_values(option: str, texts: Sequence[str]) -> dict[Expert, float]:
    """``["5:17=+2.0"]`` -> value by expert; ``inf`` and ``-inf`` are numbers too.

    Raises:
        InputError: naming the option and what is not LAYER:EXPERT=NUMBER, or stands twice.
    """
    values: dict[Expert, float] = {}
    for part in (p for text in texts for p in text.split(",")):
        name, equals, number = part.partition("=")
        expert = _expert(option, name, "LAYER:EXPERT=NUMBER, e.g. 5:17=+2.0")
        try:
            value = float(number)
        except ValueError:
            raise InputError(f"{option}: {part!r} is not LAYER:EXPERT=NUMBER, e.g. 5:17=+2.0") from None
        if not equals or expert in values:
            raise InputError(f"{option}: expert {expert} is given twice; give it once")
        values[expert] = value
    return values


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


def route_like(trace: RoutingTrace, category: str, strength: float = 1.0) -> ExpertEdits:
    """Boosts that make any prompt route like ``category``: strength x log of (usage in it / usage in the others).

    The logit of an expert's softmax probability is moved by as much as the category moves its usage. Usage is smoothed
    by one token in a hundred, so that an expert that was never seen has a finite boost.

    Raises:
        InputError: an unknown category.
    """
    own, others = _against(category_usage(trace), category)
    lift = strength * np.log((own + 0.01) / (others + 0.01))
    return ExpertEdits(
        boost={
            Expert(layer, i): float(lift[place, i])
            for place, (layer, n) in enumerate(zip(trace.layers, trace.n_experts, strict=True))
            for i in range(n)
        }
    )


def _against(usage: dict[str, np.ndarray], category: str) -> tuple[np.ndarray, np.ndarray]:
    if category not in usage:
        raise InputError(f"category {category!r} is not among the prompts'; those are {', '.join(usage)}")
    return usage[category], np.mean([u for c, u in usage.items() if c != category], axis=0)


def _expert(option: str, text: str, form: str = "LAYER:EXPERT, e.g. 5:17") -> Expert:
    match = _EXPERT.fullmatch(text)
    if not match:
        raise InputError(f"{option}: {text!r} is not {form}")
    return Expert(int(match[1]), int(match[2]))
