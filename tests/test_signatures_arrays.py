"""Signatures, similarities and nulls as plain arrays: known answers, calibration, recovery of what was planted."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.stats import kstest

from moescope.errors import InputError
from moescope.routing import RoutingTrace, TracedSequence
from moescope.routing.cards import expert_cards
from moescope.routing.classify import cross_validate, length_matched, permuted_accuracy, score, token_counts
from moescope.routing.nulls import (
    draws,
    pooled_cosine,
    random_cosine,
    recurring,
    shuffled_router,
    simulated_cosine,
    token_pairs,
    uniform_router,
)
from moescope.routing.separation import (
    Cells,
    beyond,
    cells_of,
    clustered,
    estimates,
    pairs_between,
    separated,
    two_sided,
    without_each,
)
from moescope.routing.signatures import signatures_of
from moescope.routing.similarity import MEASURES, by_category, null_corrected, similarity
from moescope.routing.subject import subject_of
from moescope.studies.signatures.experts import expert_table, layer_table, variance_explained
from moescope.studies.signatures.separations import some_tokens
from moescope.studies.signatures.structure import mean_preference
from moescope.tasks import group_folds
from tests.planted_routing import CATEGORIES, codes, random_trace


def cosines(trace: RoutingTrace) -> np.ndarray:
    return similarity(signatures_of(trace).flat())


def compared(s: np.ndarray, y: np.ndarray, blocks: np.ndarray | None = None) -> dict[str, float]:
    """Within, across, gap and d, by default over all pairs."""
    cells = cells_of(y, blocks, "prompt")
    return {name: float(v[0]) for name, v in separated(pairs_between(s, cells), cells.y[None]).items()}


def test_a_signature_is_the_histogram_of_each_layer():
    trace = random_trace(2, tokens=6, k=2)
    found = signatures_of(trace)
    by_hand = np.zeros(16)
    for token in range(6):
        by_hand[trace.ids[token, 1]] += 1
    np.testing.assert_allclose(found.values[0, 1], by_hand / 12)
    np.testing.assert_allclose(found.values.sum(-1), 1)
    assert found.flat(3).shape == (8, 16)
    assert found.flat().shape == (8, 48)


def test_prompt_and_generated_tokens_make_up_all():
    trace = random_trace(2, tokens=10)
    prompt, generated, whole = (signatures_of(trace, part=p) for p in ("prompt", "generated", "all"))
    mixed = (prompt.values * prompt.tokens[:, None, None] + generated.values * generated.tokens[:, None, None]) / 10
    np.testing.assert_allclose(mixed, whole.values)
    assert not np.allclose(prompt.values, generated.values)


def test_weights_and_frequencies_differ_where_weights_do():
    trace = random_trace(2)
    np.testing.assert_allclose(signatures_of(trace, quantity="weight").values, signatures_of(trace).values, atol=1e-3)
    trace.weights[:, :, 0] = 0.9
    assert np.abs(signatures_of(trace, quantity="weight").values - signatures_of(trace).values).max() > 0.02


def test_a_sequence_without_tokens_of_the_part_is_named():
    trace = random_trace(2, tokens=4)
    trace.generated[trace.sequence == 3] = False
    with pytest.raises(InputError, match="'factual-0' has no generated tokens"):
        signatures_of(trace, part="generated")


@pytest.mark.parametrize(("n_experts", "k"), [(64, 8), (16, 4), (128, 1)])
def test_closed_form_matches_simulated_random_routing(n_experts, k):
    for tokens in (8, 32, 128):
        assert simulated_cosine(tokens, n_experts, k) == pytest.approx(float(random_cosine(tokens, n_experts, k)), abs=0.015)


def test_closed_form_gives_the_known_values_of_olmoe():
    np.testing.assert_allclose(random_cosine(np.array([8, 32, 64, 128]), 64, 8), [0.53, 0.82, 0.90, 0.95], atol=0.006)


def test_random_routing_of_a_trace_lies_on_the_curve():
    """A cosine of 0.85 needs no task: 24 tokens of top-4 of 16 experts give it by chance."""
    s = cosines(random_trace(16, tokens=24))
    found = compared(s, codes(random_trace(16)))
    assert found["within"] == pytest.approx(float(random_cosine(24, 16, 4)), abs=0.01)
    assert found["across"] == pytest.approx(found["within"], abs=0.01)


def test_pooled_cosine_knows_lengths_and_popularity():
    popularity = np.geomspace(1, 30, 16)
    trace = random_trace(12, tokens={"code": 6, "math": 12, "story": 24, "factual": 96}, popularity=popularity)
    expected = pooled_cosine(trace.counts(), trace.lengths)
    y = codes(trace)
    np.testing.assert_allclose(by_category(cosines(trace), y, 4), by_category(expected, y, 4), atol=0.02)
    # The uniform formula would be far off for experts of such different popularity.
    assert float(random_cosine(6, 16, 4)) < by_category(expected, y, 4)[0, 0] - 0.05


def test_uniform_router_keeps_lengths_and_top_k():
    trace = random_trace(3, tokens={"code": 5, "math": 9, "story": 7, "factual": 3})
    drawn = uniform_router(trace)(np.random.default_rng(0))
    np.testing.assert_array_equal(drawn.sum(-1), np.repeat(trace.lengths[:, None] * 4, 3, axis=1))
    assert drawn.max() <= trace.lengths.max()  # an expert once a token at most


@pytest.mark.parametrize("by_token", [False, True])
def test_reshuffled_routing_preserves_counts(by_token):
    trace = random_trace(4, tokens={"code": 5, "math": 9, "story": 7, "factual": 30}, popularity=np.geomspace(1, 20, 16))
    drawn = shuffled_router(trace, trace.tokens if by_token else None)(np.random.default_rng(0))
    np.testing.assert_array_equal(drawn.sum(0), trace.counts().sum(0))  # every expert of every layer
    np.testing.assert_array_equal(drawn.sum(-1), trace.counts().sum(-1))  # every prompt
    assert not np.array_equal(drawn, trace.counts())


def test_reshuffling_among_equal_tokens_keeps_lexical_routing():
    """Routing that is a function of the token's identity survives that null whole, and no other."""
    trace = random_trace(8, lexical=True)
    y = codes(trace)
    measured = compared(cosines(trace), y)["d"]
    free, same = (
        np.mean([compared(similarity(v.reshape(32, -1)), y)["d"] for v in draws(shuffled_router(trace, strata), 5, 0)])
        for strata in (None, trace.tokens)
    )
    assert measured > 1
    assert same == pytest.approx(measured, abs=1e-9)
    assert abs(free) < 0.3
    assert recurring(trace.tokens).mean() > 0.9


