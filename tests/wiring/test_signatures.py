"""Cues, nulls and splits of the signatures study on made routings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from moescope.routing import RoutingTrace
from moescope.routing.drawn import shuffled_rows
from moescope.study.result import StudyResult
from moescope.tasks import Prompt
from tests.planted_routing import CATEGORIES, random_trace
from tests.wiring import call
from tests.wiring.planted import expert_model

PLANTED = {(3, c): (2 * i, 2 * i + 1) for i, c in enumerate(CATEGORIES)}


def accuracy(result: StudyResult, features: str, split: str = "stratified") -> float:
    found = result.tables["routing_accuracy"].query("features == @features and split == @split")
    return float(found["accuracy"].iloc[0])


def null(result: StudyResult, name: str) -> dict[str, float]:
    return result.tables["routing_nulls"].set_index("null").loc[name].to_dict()


def prompts_of(trace: RoutingTrace, text: Callable[[int], str], topics: Sequence[str] | None = None) -> list[Prompt]:
    return [Prompt(s.id, text(i), s.category, topics[i] if topics else None, None) for i, s in enumerate(trace.sequences)]


@pytest.fixture(scope="module")
def planted() -> StudyResult:
    """Experts by category, token ids by nothing, texts that say nothing but in the order of two words."""
    trace = random_trace(10, tokens=40, planted=PLANTED, strength=0.6, categories=CATEGORIES[:2])
    orders = ("left right", "right left")
    texts = [f"only{i} {orders[i % 2]}" for i in range(len(trace.sequences))]
    return call.signatures(trace, prompts_of(trace, lambda i: texts[i]))


def test_token_ids_are_a_cue_of_their_own(planted: StudyResult) -> None:
    assert accuracy(planted, "signature") == 1
    assert accuracy(planted, "token ids (prompt and generated)") < 0.75


def test_single_words_do_not_know_their_order_and_pairs_do(planted: StudyResult) -> None:
    assert accuracy(planted, "bag of words") < 0.7
    assert accuracy(planted, "words and bigrams") == 1


def test_own_choices_dealt_out_anew_have_no_category(planted: StudyResult) -> None:
    assert null(planted, "measured routing")["d"] > 1
    for name in ("uniform", "own counts reshuffled", "labels permuted"):
        assert abs(null(planted, name)["d"]) < 0.3
        assert null(planted, name)["p"] < 0.1


def test_what_tokens_decide_stays_when_only_equal_tokens_change_places() -> None:
    found = null(call.signatures(random_trace(8, tokens=40, lexical=True)), "same token reshuffled")
    assert found["p"] == 1
    assert found["d"] > 0.5


def test_load_balance_is_uniform_in_one_null_and_the_routers_own_in_the_other() -> None:
    popular = 4.0 ** -np.arange(16)
    result = call.signatures(random_trace(6, tokens=20, popularity=popular))
    assert null(result, "own counts reshuffled")["across"] > null(result, "uniform")["across"] + 0.1
    layers = result.tables["layer_nulls"].groupby("null")["across"].mean()
    assert layers["own counts reshuffled"] > layers["uniform"] + 0.1


@pytest.fixture(scope="module")
def lengths() -> StudyResult:
    """Random routing of long prompts and of short ones."""
    tokens = {"long": 80, "longer": 100, "short": 12, "shorter": 10}
    return call.signatures(random_trace(12, tokens=tokens, categories=tuple(tokens), templates=6))


def test_length_alone_makes_no_difference_at_equal_lengths(lengths: StudyResult) -> None:
    found = lengths.tables["similarity"]
    assert found.query("prompts == 'all' and measure == 'cosine'")["p"].iloc[0] == 0.01
    assert found[found["prompts"].str.startswith("first")]["p"].iloc[0] > 0.05


def test_length_alone_is_what_the_corrected_cosine_expects(lengths: StudyResult) -> None:
    assert lengths.tables["similarity"].query("measure == 'null_corrected' and prompts == 'all'")["p"].iloc[0] > 0.05


def by_topic(topics: Sequence[str], categories: Sequence[str]) -> RoutingTrace:
    """Prompts that are routed by their topic and by nothing else."""
    names = tuple(dict.fromkeys(topics))
    planted = {(1, t): (2 * i, 2 * i + 1) for i, t in enumerate(names)}
    traces = random_trace(len(topics), tokens=40, layers=(1,), planted=planted, strength=0.9, categories=names)
    found, seen = [], dict.fromkeys(names, 0)
    for topic in topics:
        found.append(f"{topic}-{seen[topic]}")
        seen[topic] += 1
    kept = traces.select(found)
    sequences = [replace(s, category=c, group=f"{t}/") for s, c, t in zip(kept.sequences, categories, topics, strict=True)]
    return replace(kept, sequences=tuple(sequences))


@pytest.fixture(scope="module")
def topical() -> StudyResult:
    """Eight topics, four of each category."""
    topics = [f"t{i % 8}" for i in range(48)]
    trace = by_topic(topics, [("even", "odd")[int(t[1]) % 2] for t in topics])
    return call.signatures(trace, prompts_of(trace, lambda i: f"{topics[i]} again", topics))


def test_a_topic_is_not_met_in_training(topical: StudyResult) -> None:
    assert accuracy(topical, "signature") == 1
    assert accuracy(topical, "signature", "by topic") < 0.8


def test_words_are_judged_in_the_folds_of_the_signature(topical: StudyResult) -> None:
    assert accuracy(topical, "bag of words") == 1
    assert accuracy(topical, "bag of words", "by topic") < 0.8


@pytest.fixture(scope="module")
def mixed() -> StudyResult:
    """Two topics that hold both categories, one of them mostly: routing by topic looks like routing by category."""
    topics = ["t0"] * 20 + ["t1"] * 20
    categories = ["a"] * 18 + ["b"] * 2 + ["b"] * 18 + ["a"] * 2
    return call.signatures(by_topic(topics, categories), n_label_permutations=99)


@pytest.mark.parametrize(
    ("table", "column"),
    [("similarity", "p"), ("routing_layers", "p_family"), ("routing_accuracy", "p")],
)
def test_labels_are_permuted_within_a_topic(mixed: StudyResult, table: str, column: str) -> None:
    assert accuracy(mixed, "signature") > 0.8
    assert mixed.tables[table][column].dropna().iloc[0] > 0.06


def test_no_expert_is_of_a_category_by_its_topic(mixed: StudyResult) -> None:
    assert mixed.tables["experts"]["p_family"].min() > 0.06


def test_the_shuffled_labels_of_the_null_table_stay_in_their_topic(mixed: StudyResult) -> None:
    assert null(mixed, "labels permuted")["p"] > 0.06


def test_an_untrained_twin_does_not_route_by_what_training_planted() -> None:
    """Every word occurs once; its vector says the category, which the trained router reads."""
    rng = np.random.default_rng(0)
    words, prompts = {}, []
    for i in range(16):
        mine = [f"w{i}x{j}" for j in range(16)]
        for word in mine:
            words[word] = np.concatenate([[1.0, 3.0 * (i % 2) - 1.5], rng.normal(size=14)])
        prompts.append(Prompt(f"p{i}", " ".join(mine), ("a", "b")[i % 2]))
    gates = rng.normal(size=(8, 16))
    gates[:, 1] = np.repeat([-4.0, 4.0], 4)
    result = call.signatures(prompts=prompts, model=expert_model(words, gates, np.zeros((8, 16)), top_k=2), twin=True)
    assert null(result, "measured routing")["d"] > 2
    assert null(result, "random model")["d"] < 0.7
    experts = next(c for c in result.claims if c.statement.startswith("Experts are specialised"))
    assert (experts.outcome, experts.explanation) == ("holds", "none found")
    assert experts.control is not None
    assert experts.control.value == "0 of 8 experts"


def test_categories_that_fill_topics_unevenly_are_not_told_by_them() -> None:
    """Topics of two kinds, each routed by its kind; one kind has five prompts of a to one of b, the other the reverse."""
    topics = [f"t{i}" for i in range(8) for _ in range(6)]
    categories = [("a" if j < 5 else "b") if i % 2 else ("b" if j < 5 else "a") for i in range(8) for j in range(6)]
    trace = by_topic([("even", "odd")[int(t[1]) % 2] for t in topics], categories)
    named = [replace(s, group=f"{t}/") for s, t in zip(trace.sequences, topics, strict=True)]
    result = call.signatures(replace(trace, sequences=tuple(named)))
    first = result.tables["similarity"].iloc[0]
    assert first["d_pairs"] > 0.5
    assert first["p"] > 0.06
    assert result.tables["experts"]["p_family"].min() > 0.06


def test_pairs_of_one_template_do_not_count() -> None:
    """Two categories, each in four templates of its own, routed by the template."""
    names = [f"{c}{t}" for c in "ab" for t in range(4)]
    trace = by_topic([n for n in names for _ in range(5)], [n[0] for n in names for _ in range(5)])
    named = [replace(s, group=f"/{(s.group or '')[:-1]}") for s in trace.sequences]
    first = call.signatures(replace(trace, sequences=tuple(named))).tables["similarity"].iloc[0]
    assert first["d_pairs"] > 0.5
    assert abs(first["d"]) < 0.5


def test_a_cue_is_chosen_in_the_training_folds() -> None:
    """Forty words that say nothing, of which the best in hindsight would be some points above guessing."""
    trace = random_trace(40, tokens=6, categories=CATEGORIES[:2])
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{j}" for j in range(40) if rng.random() < 0.5) for _ in trace.sequences]
    found = call.signatures(trace, prompts_of(trace, lambda i: texts[i])).tables["routing_accuracy"]
    cues = found.query("kind == 'cue' and split == 'stratified'")["accuracy"]
    chosen = found.query("features == 'chosen cue' and split == 'stratified'")["balanced"].iloc[0]
    assert chosen < cues.max() - 0.02


def test_what_a_signature_adds_is_seen_beside_a_cue() -> None:
    """Words and experts each tell four prompts in five, by lots of their own: both together tell more."""
    rng = np.random.default_rng(1)
    trace = random_trace(50, tokens=30, planted=PLANTED, strength=0.3, categories=CATEGORIES[:2])
    y = np.arange(len(trace.sequences)) % 2
    words = np.where(rng.random(len(y)) < 0.8, y, 1 - y)
    found = call.signatures(trace, prompts_of(trace, lambda i: ("left", "right")[words[i]])).tables["routing_accuracy"]
    both = found.query("kind == 'conditional'").set_index("features")["balanced"]
    assert both["chosen cue and signature"] > both["chosen cue"] + 0.03


def test_a_shuffle_takes_any_order_as_often() -> None:
    """Of three rows of one run, by the seed; the rows of another run stay apart."""
    orders: dict[tuple[int, ...], int] = {}
    for seed in np.random.default_rng(0).integers(2**62, size=6000).tolist():
        source = np.empty(5, np.int64)
        shuffled_rows(np.array([4, 0, 2, 1, 3]), np.array([0, 3, 5]), seed, source)
        assert set(source[[1, 3]].tolist()) == {1, 3}
        orders[tuple(source[[4, 0, 2]])] = orders.get(tuple(source[[4, 0, 2]]), 0) + 1
    assert len(orders) == 6
    assert all(abs(count - 1000) < 5 * np.sqrt(1000 * 5 / 6) for count in orders.values())
