"""Dense models read as mixtures of experts: groups that fire together, and traces that everything downstream can take."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moescope.capture.encode import encode
from moescope.errors import InputError
from moescope.models import load
from moescope.routing.dense import any_trace, balanced_groups, dense_trace, fit_dense_experts, is_dense
from moescope.routing.signatures import signatures_of
from moescope.studies.robustness.settings import RobustnessSettings
from moescope.studies.robustness.study import robustness
from moescope.studies.signatures.settings import SignatureSettings
from moescope.studies.signatures.study import signatures
from moescope.tasks.prompts import load_prompts
from moescope.types import Site
from tests.architectures import tiny_model
from tests.chat import chat_model

PROMPTS = load_prompts("routing-480", limit=16)


def test_neurons_that_fire_together_share_an_expert() -> None:
    """Five planted groups of eight neurons, each with a drive of its own; signs differ, magnitudes go together."""
    rng = np.random.default_rng(0)
    group = rng.permutation(np.repeat(np.arange(5), 8))
    drive = rng.gamma(0.5, size=(400, 5))
    x = drive[:, group] * rng.choice([-1, 1], size=(400, 40)) * rng.uniform(0.5, 20, size=40) + 0.05 * rng.normal(
        size=(400, 40)
    )
    found = balanced_groups(x, 5)
    assert np.bincount(found).tolist() == [8] * 5
    assert len({(a, b) for a, b in zip(group, found, strict=True)}) == 5  # the same partition under other names


@pytest.mark.parametrize(("neurons", "n"), [(48, 6), (50, 6), (7, 7)])
def test_groups_are_of_equal_size_to_one(neurons: int, n: int) -> None:
    x = np.random.default_rng(0).normal(size=(100, neurons)) ** 3
    sizes = np.bincount(balanced_groups(x, n), minlength=n)
    assert sizes.sum() == neurons
    assert sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "phi3"])
def test_a_dense_trace_is_a_routing_trace(name: str) -> None:
    model = tiny_model(name)
    trace = dense_trace(model, PROMPTS, n_experts=6, k=2)
    encoded = encode(model, [p.text for p in PROMPTS])
    assert trace.layers == tuple(range(model.n_layers))
    assert trace.ids.shape == (encoded.lengths.sum(), model.n_layers, 2)
    assert np.array_equal(trace.tokens, encoded.ids)
    assert [s.category for s in trace.sequences] == [p.category for p in PROMPTS]
    assert np.allclose(trace.weights.astype(float).sum(2), 1, atol=2e-3)
    assert (np.diff(trace.weights.astype(float), axis=2) <= 0).all()  # the most active first
    assert (trace.ids[..., 0] != trace.ids[..., 1]).all()
    values = signatures_of(trace).values
    assert np.allclose(values.sum(2), 1)


def test_the_chosen_are_the_most_active_for_what_they_usually_are() -> None:
    model = tiny_model("llama")
    experts = fit_dense_experts(model, [p.text for p in PROMPTS], n_experts=6, k=2, tokens=10**6)
    site = Site("mlp_act", 1)
    seen: list[torch.Tensor] = []
    handle = model.tap_point(site).attach(lambda x: seen.append(x.clone()))
    encoded = encode(model, [p.text for p in PROMPTS])
    with torch.no_grad():
        for row in range(len(encoded)):
            model.body(torch.from_numpy(encoded[row].astype(np.int64))[None])
    handle.remove()
    x = torch.cat([s[0] for s in seen]).numpy()
    size = np.stack([np.linalg.norm(x[:, experts.group[site] == e], axis=1) for e in range(6)], axis=1)
    usual = np.sqrt((size**2).mean(0))
    assert np.allclose(experts.usual[site], usual, rtol=5e-3)  # fitted in half precision
    trace = dense_trace(model, PROMPTS, experts=experts)
    expected = np.argsort(-size / experts.usual[site], axis=1, kind="stable")[:, :2]
    assert (np.sort(trace.ids[:, 1], axis=1) == np.sort(expected, axis=1)).all(1).mean() > 0.999


def test_counts_are_those_of_the_trace_and_padding_is_none_of_them() -> None:
    model = tiny_model("llama")
    texts = [p.text for p in PROMPTS]
    experts = fit_dense_experts(model, texts, n_experts=6, k=2)
    encoded = encode(model, texts)
    counts = experts.counts(model, encoded)
    assert np.array_equal(counts, dense_trace(model, PROMPTS, experts=experts).counts())
    assert np.array_equal(counts, experts.counts(model, encoded, batch_tokens=1))
    assert counts.sum() == 2 * model.n_layers * encoded.lengths.sum()


def test_kinds_are_told_apart() -> None:
    moe, dense = tiny_model("olmoe"), tiny_model("llama")
    assert is_dense(dense)
    assert not is_dense(moe)
    assert any_trace(moe, PROMPTS[:2]).n_experts == (6, 6, 6)
    assert any_trace(dense, PROMPTS, n_experts=5, k=1).n_experts == (5,) * 4
    with pytest.raises(InputError, match="no dense MLP"):
        fit_dense_experts(moe, ["text"])
    with pytest.raises(InputError, match="mlp_act:0 has 48 neurons, fewer than 64 experts"):
        fit_dense_experts(dense, ["text"], n_experts=64)
    with pytest.raises(InputError, match="6 of 6 experts a token"):
        fit_dense_experts(dense, ["text"], n_experts=6, k=6)


def test_the_signatures_study_reads_a_dense_model_where_it_is_told_to() -> None:
    model = tiny_model("llama")
    options = {"new_tokens": 0, "n_permutations": 99, "n_label_permutations": 0, "n_nulls": 2, "cards": 1}
    result = signatures(model, "routing-80", SignatureSettings(dense_experts=8, **options))
    assert result.kind == "signatures"
    assert result.table("routing_layers")["layer"].nunique() == model.n_layers
    with pytest.raises(InputError, match=r"tiny-llama is dense.*dense_experts=16.*moescope circuits"):
        signatures(model, "routing-80", SignatureSettings(**options))


def test_one_monitor_serves_both_kinds() -> None:
    """The embedded dense model tells the categories of prompts on topics it was not fitted on."""
    model, prompts = load("dense-tiny"), load_prompts("routing-80")
    settings = RobustnessSettings(perturbations=("identity",), precision=False, batches=False, attacked=0)
    result = robustness(model, prompts, settings)
    row = result.table("changes").iloc[0]
    assert row["accuracy_before"] > 0.7
    assert row["flips"] == 0


def test_a_chat_template_is_in_no_prompts_trace() -> None:
    """It is the same in every prompt; the tokens that are left are those of the bare texts."""
    bare = tiny_model("llama")
    model = chat_model(bare)
    model = model.read_as(chat=True)
    trace = dense_trace(model, PROMPTS, n_experts=6, k=2)
    texts = [p.text for p in PROMPTS]
    assert np.array_equal(trace.lengths, encode(bare, texts, special_tokens="none").lengths)
    assert np.array_equal(trace.tokens, encode(bare, texts, special_tokens="none").ids)
    assert trace.position.max() == trace.lengths.max() - 1
    experts = fit_dense_experts(model, texts, n_experts=6, k=2)
    assert np.array_equal(experts.counts(model, encode(model, texts)), dense_trace(model, PROMPTS, experts=experts).counts())


def test_nothing_is_said_to_be_routed_in_a_dense_model() -> None:
    settings = SignatureSettings(dense_experts=8, n_permutations=99, n_label_permutations=0, n_nulls=2, cards=1, twin=False)
    result = signatures(chat_model(tiny_model("llama")), "routing-80", settings)
    assert "Neuron-group" in result.meta["title"]
    assert any("a dense model routes nothing" in note and "one of 8 groups" in note for note in result.meta["notes"])
    assert not any("a mean over tokens" in note or "what was generated" in note for note in result.meta["notes"])
    statements = [claim.statement for claim in result.claims]
    assert not any(word in text for text in statements for word in ("rout", "xpert", "The load"))
    assert any(text.startswith("Prompts of one category activate neurons more alike") for text in statements)
    assert any(text.startswith("Groups of neurons are specialised") for text in statements)