def test_token_pairs_begin_anew_with_every_sequence():
    trace = random_trace(2, tokens=3)
    pairs = token_pairs(dataclasses.replace(trace, tokens=np.tile(np.array([5, 5, 5], np.int32), 8)))
    assert pairs.reshape(8, 3).tolist() == [[0, 1, 1]] * 8


def test_separation_by_hand():
    s = np.array([[1, 0.9, 0.5, 0.4], [0.9, 1, 0.3, 0.2], [0.5, 0.3, 1, 0.7], [0.4, 0.2, 0.7, 1]])
    y = np.array([0, 0, 1, 1])
    found = compared(s, y)
    assert found["within"] == pytest.approx(0.8)
    assert found["across"] == pytest.approx(0.35)
    within, across = np.array([0.9, 0.7]), np.array([0.5, 0.4, 0.3, 0.2])
    pooled = (within.var(ddof=1) + 3 * across.var(ddof=1)) / 4
    assert found["d"] == pytest.approx(0.45 / np.sqrt(pooled))
    # Two templates, each in both categories: the pairs of one template (0.5 and 0.2) do not count.
    assert compared(s, y, np.array([0, 1, 0, 1]))["across"] == pytest.approx(0.35)
    assert compared(s, y, np.array([0, 1, 1, 0]))["across"] == pytest.approx((0.5 + 0.2) / 2)
    # Each category its own template: nothing is left to compare.
    assert np.isnan(compared(s, y, y)["d"])
    assert cells_of(y, y, "template").confounded


def templated(n: int, templates: int, seed: int, effect: float = 0.0) -> tuple[np.ndarray, Cells]:
    """Similarities (N, N) of 3 categories in templates that they share, n prompts a cell; template and cell have effects."""
    rng = np.random.default_rng(seed)
    y, block = (a.ravel() for a in np.meshgrid(np.arange(3), np.arange(templates), indexing="ij"))
    y, block = np.repeat(y, n), np.repeat(block, n)
    of_template, of_cell = rng.normal(size=(templates, 12)), rng.normal(size=(3, templates, 12))
    x = effect * np.eye(12)[y] + 0.7 * of_template[block] + 0.5 * of_cell[y, block] + rng.normal(size=(len(y), 12))
    return similarity(x), cells_of(y, block, "template")


def test_leaving_out_a_block_is_computing_without_it():
    s, cells = templated(3, 4, 0, 1.0)
    left = without_each(pairs_between(s, cells), cells)
    for u in range(4):
        kept = cells.groups != u
        found = compared(s[np.ix_(kept, kept)], cells.y[cells.of][kept], cells.groups[kept])
        for name, values in left.items():
            assert values[u] == pytest.approx(found[name])
    own = pairs_between(s, cells)
    assert all(e.value == pytest.approx(0, abs=1e-12) for e in beyond(own, [own, own], cells).values())


