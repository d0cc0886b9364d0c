"""Caches of experts against simulators written in plain Python, and the optimum against a search over everything."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from moescope.routing import RoutingTrace, TracedSequence
from moescope.routing.cache import POLICIES, Loads, Policy, Prefill, ranking, served, simulate, uniform_trace
from tests.wiring.requests import requests

Steps = list[list[int]]


def made(draw_from: np.random.Generator, lengths: list[int], n: int, k: int, *, empty: float = 0.0) -> RoutingTrace:
    """Tokens of two layers that take up to k of n experts, the first half of each request a prompt."""
    total = sum(lengths)
    ids = np.argsort(draw_from.random((total, 2, n)) + np.linspace(0, 0.5, n), -1)[..., :k].astype(np.uint8)
    ids[draw_from.random(ids.shape) < empty] = 255
    position = np.concatenate([np.arange(m) for m in lengths]).astype(np.int32)
    return RoutingTrace(
        layers=(0, 3),
        n_experts=(n, n),
        ids=ids,
        weights=None,
        sequence=np.repeat(np.arange(len(lengths)), lengths).astype(np.int32),
        position=position,
        generated=position >= np.repeat(np.array(lengths) // 2, lengths),
        tokens=None,
        sequences=tuple(TracedSequence(str(i)) for i in range(len(lengths))),
    )


def steps_of(trace: RoutingTrace, layer: int, batch: int, prefill: Prefill) -> Iterator[tuple[int, list[int]]]:
    """(cell, experts in the order in which they are first named) of each step, by going through the requests one by one."""
    for unit, first in enumerate(range(0, len(trace.sequences), batch)):
        lanes = []
        for i in range(first, min(first + batch, len(trace.sequences))):
            rows = np.flatnonzero(trace.sequence == i).tolist()
            prompt = [r for r in rows if not trace.generated[r]] if prefill == "one step" else []
            lanes.append(([prompt] if prefill == "one step" else []) + [[r] for r in rows if r not in prompt])
        for number in range(max(map(len, lanes))):
            rows = [r for lane in lanes if number < len(lane) for r in lane[number]]
            experts = [int(e) for r in rows for e in trace.ids[r, layer] if e != trace.empty]
            if rows:
                yield 2 * unit + (prefill == "one step" and number == 0), list(dict.fromkeys(experts))


def lru(steps: Steps, c: int, _: np.ndarray) -> Iterator[int]:
    held: list[int] = []
    for step in steps:
        yield len(set(step) - set(held))
        held = (step + [e for e in held if e not in step])[:c]


def lfu(steps: Steps, c: int, _: np.ndarray) -> Iterator[int]:
    held: set[int] = set()
    uses: dict[int, int] = {}
    last: dict[int, tuple[int, int]] = {}
    for s, step in enumerate(steps):
        yield len(set(step) - held)
        for place, e in enumerate(step):
            uses[e] = uses.get(e, 0) + 1
            last[e] = (s, -place)
        held |= set(step)
        for e in sorted(held, key=lambda e: (e in step, uses[e], last[e]))[: max(0, len(held) - c)]:
            held.remove(e)


def static(steps: Steps, c: int, rank: np.ndarray) -> Iterator[int]:
    seen: set[int] = set()
    for step in steps:
        yield sum(e not in seen or rank[e] >= c for e in step)
        seen |= set(step)


def belady(steps: Steps, c: int, _: np.ndarray) -> Iterator[int]:
    held: set[int] = set()
    for s, step in enumerate(steps):
        yield len(set(step) - held)
        later = {e: next((t for t in range(s + 1, len(steps)) if e in steps[t]), len(steps)) for e in held | set(step)}
        held = set(sorted(later, key=lambda e: (later[e], e))[:c])


PLAIN: dict[Policy, Callable[[Steps, int, np.ndarray], Iterator[int]]] = {
    "lru": lru,
    "lfu": lfu,
    "static": static,
    "belady": belady,
}


def fewest(steps: Steps, c: int) -> int:
    """By trying everything that could be kept after each step."""
    costs: dict[frozenset[int], int] = {frozenset(): 0}
    for step in steps:
        after: dict[frozenset[int], int] = {}
        for held, cost in costs.items():
            loaded = cost + len(set(step) - held)
            there = held | set(step)
            for kept in combinations(sorted(there), min(c, len(there))):
                after[frozenset(kept)] = min(loaded, after.get(frozenset(kept), loaded))
        costs = after
    return min(costs.values())


@pytest.mark.parametrize("prefill", ["one step", "token by token"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_every_policy_loads_what_a_plain_simulator_does(seed: int, batch: int, prefill: Prefill) -> None:
    rng = np.random.default_rng(seed)
    n, k = [(6, 2), (9, 1), (8, 3), (5, 4)][seed]
    trace = made(rng, rng.integers(2, 14, 7).tolist(), n, k, empty=0.2 if seed == 2 else 0.0)
    steps = served(trace, batch, prefill)
    rank = ranking(rng.integers(0, 5, (2, n)))
    capacities = range(1, n)
    found = simulate(trace, steps, capacities, tuple(PLAIN), pinned=rank)
    for layer in range(2):
        listed = list(steps_of(trace, layer, batch, prefill))
        for (policy, c), loads in found.items():
            expected = np.zeros(2 * steps.n_units, int)
            for (cell, _), missed in zip(listed, PLAIN[policy]([e for _, e in listed], c, rank[layer]), strict=True):
                expected[cell] += missed
            assert loads.loaded[layer].tolist() == expected.tolist(), (policy, c)
            assert loads.needed[layer].sum() == sum(len(e) for _, e in listed)


@pytest.mark.parametrize("seed", range(6))
def test_the_fewest_loads_are_the_fewest_that_a_search_finds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    trace = made(rng, [6, 5, 3], 6, 1 + seed % 3)
    for batch in (1, 2):
        steps = served(trace, batch)
        found = simulate(trace, steps, (1, 2, 3, 4), ("belady",))
        for layer in range(2):
            listed = [experts for _, experts in steps_of(trace, layer, batch, "one step")]
            for c in (1, 2, 3, 4):
                assert found["belady", c].loaded[layer].sum() == fewest(listed, c)


def total(loads: Loads) -> np.ndarray:
    return np.asarray(loads.loaded.sum(1))


@pytest.mark.parametrize("seed", range(60))
def test_no_policy_loads_less_than_the_fewest(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 10))
    k = int(rng.integers(1, n + 1))
    trace = made(rng, rng.integers(1, 13, rng.integers(1, 7)).tolist(), n, k)
    if seed % 2:  # tokens that repeat others, where a policy has most to gain
        trace = replace(trace, ids=trace.ids[rng.integers(0, min(3, len(trace)), len(trace))])
    steps = served(trace, int(rng.integers(1, 4)), "one step" if seed % 3 else "token by token")
    guessed = np.argsort(rng.random((len(trace), 2, n)), -1)[..., :k].astype(np.uint8)
    capacities = tuple(range(1, n + 1))
    found = simulate(trace, steps, capacities, POLICIES, pinned=ranking(rng.random((2, n))), guessed=guessed)
    for c in capacities:
        for policy in POLICIES:
            assert (total(found[policy, c]) >= total(found["belady", c])).all(), (policy, c)
        if c > 1:
            assert (total(found["belady", c]) <= total(found["belady", c - 1])).all()
    distinct = [len(np.unique(trace.ids[:, layer])) for layer in range(2)]
    assert total(found["belady", n]).tolist() == distinct  # with room for all each is loaded once
    assert total(found["lru", n]).tolist() == distinct


@pytest.mark.parametrize("k", [1, 4])
def test_last_used_under_a_uniform_router_hits_one_in_c_of_e(k: int) -> None:
    """The distinct experts last used are any C of E, whatever a token takes next: the rate is C / E for every k up to C."""
    trace = uniform_trace(requests(4, 6000, n_experts=16, k=k), seed=3)
    for policy in ("lru", "static", "lfu"):
        for c in (4, 8, 12):
            loads = simulate(trace, served(trace), (c,), (policy,), pinned=ranking(np.ones((3, 16))))[policy, c]  # type: ignore[arg-type, index]
            # each hit is one of three layers and 24,000 tokens' k
            error = 3 * np.sqrt(c / 16 * (1 - c / 16) / (3 * 24_000 * k))
            assert abs(1 - loads.loaded.sum() / loads.needed.sum() - c / 16) < error + 1e-3


def test_a_uniform_router_takes_any_set_as_often() -> None:
    trace = requests(2, 30_000, n_experts=5, k=2)
    ids = np.sort(uniform_trace(trace, seed=1).ids[:, 0], 1)
    sets, counts = np.unique(ids, axis=0, return_counts=True)
    assert len(sets) == 10  # no expert twice
    assert (abs(counts / len(ids) - 0.1) < 0.01).all()
    partly = replace(trace, ids=np.where(np.arange(2) < 1, trace.ids, 255).astype(np.uint8))
    assert (uniform_trace(partly, seed=1).ids[..., 1] == 255).all()  # as many as the token used


def test_a_guess_hides_a_load_and_a_wrong_one_costs_it() -> None:
    trace = requests(3, 40)
    steps = served(trace)
    right = simulate(trace, steps, (4,), ("lru", "lookahead"), guessed=trace.ids)
    assert right["lookahead", 4].late.sum() == 0
    assert (right["lookahead", 4].loaded == right["lru", 4].loaded).all()
    nothing = simulate(trace, steps, (4,), ("lru", "lookahead"), guessed=np.full_like(trace.ids, 255))
    assert (nothing["lookahead", 4].late == nothing["lru", 4].loaded).all()
    wrong = (trace.ids + 1) % 16
    held = simulate(trace, steps, (4,), ("lru", "lookahead"), guessed=wrong.astype(np.uint8))
    assert held["lookahead", 4].loaded.sum() > 1.3 * held["lru", 4].loaded.sum()


def test_requests_served_together_need_the_experts_of_all() -> None:
    trace = requests(6, 10, prompt=4)
    one, three = served(trace), served(trace, 3)
    assert (one.n_units, three.n_units) == (6, 2)
    assert len(one.cell) == 6 * (1 + 6)  # a prompt is one step
    assert len(three.cell) == 2 * (1 + 6)
    assert three.tokens.tolist() == [18, 12, 18, 12]
    assert len(served(trace, prefill="token by token").cell) == 60
    first = trace.ids[[4, 14, 24], 0].ravel()  # the first generated tokens of the first three
    loads = simulate(trace, three, (15,), ("lru",))["lru", 15]
    assert loads.needed[0, 0] <= 6 * 6
    assert len(np.unique(first)) <= 6
