"""Neurons that few bits choose, read as routing: what a sparse model does, and what its signatures say where that is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import moescope
from moescope.errors import InputError
from moescope.models import LoadedModel, load
from moescope.models.sparse import sparse_mlps
from moescope.routing.chosen import choice_of, chosen_trace
from moescope.routing.signatures import signatures_of
from moescope.study.result import StudyResult
from moescope.tasks import Prompt, load_prompts
from moescope.types import Claim
from tests.architectures import tiny_model
from tests.chat import chat_model
from tests.made_sparse import CLUSTERS, EACH, WORDS, table_model

PROMPTS = load_prompts("routing-480", limit=12)
FAST: dict[str, Any] = {"n_permutations": 199, "n_label_permutations": 0, "n_nulls": 5, "new_tokens": 0, "cards": 1}


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model as `moescope sparsify` writes it, layers with different numbers of neurons."""
    folder = tmp_path_factory.mktemp("sparse") / "out"
    small = moescope.SparsifySettings(
        share=0.3, choose=4, bits=6, shares=(0.3,), rivals=("oracle",), window=64, calibration_tokens=2048, heldout_tokens=1024,
        budgets="greedy", speed=False,
    )  # fmt: skip
    moescope.sparsify("dense-tiny", settings=small, run=moescope.Run(out=folder))
    return folder


def test_a_sparse_models_trace_is_what_it_does(sparse: Path) -> None:
    """Prompt by prompt, as the model runs: the neurons that its MLPs let write."""
    model = load(str(sparse))
    choice = choice_of(model)
    assert choice is not None
    mlps = sparse_mlps(model.module)
    assert choice.neurons == tuple(mlp.neurons for mlp in mlps)
    assert (choice.choose, choice.bits) == (4, 6)
    trace = chosen_trace(model, PROMPTS, choice)
    assert trace.n_experts == (640,) * 6
    seen: list[torch.Tensor] = []

    def watched(mlp: Any, x: torch.Tensor) -> torch.Tensor:
        hidden: list[torch.Tensor] = []
        handle = mlp.down_proj.register_forward_pre_hook(lambda _, args: hidden.append(args[0]))
        found = own(mlp, x)
        handle.remove()
        seen.append(hidden[0] != 0)
        return found

    own = mlps[0].execute
    for mlp in mlps:
        mlp.execute = watched
    ids = model.tokenizer(PROMPTS[3].text)["input_ids"]
    with torch.no_grad():
        model.body(torch.tensor([ids]))
    part = trace.select([3])
    assert part.tokens is not None
    assert part.tokens.tolist() == ids
    for place, wrote in enumerate(seen):
        chosen = np.zeros((len(ids), 641), bool)
        np.put_along_axis(chosen, np.minimum(part.ids[:, place].astype(int), 640), True, axis=1)
        assert np.array_equal(chosen[:, :640], wrote.numpy())


def test_a_dense_models_choice_is_by_the_first_bits_and_alters_nothing() -> None:
    model = tiny_model("llama")
    choice = choice_of(model, 0.25)
    assert choice is not None
    assert choice.neurons == (12,) * model.n_layers
    whole = chosen_trace(model, PROMPTS, choice)
    assert whole.ids.shape == (len(whole), model.n_layers, 12)
    assert (np.diff(whole.ids.astype(int), axis=2) > 0).all()
    alone = chosen_trace(model, PROMPTS, choice, batch_tokens=1)
    assert (whole.ids == alone.ids).mean() > 0.999
    assert np.allclose(signatures_of(whole).values.sum(2), 1)


def test_a_chat_template_is_in_no_prompts_trace() -> None:
    model = chat_model(tiny_model("llama")).read_as(chat=True)
    choice = choice_of(model, 0.25)
    assert choice is not None
    trace = chosen_trace(model, PROMPTS, choice)
    assert trace.tokens is not None
    assert trace.lengths.tolist() == [len(model.tokenizer(p.text, add_special_tokens=False)["input_ids"]) for p in PROMPTS]


def test_what_chooses_itself_is_not_given_a_share(sparse: Path) -> None:
    settings = moescope.SignatureSettings(neuron_share=0.5, **FAST)
    for model, words in ((str(sparse), "chooses its neurons itself"), ("moe-tiny", "routes to experts itself")):
        with pytest.raises(InputError, match=f"neuron_share.*{words}"):
            moescope.signatures(model, PROMPTS, settings)
    with pytest.raises(InputError, match=r"neuron_share: .*neuron by neuron"):
        moescope.SignatureSettings(neuron_share=0.5, dense_experts=8)
    with pytest.raises(InputError, match="neuron_share: must be above 0 and below 1, got 0"):
        moescope.SignatureSettings(neuron_share=0.0)
    assert choice_of(load("moe-tiny")) is None
    assert choice_of(tiny_model("llama")) is None


def test_what_a_sparse_models_choice_means_is_told_by_its_own_numbers(sparse: Path) -> None:
    settings = moescope.ChoiceSettings(k=20, tokens=64, neurons=64, groups=4)
    result = moescope.choice(str(sparse), "sentiment=uci-sentiment", settings, run=moescope.Run(limit=40))
    assert result.meta["neurons"] == [mlp.neurons for mlp in sparse_mlps(load(str(sparse)).module)]
    assert result.meta["bits"] == [4, 6]
    assert len(result.table("together")) == 6
    assert not any("while all run" in note for note in result.meta["notes"])