def test_p_of_whole_cells_is_uniform_though_templates_and_cells_have_effects():
    p = []
    for seed in range(200):
        s, cells = templated(3, 5, seed)
        pairs = pairs_between(s, cells)
        null = separated(pairs, cells.labels(99, seed))["d"]
        p.append(two_sided(float(separated(pairs, cells.y[None])["d"][0]), null))
    assert kstest(np.array(p) - np.random.default_rng(0).random(200) / 100, "uniform").pvalue > 0.01


def test_the_interval_over_templates_covers():
    true = np.mean(
        [estimates(pairs_between(s, c), c)["d"].value for s, c in (templated(3, 30, 900 + i, 1.0) for i in range(20))]
    )
    found = [estimates(pairs_between(s, c), c)["d"] for s, c in (templated(3, 6, seed, 1.0) for seed in range(300))]
    assert 0.91 <= np.mean([e.low <= true <= e.high for e in found]) <= 0.985


def test_a_mean_without_spread_is_not_certain():
    found = clustered(np.zeros(50), np.arange(50))
    assert found.low == -found.high < 0
    assert found.p > 0.9


def test_measures_agree_on_equal_and_on_disjoint_signatures():
    values = np.array([[0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]])
    for measure in MEASURES:
        s = similarity(values, measure)
        np.testing.assert_allclose(s, s.T)
        assert s[0, 1] == pytest.approx(1)
        assert s[0, 2] == pytest.approx(-1 if measure == "centred_cosine" else 0, abs=1e-9)
    half = (
        similarity(np.array([[1.0, 0.0], [0.5, 0.5]]))[0, 1],
        similarity(np.array([[1.0, 0], [0.5, 0.5]]), "weighted_jaccard")[0, 1],
    )
    assert half == pytest.approx((np.sqrt(0.5), 1 / 3))


def test_length_alone_makes_cosines_differ_and_the_correction_takes_it_away():
    """Random routing, but stories are long: raw cosine "finds" that stories are alike."""
    trace = random_trace(15, tokens={"code": 8, "math": 8, "story": 120, "factual": 8})
    y, s = codes(trace), cosines(trace)
    raw = by_category(s, y, 4)
    assert raw[2, 2] > raw[0, 0] + 0.2
    corrected = by_category(null_corrected(s, pooled_cosine(trace.counts(), trace.lengths)), y, 4)
    assert np.abs(corrected).max() < 0.08
    cut = some_tokens(trace, 8, trace.position)
    assert cut.validate().lengths.tolist() == [8] * 60
    assert np.ptp(np.diag(by_category(cosines(cut), y, 4))) < 0.05


