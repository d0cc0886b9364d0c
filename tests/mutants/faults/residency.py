"""Caches of experts and their places."""

from __future__ import annotations

from tests.mutants.fault import faults

_KERNELS, _SIMULATE = "routing/cache/kernels.py", "routing/cache/simulate.py"
_PLAIN = "test_every_policy_loads_what_a_plain_simulator_does"
CACHE = faults(
    "cache",
    "residency_cache",
    (
        "never-needed-again",
        "fewest loads",
        "the optimum does not know when an expert is needed next",
        _KERNELS,
        "            upcoming[flat[i]] = s",
        "            upcoming[flat[i]] = n_steps",
        ("test_the_fewest_loads_are_the_fewest_that_a_search_finds",),
    ),
    (
        "last-choice-on-top",
        "recency",
        "of a token's experts the last named counts as the last used",
        _KERNELS,
        "range(starts[s + 1] - 1, starts[s] - 1, -1):  # a router names",
        "range(starts[s], starts[s + 1]):  # a router names",
        (_PLAIN,),
    ),
    (
        "one-more-held",
        "capacity",
        "a layer holds one expert more than it was given",
        _SIMULATE,
        "hits[:, :c].sum(1)",
        "hits[:, : c + 1].sum(1)",
        (_PLAIN,),
    ),
    (
        "pinned-for-nothing",
        "pinning",
        "a pinned expert is never loaded",
        _KERNELS,
        "            if seen[flat[i]]:",
        "            if seen[flat[i]] or rank[flat[i]] >= 0:",
        (_PLAIN, "test_no_policy_loads_less_than_the_fewest"),
    ),
    (
        "uniform-prefers",
        "uniform router",
        "some sets of experts are drawn more often than others",
        "routing/drawn.py",
        "            j = k + below(state, n_experts - k)",
        "            j = below(state, n_experts)",
        ("test_a_uniform_router_takes_any_set_as_often",),
    ),
    (
        "guesses-are-free",
        "lookahead",
        "what is loaded on a guess costs nothing",
        _KERNELS,
        "                early[cell[s]] += 1",
        "                early[cell[s]] += 0",
        ("test_a_guess_hides_a_load_and_a_wrong_one_costs_it",),
    ),
)
_CACHED, _PLACED = "studies/residency/cached.py", "studies/residency/placed.py"
RESIDENCY = faults(
    "residency",
    "residency",
    (
        "pinned-by-those-that-judge",
        "split",
        "what is pinned comes from the requests that judge it",
        "studies/residency/rows.py",
        "trace.select(rows.fit.tolist())",
        "trace.select(rows.judge.tolist())",
        ("test_what_is_pinned_comes_from_other_requests_than_those_that_judge",),
    ),
    (
        "placed-by-those-that-judge",
        "placement",
        "a placement is fitted to the requests that judge it",
        _PLACED,
        "balanced(halves.fit.counts().sum(0)",
        "balanced(halves.judge.counts().sum(0)",
        ("test_a_placement_is_judged_by_other_requests",),
    ),
    (
        "no-shift",
        "shift",
        "the other domains are the same domain",
        _CACHED,
        "of_category(halves.fit, category, others=True)",
        "of_category(halves.fit, category, others=False)",
        ("test_a_shift_between_domains_is_noticed",),
    ),
    (
        "random-is-contiguous",
        "random placements",
        "random placements are the fitted one",
        _PLACED,
        "others = [shuffled(plain, rng) for _ in range(settings.n_random)]",
        "others = [shuffled(plain, rng), *[fitted] * (settings.n_random - 1)]",
        ("test_crowded_devices_are_found_and_relieved",),
    ),
    (
        "uniform-is-measured",
        "uniform router",
        "the uniform router is the measured one",
        _CACHED,
        "drawn = uniform_trace(halves.judge, seed)",
        "drawn = halves.judge.select(range(len(halves.judge.sequences)))",
        ("test_tokens_that_come_back",),
    ),
)
LOAD = faults(
    "load",
    "load",
    (
        "uniform-is-measured",
        "uniform router",
        "the choices that a uniform router would drop are the measured ones",
        "studies/signatures/overflow.py",
        "ids = uniform_trace(trace, seed + i).ids",
        "ids = trace.ids",
        ("test_a_skewed_router_drops_more",),
    ),
    (
        "one-batch",
        "batches",
        "tokens of all batches share one capacity",
        "studies/signatures/overflow.py",
        "batch = np.repeat(np.arange(_BATCHES), tokens)",
        "batch = np.zeros(_BATCHES * tokens, np.int64)",
        ("test_a_uniform_router_drops_what_a_uniform_router_does",),
    ),
)
FAULTS = [*CACHE, *RESIDENCY, *LOAD]
