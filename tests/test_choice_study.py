"""What a choice of neurons means: which are chosen together and which are a task's own, where that is planted and where not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import moescope
from moescope.errors import InputError
from moescope.models import LoadedModel
from moescope.routing.together import trade
from moescope.routing.trace import RoutingTrace, TracedSequence
from moescope.studies.choice.claims import together_claims
from moescope.studies.choice.overlap import Chosen, overlap_of
from moescope.studies.choice.settings import ChoiceSettings
from moescope.studies.choice.together import together_table
from moescope.study.protocol import Context
from moescope.study.result import StudyResult
from moescope.study.run import Run
from moescope.study.verdicts import verdicts
from moescope.types import Claim
from tests.made_sparse import CLUSTERS, EACH, INNER, WORDS, table_model
from tests.wiring.planted import task

PAIRS, GROUPS = "Neurons that are chosen together", "Groups of neurons found"


def claim(claims: Any, start: str) -> Claim:
    return next(c for c in claims if c.statement.startswith(start))


# Chosen together, on made choices


def test_choices_dealt_out_anew_keep_both_numbers_and_take_every_form() -> None:
    rng = np.random.default_rng(0)
    table = (rng.random((40, 30)) < rng.uniform(0.1, 0.9, 30)).astype(np.uint8)
    labels = np.arange(40) // 8
    for strata in (None, labels):
        dealt = table.copy()
        trade(dealt, strata, 1)
        assert not np.array_equal(dealt, table)
        assert np.array_equal(dealt.sum(1), table.sum(1))
        for part in [slice(None)] if strata is None else [labels == one for one in range(5)]:
            assert np.array_equal(dealt[part].sum(0), table[part].sum(0))
    # three rows of one choice each of three: six tables, as often as each other
    seen: dict[bytes, int] = {}
    for seed in rng.integers(2**62, size=3000).tolist():
        small = np.eye(3, dtype=np.uint8)
        trade(small, None, seed)
        seen[small.tobytes()] = seen.get(small.tobytes(), 0) + 1
    assert len(seen) == 6
    assert min(seen.values()) > 400


def made_trace(score: Any, *, texts: int = 40, each: int = 20, n: int = 64, k: int = 16, words: int = 30) -> RoutingTrace:
    """Tokens that choose the k neurons of largest ``score(rng, word, text)``, (n,)."""
    rng = np.random.default_rng(0)
    word = rng.integers(words, size=texts * each)
    ids = [np.sort(np.argsort(-score(rng, w, i // each))[:k]) for i, w in enumerate(word)]
    return RoutingTrace(
        layers=(0,),
        n_experts=(n,),
        ids=np.array(ids, np.uint8)[:, None],
        weights=None,
        sequence=np.repeat(np.arange(texts), each).astype(np.int32),
        position=np.tile(np.arange(each), texts).astype(np.int32),
        generated=np.zeros(texts * each, bool),
        tokens=word.astype(np.int32),
        sequences=tuple(TracedSequence(f"t{i}") for i in range(texts)),
    )


POPULAR = np.random.default_rng(9).gumbel(size=64)
BY_WORD = np.random.default_rng(8).gumbel(size=(30, 64))
FAMILY = np.arange(64) % 8


def halvings(trace: RoutingTrace) -> list[np.ndarray]:
    n = len(trace.sequences)
    return [np.random.default_rng(seed).permutation(n) < n // 2 for seed in range(4)]


def seen_together(score: Any) -> list[Claim]:
    trace = made_trace(score)
    settings = ChoiceSettings(tokens=400, groups=8)
    _, evidence = together_table(trace, halvings(trace), settings, Context("choice", settings, Run()))
    return verdicts(together_claims(evidence, settings))


def test_neurons_that_go_together_whatever_the_word_are_found() -> None:
    found = seen_together(lambda rng, word, text: POPULAR + rng.gumbel(size=8)[FAMILY] * 2 + rng.gumbel(size=64))
    for start in (PAIRS, GROUPS):
        assert (claim(found, start).outcome, claim(found, start).explanation) == ("holds", "none found")
        assert claim(found, start).measured > 0.3
    assert abs(claim(found, GROUPS).control.value) < 0.02  # type: ignore[union-attr]


def test_rates_alone_make_nothing_go_together() -> None:
    """Neurons of very different rates, each chosen by lots of its own."""
    found = seen_together(lambda rng, word, text: 2 * POPULAR + rng.gumbel(size=64))
    for start in (PAIRS, GROUPS):
        assert claim(found, start).outcome in ("contradicted", "inconclusive")
    assert claim(found, GROUPS).outcome == "contradicted"


def test_what_equal_words_choose_is_explained_by_the_word() -> None:
    found = seen_together(lambda rng, word, text: BY_WORD[word] * 2 + rng.gumbel(size=64))
    for start in (PAIRS, GROUPS):
        assert (claim(found, start).outcome, claim(found, start).explanation) == ("holds", "trivial cue")
        assert "token identity" in claim(found, start).words


def test_where_no_word_recurs_that_control_is_said_not_to_have_run() -> None:
    trace = made_trace(lambda rng, word, text: rng.gumbel(size=8)[FAMILY] * 2 + rng.gumbel(size=64))
    object.__setattr__(trace, "tokens", np.arange(len(trace), dtype=np.int32))
    settings = ChoiceSettings(tokens=200, groups=8)
    _, evidence = together_table(trace, halvings(trace), settings, Context("choice", settings, Run()))
    found = claim(verdicts(together_claims(evidence, settings)), PAIRS)
    assert "not run: token identity" in found.words
    assert found.explanation is None


# A task's circuit, on models whose neurons are written down


def texts_of(words: Any, n: int = 60) -> tuple[list[str], list[int]]:
    rng = np.random.default_rng(3)
    return [" ".join(f"w{w}" for w in rng.choice(words(i % 2), 12)) for i in range(n)], [i % 2 for i in range(n)]


def study(model: LoadedModel, words: Any, **options: Any) -> StudyResult:
    settings: dict[str, Any] = {"neuron_share": 1 / CLUSTERS, "k": EACH, "tokens": 128, "neurons": 64, "groups": 4}
    return moescope.choice(model, task(*texts_of(words)), ChoiceSettings(**(settings | options)))


@pytest.fixture(scope="module")
def planted() -> StudyResult:
    """Words of class 0 are of clusters 0 and 2 to 7, those of class 1 of 1 to 7: the neurons of clusters 0 and 1 tell them."""
    of = np.arange(WORDS) % CLUSTERS
    return study(table_model(sparse=True), lambda y: np.flatnonzero(of != 1 - y), k=2 * EACH)


def test_neurons_that_wake_for_a_class_are_its_circuit_and_are_chosen_for_it(planted: StudyResult) -> None:
    found = claim(planted.claims, "made: neurons of its circuit")
    assert (found.outcome, found.explanation) == ("holds", "none found")
    assert found.measured > 0.7
    table = planted.table("shared")
    assert set(table["neuron"] % CLUSTERS) <= {0, 1}
    told = table["most"].map({"zero": 0, "one": 1})
    assert (table["neuron"] % CLUSTERS == told).all()
    row = planted.table("circuits").iloc[0]
    assert row["layers"] == pytest.approx(2 / CLUSTERS, abs=0.05)
    assert row["permuted"] < 0.6
    assert planted.rows[0]["rows_by_fold"] == [30, 30]


def test_a_circuit_that_is_always_chosen_is_not_in_the_choice() -> None:
    """Two dozen neurons write as much on every word, with its class's sign; the choice of the others says nothing of it."""
    model = table_model(sparse=True)
    body: Any = model.body
    mlp = body.layers[0].mlp
    embedding: Any = model.module.get_input_embeddings()
    with torch.no_grad():
        embedding.weight[2:, 31] = torch.where(torch.arange(WORDS) // CLUSTERS % 2 == 0, 3.0, -3.0)
        mlp.gate_proj.weight[:, 31] = 0
        mlp.up_proj.weight[:, 31] = 0
        mlp.gate_proj.weight[:EACH] = 0
        mlp.gate_proj.weight[:EACH, :CLUSTERS] = 3.0  # every word is of a cluster
        mlp.up_proj.weight[:EACH] = 0
        mlp.up_proj.weight[:EACH, 31] = 8.0
    halves = [np.flatnonzero(np.arange(WORDS) // CLUSTERS % 2 == y) for y in (0, 1)]
    result = study(model, lambda y: halves[y], neuron_share=2 / CLUSTERS)
    found = claim(result.claims, "made: neurons of its circuit")
    assert found.outcome == "contradicted"
    assert found.measured < 0.1
    assert result.table("circuits")["circuit"].iloc[0] > 0.9  # the circuit itself is there


def test_classes_that_say_nothing_have_no_circuit_in_the_choice() -> None:
    result = study(table_model(sparse=True), lambda _: np.arange(WORDS))
    found = claim(result.claims, "made: neurons of its circuit")
    assert found.outcome in ("contradicted", "inconclusive")


def chosen(rates: np.ndarray, values: np.ndarray, y: np.ndarray) -> Chosen:
    """Neurons of two layers, as many in each."""
    seconds = [np.random.default_rng(seed).permutation(len(y)) < len(y) // 2 for seed in range(4)]
    layer = np.repeat([0, 1], rates.shape[1] // 2)
    return Chosen("made", ("zero", "one"), y, np.arange(len(y)), seconds, rates, values, layer)


def test_circuit_and_choice_are_ranked_on_texts_apart() -> None:
    """Noise is as good a circuit as any on the texts that it was ranked on."""
    noise = np.random.default_rng(0).normal(size=(40, 400)).astype(np.float32)
    found, _ = overlap_of(chosen(noise, noise, np.arange(40) % 2), ChoiceSettings(k=40), 0)
    assert found.layers.value < 0.25
    assert found.layers.null == pytest.approx(0.1, abs=0.03)


def test_random_neurons_are_of_the_circuits_layers_and_chosen_as_often() -> None:
    """Ten neurons of the first layer's hundred are the circuit, the choice, and those that are chosen most often."""
    rng, y = np.random.default_rng(0), np.arange(60) % 2
    values = rng.normal(size=(60, 200)).astype(np.float32)
    values[:, :10] += 5 * y[:, None]
    rates = values + np.where(np.arange(200) < 10, 10, 0).astype(np.float32)
    found, shared = overlap_of(chosen(rates, values, y), ChoiceSettings(k=10), 0)
    assert found.layers.value == found.reach == 1
    assert found.layers.null == pytest.approx(0.1)
    assert found.layers.draws.mean() == pytest.approx(0.1, abs=0.01)
    assert found.often.null == pytest.approx(1)
    assert {(row["layer"], row["neuron"], row["most"]) for row in shared} == {(0, i, "one") for i in range(10)}


def test_what_chooses_no_neurons_is_refused_in_one_line() -> None:
    made = task(*texts_of(lambda _: np.arange(WORDS)))
    with pytest.raises(InputError, match=r"neuron_share: table chooses no neurons; give 0.25"):
        moescope.choice(table_model(sparse=True), made)
    with pytest.raises(InputError, match="model: moe-tiny routes to experts"):
        moescope.choice("moe-tiny", made)
    with pytest.raises(InputError, match=f"k: must be at most {INNER // 2}, half of a layer's neurons, got {INNER}"):
        study(table_model(sparse=True), lambda _: np.arange(WORDS), k=INNER)
    with pytest.raises(InputError, match=r"n_draws: 39 draws cannot show anything at 0.05 for 2 claims"):
        ChoiceSettings(n_draws=39)


def test_a_choice_saves_with_its_figures(planted: StudyResult, tmp_path: Any) -> None:
    assert set(planted.figures) == {"together", "circuits"}
    assert moescope.load(planted.save(tmp_path / "out")) == planted