# What signatures of a choice say


def claim(result: StudyResult, start: str) -> Claim:
    return next(c for c in result.claims if c.statement.startswith(start))


def study(model: LoadedModel, prompts: list[Prompt], **options: Any) -> StudyResult:
    settings = moescope.SignatureSettings(**(FAST | {"neuron_share": 1 / CLUSTERS, "twin": False} | options))
    return moescope.signatures(model, prompts, settings)


def made(categories: list[str], words: Any, topics: int = 4) -> list[Prompt]:
    """Prompts of twelve words each, ``words`` (category) those that it draws from; templates and topics say nothing."""
    rng = np.random.default_rng(0)
    return [
        Prompt(f"{c}-{i}", " ".join(f"w{w}" for w in rng.choice(words(c), 12)), c, f"t{i % topics}", f"s{i % 12}")
        for i in range(60)
        for c in categories
    ]


@pytest.fixture(scope="module")
def by_words() -> StudyResult:
    """A word wakes its own cluster of neurons, and each category has its own clusters' words: token identity tells all."""
    halves = {"even": np.arange(0, WORDS, 2), "odd": np.arange(1, WORDS, 2)}
    return study(table_model(sparse=True), made(["even", "odd"], lambda c: halves[c]))


def test_the_choice_names_what_its_neurons_wake_for(by_words: StudyResult) -> None:
    found = claim(by_words, "Prompts of one category have neurons chosen more alike")
    assert (found.outcome, found.explanation) == ("holds", "trivial cue")
    assert "token identity" in found.words
    assert claim(by_words, "The signature tells the category of held-out prompts").measured == 1
    assert claim(by_words, "Which neurons are chosen follows the category beyond").explanation == "trivial cue"
    table = by_words.table("experts")
    told = table[table["p_family"] <= 0.05]
    assert len(told) > 0.9 * CLUSTERS * EACH  # every cluster wakes for one category alone
    assert ((told["expert"] % 2 == 0) == (told["category"] == "even")).mean() > 0.99
    assert by_words.meta["title"] == "Neuron-choice signatures of table"
    statements = [c.statement for c in by_words.claims]
    assert not any(word in text for text in statements for word in ("rout", "xpert", "The load"))
    assert not any("xpert" in f"{c.words} {c.control}" for c in by_words.claims)


def test_the_choice_stands_beside_the_residual_stream(by_words: StudyResult) -> None:
    """Both tell every prompt here."""
    found = claim(by_words, "The signature tells the category as well as the residual stream")
    assert found.outcome == "holds"
    assert found.control is not None
    assert found.control.value == 1
    rows = by_words.table("routing_accuracy").query("kind == 'probe'")
    assert set(rows["split"]) == {"stratified", "by topic", "by template"}


def test_a_choice_that_is_the_same_whatever_the_category_names_nothing() -> None:
    """Both categories draw from the same words: neither the choice nor the stream, whose claim is then not judged."""
    result = study(table_model(sparse=True), made(["even", "odd"], lambda _: np.arange(WORDS)))
    found = claim(result, "Prompts of one category have neurons chosen more alike")
    assert found.outcome in ("contradicted", "inconclusive")
    assert claim(result, "The signature tells the category of held-out prompts").outcome in ("contradicted", "inconclusive")
    assert claim(result, "The signature tells the category as well").outcome == "inconclusive"
    assert "not told apart from chance" in claim(result, "The signature tells the category as well").words
    assert (result.table("experts")["p_family"] > 0.05).all()


def test_what_the_stream_holds_beyond_the_choice_is_seen() -> None:
    """Words of a cluster choose the same neurons, and the stream tells them apart by their vectors."""
    inside = np.array([w for w in range(WORDS) if w % CLUSTERS < 2])  # of two clusters, as many of either in each category
    halves = {c: inside[inside // CLUSTERS % 2 == i] for i, c in enumerate(("even", "odd"))}
    model = table_model(sparse=True)
    result = study(model, made(["even", "odd"], lambda c: halves[c]))
    found = claim(result, "The signature tells the category as well as the residual stream")
    assert found.outcome == "contradicted"
    assert found.control is not None
    assert found.control.value == 1


def test_a_sparse_model_is_read_by_its_own_choice(sparse: Path) -> None:
    prompts = load_prompts("routing-80", limit=24)
    result = moescope.signatures(str(sparse), prompts, moescope.SignatureSettings(**FAST | {"n_nulls": 2}))
    assert "Neuron-choice" in result.meta["title"]
    neurons = result.meta["trace"]["neurons"]
    assert neurons == [mlp.neurons for mlp in sparse_mlps(load(str(sparse)).module)]
    assert len(set(neurons)) > 1
    assert any(f"{min(neurons)} to {max(neurons)} of 640 in each layer" in note for note in result.meta["notes"])
    nulls = result.table("routing_nulls").set_index("null")
    # an untrained model tells less apart, by the same number of neurons
    assert nulls.loc["random model", "d"] < nulls.loc["random model", "measured_d"]