def test_length_matched_prompts_have_equal_lengths():
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(3), 50)
    tokens = rng.integers(10, 20, 150) + 4 * y
    kept = length_matched(tokens, y)
    lengths = [sorted((tokens[kept][y[kept] == c] // 3).tolist()) for c in range(3)]
    assert lengths[0] == lengths[1] == lengths[2]
    assert len(lengths[0]) > 3
    assert abs(np.diff([tokens[kept][y[kept] == c].mean() for c in range(3)])).max() < 1 < np.ptp(tokens)
    assert len(length_matched(np.array([1, 1, 4, 4]), np.array([0, 0, 1, 1]))) == 0


def test_p_values_are_uniform_under_shuffled_labels():
    """Similarity, experts and layers: 250 unplanted traces of 16 prompts."""
    p, family, layer = [], [], []
    for seed in range(250):
        trace = random_trace(8, tokens=8, layers=(0, 1), n_experts=8, k=2, categories=("a", "b"), seed=seed)
        alone = tuple(TracedSequence(s.id, s.category) for s in trace.sequences)
        subject, found = subject_of(dataclasses.replace(trace, sequences=alone)), signatures_of(trace)
        cells = subject.cells()
        labels = cells.labels(99, seed)
        pairs = pairs_between(similarity(found.flat()), cells)
        p.append(two_sided(float(separated(pairs, cells.y[None])["d"][0]), separated(pairs, labels)["d"]))
        family.append(expert_table(found, subject, labels)[0]["p_family"].min())
        layer.append(layer_table(found, cells, labels)[0]["p_family"].min())
    rng = np.random.default_rng(0)
    for values in (p, family, layer):
        # p takes the values 1/100 … 1; spread evenly over its step it is continuous.
        assert kstest(np.array(values) - rng.random(250) / 100, "uniform").pvalue > 0.01


def test_planted_experts_are_found_at_their_layer_and_nowhere_else():
    trace = random_trace(10, planted={(3, "code"): (2, 9), (3, "story"): (5,)}, strength=0.35, seed=1)
    y, found = codes(trace), signatures_of(trace)
    alone = tuple(TracedSequence(s.id, s.category) for s in trace.sequences)
    subject = subject_of(dataclasses.replace(trace, sequences=alone))
    labels = subject.cells().labels(999, 0)
    layers = layer_table(found, subject.cells(), labels)[0].set_index("layer")["p_family"]
    assert layers[3] < 0.01
    assert layers[[1, 4]].min() > 0.05
    table = expert_table(found, subject, labels)[0]
    hits = table[table["p_family"] < 0.01].set_index(["layer", "expert"])
    assert set(hits.index) == {(3, 2), (3, 9), (3, 5)}
    assert hits.loc[(3, 5), "category"] == "story"
    assert hits.loc[(3, 2), "lift"] > 1.5
    measured = compared(similarity(found.flat()), y)["d"]
    for router in (uniform_router(trace), shuffled_router(trace), shuffled_router(trace, trace.tokens)):
        null = [compared(similarity(v.reshape(40, -1)), y)["d"] for v in draws(router, 10, 0)]
        assert measured > 2 * max(null)


def test_signatures_classify_planted_categories_but_not_random_routing():
    planted = random_trace(10, planted={(3, c): (2 * i, 2 * i + 1) for i, c in enumerate(CATEGORIES)}, strength=0.5)
    y = codes(planted)
    folds = group_folds(y, np.arange(40), 5)
    good = cross_validate(signatures_of(planted).flat(), y, folds)
    assert (good == y).mean() > 0.9
    null, p = permuted_accuracy(signatures_of(planted).flat(), y, None, n_permutations=19, n_folds=5, seed=0)
    assert p == 1 / 20
    assert 0.1 < null.mean() < 0.4
    random = cross_validate(signatures_of(random_trace(10, seed=5)).flat(), y, folds)
    assert (random == y).mean() < 0.5
    found = score(y, good)
    assert found.low < found.accuracy <= found.high
    assert found.f1_low <= found.macro_f1 <= found.f1_high


def test_token_counts_know_lexical_routing():
    trace = random_trace(10, lexical=True, tokens=40)
    y = codes(trace)
    predicted = cross_validate(token_counts(trace), y, group_folds(y, np.arange(40), 5))
    assert (predicted == y).mean() > 0.9
    assert token_counts(trace).sum() == len(trace)


def test_variance_explained_by_hand():
    values = np.array([[0.0, 5], [0, 6], [1, 5], [1, 6]])
    np.testing.assert_allclose(variance_explained(values, np.array([0, 0, 1, 1])), [1, 0], atol=1e-12)
    assert variance_explained(np.ones((4, 2)), np.array([0, 0, 1, 1])).max() == 0


def test_an_expert_card_names_its_tokens_categories_and_contexts():
    trace = random_trace(10, tokens=30, planted={(3, "math"): (7,)}, strength=0.6, seed=2)
    trace.ids[np.ix_(trace.tokens == 11, [1])] = np.array([7, 8, 9, 10])  # layer 3: token 11 always takes expert 7
    cards = expert_cards(trace, [(3, 7)], decode=lambda ids: "".join(f"<{i}>" for i in ids))
    tokens = cards["expert_tokens"]
    assert tokens["token"].iloc[0] == "<11>"
    assert tokens["rate"].iloc[0] == 1
    assert tokens["low"].iloc[0] > 1
    lifts = cards["expert_categories"].set_index("category")
    assert lifts["lift"].idxmax() == "math"
    assert lifts.loc["math", "low"] > 1
    assert "⟦<" in cards["expert_contexts"]["text"].iloc[0]
    with pytest.raises(InputError, match="layer 2 is not traced"):
        expert_cards(trace, [(2, 7)])
    with pytest.raises(InputError, match="experts 0 to 15, not 16"):
        expert_cards(trace, [(3, 16)])


def test_mean_preference_is_that_of_the_experts_with_and_without_each_block():
    rng = np.random.default_rng(0)
    y, block = np.arange(40) % 3, rng.integers(5, size=40)
    used, cells = rng.random((40, 6)), cells_of(y, block, "template")
    value, left = mean_preference(used, cells)
    assert value == pytest.approx(variance_explained(used, cells.y, cells).mean())
    for u in range(5):
        kept = block != u
        part = cells_of(y[kept], block[kept], "template")
        assert left[u] == pytest.approx(variance_explained(used[kept], part.y, part).mean())
