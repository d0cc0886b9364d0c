"""A planted cause is found to be one, what is not a cause is not, and the fast paths give what the slow ones give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from moescope.capture import activations, encode
from moescope.errors import InputError
from moescope.intervene import intervene, replicas
from moescope.intervene.leace import Whitening
from moescope.intervene.neuron_sets import NeuronSets
from moescope.intervene.replicas import Replicas
from moescope.intervene.running_text import RunningText, loss_readout, plain_windows
from moescope.intervene.together import run_together
from moescope.models import LoadedModel
from moescope.studies.circuits.causal import DESCRIBED, NeuronAblation
from moescope.studies.circuits.causal_targets import Probe, answer_tokens, task_readout
from moescope.studies.circuits.erasure import ClassErasure, Erasures
from moescope.studies.circuits.settings import CircuitSettings
from moescope.studies.circuits.study import circuits
from moescope.studies.circuits.trial import Trial, prepare_trial
from moescope.tasks import split_half
from moescope.types import Example, Neuron, Site, Task
from tests.architectures import SETTINGS, tiny_model
from tests.planted_llama import CARRIER, COORDINATE, planted_llama, planted_task

OTHERS = [Neuron(Site("resid", layer), index) for layer, index in ((1, 3), (2, 20), (0, 7), (3, 1))]
RANKING = [Neuron(CARRIER, COORDINATE), *OTHERS]


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return planted_llama()


@pytest.fixture(scope="module")
def task() -> Task:
    return planted_task()


def row(frame: pd.DataFrame, target: str, k: int) -> pd.Series:
    return frame[(frame.target == target) & (frame.k == k)].iloc[0]


def stream(model: LoadedModel) -> list[Site]:
    return [Site("resid", layer) for layer in range(model.n_layers)]


def trial_of(
    model: LoadedModel, task: Task, sites: Sequence[Site], selection: np.ndarray | None = None, seed: int = 0
) -> Trial:
    """A task halved as the study halves it, with what is known of the untouched model at the final token."""
    if selection is None:
        selection = split_half(np.array([e.label for e in task.examples]), np.array([e.group for e in task.examples]), seed)
    encoded = encode(model, [e.text for e in task.examples])
    wanted = dict.fromkeys([*sites, Site("resid", model.n_layers - 1)])
    final = {site: activations(model, encoded, [site])[:, 0] for site in wanted}
    return prepare_trial(model, task, encoded, final, selection)


def ablate(
    model: LoadedModel,
    task: Task,
    ranking: Sequence[Neuron],
    *,
    ks: Sequence[int],
    mode: str = "mean",
    n_random: int = 100,
    text: Sequence[str] | None = None,
    selection: np.ndarray | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """A circuit that is known, of the first of ``ks``, and beside it of the other sizes."""
    trial = trial_of(model, task, [*(neuron.site for neuron in ranking), *stream(model)], selection, seed)
    found = NeuronAblation(
        model,
        trial,
        ranking,
        k=ks[0],
        further=ks[1:],
        mode=mode,
        n_random=n_random,
        seed=seed,  # type: ignore[arg-type]
    )
    replicas = trial.replicas()
    scores, direction = run_together(replicas, [found.sets, found.direction], trial.readout)
    loss = None
    if text is not None:
        running = RunningText(model, text, tokens=256)
        (loss,) = running.losses([found.on_text(running)])
    frame = found.table(scores, direction, loss)
    frame.attrs.update(one_token=replicas.one_token, late_start=replicas.late_start, shared_prefix=replicas.shared_prefix)
    return frame


@pytest.fixture(scope="module")
def study(model: LoadedModel, task: Task) -> pd.DataFrame:
    return ablate(model, task, RANKING, ks=(1, 3, 5), text=["w1 w2 w30 w7 w9"] * 40)


def test_ablating_the_planted_neuron_kills_the_answer_and_matched_sets_do_not(study: pd.DataFrame) -> None:
    for k in (1, 3, 5):
        accuracy, odds = row(study, "answer_accuracy", k), row(study, "answer_logodds", k)
        assert accuracy.baseline >= 0.95
        assert accuracy.baseline + accuracy.effect <= 0.7
        assert odds.effect < -1
        assert accuracy.random_low >= -0.1
        draws = 100 if k == 1 else DESCRIBED
        assert accuracy.p == odds.p == 2 / (1 + draws)
        assert row(study, "probe_accuracy", k).gap_low > 0
        assert 0.7 <= accuracy.norm_ratio <= 1.4
        assert accuracy.n_random == draws
    assert row(study, "wikitext_loss", 1).n_random == DESCRIBED
    assert row(study, "probe_accuracy", 0).effect < -0.2  # the direction of the planted neuron
    assert study[study.target == "wikitext_loss"].off_task.all()
    assert not study[study.target != "wikitext_loss"].off_task.any()
    assert study.attrs["one_token"]
    assert study.attrs["shared_prefix"]
    assert study.attrs["late_start"]


def test_neurons_that_carry_nothing_are_no_worse_than_random(model: LoadedModel, task: Task) -> None:
    frame = ablate(model, task, OTHERS, ks=(4, 1), n_random=50)
    others = frame[(frame.target != "probe_accuracy") & (frame.k > 0)]
    assert (others.p > 0.05).all()
    assert others.effect.abs().max() < 0.3


def test_patching_the_other_class_turns_the_answer_round(model: LoadedModel, task: Task, study: pd.DataFrame) -> None:
    frame = ablate(model, task, RANKING, ks=(1,), n_random=20, mode="patch")
    accuracy = row(frame, "answer_accuracy", 1)
    assert accuracy.baseline + accuracy.effect <= 0.05
    assert row(frame, "answer_logodds", 1).effect < 1.5 * row(study, "answer_logodds", 1).effect


@pytest.mark.parametrize("mode", ["mean", "zero", "resample", "patch"])
def test_the_study_agrees_with_a_loop_of_interventions(model: LoadedModel, task: Task, mode: str) -> None:
    """Brute force: each text alone, one hook, no cache; values taken from the definition of each mode."""
    selection = np.arange(len(task)) < 60
    frame = ablate(model, task, RANKING, ks=(3,), n_random=2, mode=mode, selection=selection)
    circuit = RANKING[:3]
    words = [model.tokenizer(e.text)["input_ids"] for e in task.examples]
    found: dict[Neuron, list[float]] = {n: [] for n in circuit}
    with torch.no_grad():
        for text in words[:60]:
            handles = [
                model.tap_point(n.site).attach(lambda x, n=n: found[n].append(float(x[0, -1, n.index]))) for n in circuit
            ]
            model.body(input_ids=torch.tensor([text]))
            for handle in handles:
                handle.remove()
    values = np.array([found[n] for n in circuit]).T  # (60, 3)
    labels = np.array([e.label for e in task.examples])
    means = np.stack([values[labels[:60] == c].mean(0) for c in (0, 1)])
    yes, no = answer_tokens(model, task)
    clean, ablated = [], []
    for text, label in zip(words[60:], labels[60:], strict=True):
        given = {"mean": values.mean(0), "zero": 0 * values[0], "patch": means[1 - label], "resample": values.mean(0)}[mode]
        with torch.no_grad():
            for scores, chosen in ((clean, []), (ablated, circuit)):
                with intervene(model, chosen, "patch", values=given[: len(chosen)], positions="final"):
                    logits = model.module(input_ids=torch.tensor([text])).logits[0, -1]
                scores.append(float(logits[yes] - logits[no]) * (1 - 2 * label))
    odds = row(frame, "answer_logodds", 3)
    assert odds.baseline == pytest.approx(np.mean(clean), abs=1e-4)
    if mode != "resample":  # random donors: only the size can be foretold
        assert odds.effect == pytest.approx(np.mean(ablated) - np.mean(clean), abs=1e-4)
    else:
        assert odds.effect < -1


def test_progress_ends_at_its_total(model: LoadedModel, task: Task) -> None:
    calls: list[tuple[int, int]] = []
    trial = trial_of(model, task, [CARRIER])
    found = NeuronAblation(model, trial, RANKING[:1], k=1, mode="mean", n_random=2)
    run_together(trial.replicas(), [found.sets], trial.readout, lambda done, total: calls.append((done, total)))
    assert len({total for _, total in calls}) == 1
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})
    assert calls[-1][0] == calls[-1][1]


def test_the_same_seed_gives_the_same_study(model: LoadedModel, task: Task) -> None:
    first = ablate(model, task, RANKING, ks=(2,), n_random=3, mode="resample", seed=1)
    again = ablate(model, task, RANKING, ks=(2,), n_random=3, mode="resample", seed=1)
    pd.testing.assert_frame_equal(first, again)


@pytest.mark.parametrize("family", sorted(SETTINGS))
def test_every_fast_path_equals_the_slow_one(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(family, head=True)
    rng = np.random.default_rng(0)
    ids = [rng.integers(5, 60, size=length) for length in (1, 2, 9, 9, 9, 17)]
    sites = [site for site in model.sites() if site.kind != "router"]
    sets: list[list[Neuron]] = [[]]
    for _ in range(39):
        chosen = rng.choice(len(sites), 4, replace=False)
        sets.append([Neuron(sites[i], int(rng.integers(model.width(sites[i])))) for i in chosen])
    values = {site: torch.from_numpy(rng.normal(size=(len(ids), model.width(site)))).float() for site in sites}
    probe = Probe(rng.normal(size=(2, model.d_model)), np.zeros(2))
    readout = task_readout(probe, np.zeros(len(ids), dtype=int), () if model.is_encoder else (7, 8))
    last = {"hidden": lambda reading: reading.hidden[..., 0]}

    def both(reading: replicas.Reading) -> dict[str, torch.Tensor]:
        return readout(reading) | {name: read(reading) for name, read in last.items()}

    fast = Replicas(model, ids, logits=None if model.is_encoder else "final", batch_tokens=64)
    assert fast.late_start == (family != "bloom")  # whose layers hand on a tuple
    assert fast.one_token != model.is_encoder
    if family in ("llama", "gpt2", "gpt_neox"):
        assert fast.shared_prefix
    quick = fast.run(NeuronSets(model, sets, values), both)
    slow = Replicas(model, ids, logits=None if model.is_encoder else "final", batch_tokens=64)
    slow.one_token = slow.late_start = False
    plain = slow.run(NeuronSets(model, sets, values), both)
    for name, scores in plain.items():
        assert np.abs(quick[name] - scores).max() <= 2e-5, name
        assert scores.shape == (40, 6)
        assert name.endswith("accuracy") or np.abs(scores - scores[:1]).max() > 1e-3
    assert fast.rows == slow.rows == 240


def test_collections_run_together_give_what_each_gives_alone(model: LoadedModel, task: Task) -> None:
    """Neurons and erasers in one batch, two of the sets the same; each intervention is run once."""
    ids = [np.asarray(model.tokenizer(e.text)["input_ids"]) for e in task.examples[:9]]
    rng = np.random.default_rng(0)
    sites = [Site("resid", 0), Site("resid", 2), Site("mlp_act", 1)]
    neurons = [Neuron(site, int(rng.integers(model.width(site)))) for site in sites]
    first = NeuronSets(
        model, [[], neurons, neurons[:1], neurons[::-1]], {s: torch.from_numpy(rng.normal(size=model.width(s))) for s in sites}
    )
    second = NeuronSets(model, [[], neurons], {s: torch.zeros(len(ids), model.width(s)) for s in sites})
    stream = rng.normal(size=(40, model.d_model))
    erasers = Erasures([None, *((Site("resid", layer), Whitening(stream).eraser(np.arange(40) % 2)) for layer in (0, 2))], 3)

    def readout(reading: replicas.Reading) -> dict[str, torch.Tensor]:
        return {"hidden": reading.hidden[..., 0]}

    collections = [first, second, erasers]
    together = Replicas(model, ids)
    found = run_together(together, collections, readout)
    assert together.rows == (1 + 2 + 1 + 2) * len(ids)
    for sets, scores in zip(collections, found, strict=True):
        alone = Replicas(model, ids).run(sets, readout)["hidden"]
        assert np.abs(scores["hidden"] - alone).max() <= 1e-5
        assert np.abs(alone - alone[:1]).max(1)[1:].min() > 1e-3


def test_a_cache_that_does_not_hold_what_it_should_is_not_used(
    model: LoadedModel, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [np.asarray(model.tokenizer(e.text)["input_ids"]) for e in task.examples[:4]]
    right = Replicas(model, ids).run(NeuronSets(model, [[]], {}), lambda r: {"h": r.hidden.sum(-1)})

    def forgetful(self: replicas._Cache) -> object:
        return replicas.DynamicCache(config=model.config)

    monkeypatch.setattr(replicas._Cache, "fresh", forgetful)
    wary = Replicas(model, ids)
    assert not wary.one_token
    assert np.allclose(wary.run(NeuronSets(model, [[]], {}), lambda r: {"h": r.hidden.sum(-1)})["h"], right["h"], atol=1e-5)


def test_an_encoder_is_judged_by_its_probe_alone(task: Task) -> None:
    model = tiny_model("bert", head=True)
    ranking = [Neuron(Site("resid", 1), 0), Neuron(Site("mlp_act", 2), 5)]
    frame = ablate(model, task, ranking, ks=(1, 2), n_random=10)
    assert set(frame.target) == {"probe_accuracy"}
    assert not frame.attrs["one_token"]


def test_wikitext_loss_is_the_models_own(model: LoadedModel) -> None:
    rng = np.random.default_rng(3)
    text = [" ".join(f"w{i}" for i in rng.integers(40, size=50)) for _ in range(6)]
    windows = plain_windows(model, text, tokens=256, length=64)
    assert [len(w) for w in windows] == [64] * 4
    neurons, value = [Neuron(CARRIER, COORDINATE), Neuron(Site("resid", 2), 4)], {CARRIER: 1.5, Site("resid", 2): -2.0}
    replacement = {site: torch.full((model.d_model,), v) for site, v in value.items()}
    many = Replicas(model, windows, positions="all", logits="all")
    losses = many.run(NeuronSets(model, [[], neurons], replacement), loss_readout)["wikitext_loss"]
    ids = torch.from_numpy(np.stack(windows)).long()
    with torch.no_grad():
        clean = model.module(input_ids=ids, labels=ids).loss
        with intervene(model, neurons, "mean", values=[1.5, -2.0]):
            ablated = model.module(input_ids=ids, labels=ids).loss
    assert losses.mean(1) == pytest.approx([float(clean), float(ablated)], abs=1e-5)
    assert abs(float(clean - ablated)) > 1e-3


def test_the_first_token_of_plain_text_is_spared(model: LoadedModel) -> None:
    windows = [np.arange(5, 21)]
    neurons = [Neuron(Site("embed", 0), i) for i in range(4)]
    seen: list[torch.Tensor] = []
    handle = model.tap_point(Site("resid", 0)).attach(lambda x: seen.append(x[0].clone()))
    spared = Replicas(model, windows, positions="all", logits="all", spare_first=True)
    spared.run(NeuronSets(model, [neurons], {Site("embed", 0): torch.full((model.d_model,), 9.0)}), loss_readout)
    handle.remove()
    clean, edited = seen[0], seen[-1]
    assert torch.allclose(clean[0], edited[0], atol=1e-6)
    assert (clean[1:] - edited[1:]).abs().amax(1).min() > 1


def test_erasing_the_class_at_a_layer_kills_probe_and_answer(model: LoadedModel, task: Task) -> None:
    trial = trial_of(model, task, [Site("resid", 0), Site("resid", 1)])
    erasure = ClassErasure(model, trial, (0, 1), n_random=20)
    (scores,) = run_together(trial.replicas(), [erasure.sets], trial.readout)
    frame = erasure.table(scores)
    assert list(frame.columns[:5]) == ["task", "layer", "target", "baseline", "effect"]
    assert set(frame.layer) == {0, 1}
    accuracy = frame[frame.target == "answer_accuracy"]
    assert (accuracy.baseline >= 0.95).all()
    assert (accuracy.baseline + accuracy.effect < 0.7).all()
    assert (accuracy.p == 2 / 21).all()
    assert (accuracy.random_low > -0.25).all()
    probe = frame[frame.target == "probe_accuracy"]
    assert (probe.p == 2 / 21).all()
    assert (probe.p_worst == 2 / 21).all()
    assert (probe.worst_mean <= probe.random_mean.min() + 1e-9).all()


def test_answers_are_told_apart_by_their_first_token(model: LoadedModel, task: Task) -> None:
    first = model.tokenizer.convert_tokens_to_ids("yes"), model.tokenizer.convert_tokens_to_ids("no")
    assert answer_tokens(model, task) == first
    assert answer_tokens(model, replace(task, answers=())) == ()
    with pytest.raises(InputError, match="first token"):
        answer_tokens(model, replace(task, answers=(" yes w1", " yes w2")))
    with pytest.raises(InputError, match="one per class"):
        answer_tokens(model, replace(task, answers=(" yes",)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"selection": np.ones(120, dtype=bool)}, "the other texts of planted have no"),
        ({"selection": np.arange(120) < 61}, "on both sides"),
        ({"selection": np.arange(120)}, "one bool per text"),
        ({"ranking": [Neuron(Site("resid", 8), 0)]}, "resid:8"),
        ({"text": ["w1"]}, "too few"),
    ],
)
def test_mistakes_are_named(model: LoadedModel, task: Task, change: dict[str, object], message: str) -> None:
    options: dict[str, object] = {"ranking": RANKING, "ks": (1,), "n_random": 2, **change}
    with pytest.raises(InputError, match=message):
        ablate(model, task, **options)  # type: ignore[arg-type]


def test_a_task_of_three_classes(model: LoadedModel) -> None:
    rng = np.random.default_rng(0)
    rows = [(f"w{rng.integers(40)} w{rng.integers(13) + 13 * c}", c, str(i)) for i in range(30) for c in range(3)]
    task = Task("three", tuple(Example(t, c, g) for t, c, g in rows), ("a", "b", "c"), source="made here")
    for mode in ("patch", "mean"):
        frame = ablate(model, task, OTHERS, ks=(2,), n_random=3, mode=mode)
        assert set(frame.target) == {"probe_accuracy"}
        assert 0.5 < frame.baseline.iloc[0] <= 1


def test_any_site_can_be_ablated(model: LoadedModel, task: Task) -> None:
    """Erasure reads the residual stream after every layer, whatever the circuit's sites are."""
    few = {"n_permutations": 19, "n_label_permutations": 0, "n_random": 20, "n_folds": 3, "twin": False}
    settings = CircuitSettings(
        site="mlp_act", k=3, ks=(1, 3), ablate="mean", ablate_ks=(1,), ablate_random=119, ablate_text_tokens=64, **few
    )  # type: ignore[arg-type]
    tables = circuits(model, [task], settings).tables
    assert set(tables["erasure"]["layer"]) == set(range(model.n_layers))
    assert set(tables["ablation"]["k"]) == {0, 1, 3}
