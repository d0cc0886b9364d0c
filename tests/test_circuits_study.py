"""The study whole: on a model with planted neurons, and small on the embedded model."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import LlamaModel

import moescope
from moescope.errors import InputError
from moescope.models import LoadedModel, load, random_twin
from moescope.studies.circuits import CircuitSettings, SearchSettings, circuits, dynamics
from moescope.studies.circuits.control_task import control_labels
from moescope.studies.circuits.features import capture_features, columns_of
from moescope.study.protocol import ControlFault
from moescope.study.result import StudyResult
from moescope.study.run import Run
from moescope.tasks import load_task
from moescope.types import Neuron, Site, Task
from tests.planted_llama import WORDS, planted_llama, planted_task

QUICK = CircuitSettings(ks=(1, 2, 5), k=5, n_permutations=39, n_label_permutations=99, n_random=20)
COORDINATES = (3, 11, 20)
COLUMN = "planted: one coordinate fills several places of the top 10"


def planted_model(strength: float = 2.0) -> LoadedModel:
    """The planted llama, whose words carry their class in three coordinates of the stream; the rest is noise."""
    model = planted_llama()
    rng = np.random.default_rng(1)
    sign = np.array([1.0] * (WORDS // 2) + [-1.0] * (WORDS // 2))
    first = model.tokenizer.convert_tokens_to_ids("w0")
    with torch.no_grad():
        for coordinate in COORDINATES:
            values = torch.from_numpy(strength / 2 * sign + rng.normal(size=WORDS))
            model.body.get_input_embeddings().weight[first : first + WORDS, coordinate] = values.float()
    return model


@pytest.mark.parametrize("site", ["resid:1", "resid"])
def test_planted_neurons_come_back(site: str) -> None:
    settings = dataclasses.replace(QUICK, site=site, k=3, ks=(3,), twin=False)
    result = circuits(planted_model(6.0), [planted_task(rows=200)], settings=settings)
    found = {neuron.index for neuron in result.circuits["planted"].neurons}
    assert found <= set(COORDINATES)
    if site == "resid:1":
        assert found == set(COORDINATES)
    neurons = result.tables["neurons"]
    assert (neurons["p_family"][:3] == 1 / 40).all()
    columns = result.tables["columns"]
    assert columns["distinct_coordinates"].max() <= 10
    if site == "resid":
        # Top ten of the stream: the three planted coordinates in their four layers fill nine or ten places.
        assert set(columns["neuron"]) >= set(COORDINATES)
        assert result.table().set_index("statement").loc[COLUMN, "measured"] == 4


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    return [load_task("certainty=halueval", limit=80), load_task("sentiment=uci-sentiment?template=question", limit=80)]


@pytest.fixture(scope="module")
def result(tasks: list[Task]) -> StudyResult:
    settings = dataclasses.replace(
        QUICK, ablate="mean", ablate_ks=(1, 5), ablate_random=119, ablate_rows=24, ablate_text_tokens=96
    )
    return circuits(load("dense-tiny", head=True), tasks, settings)


def test_every_control_has_a_name_in_the_figure(result: StudyResult) -> None:
    (axes, *_) = result.figure("controls").axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert len(names) == result.tables["controls"]["control"].nunique()
    assert [name for name in names if "_" in name] == []


def test_every_table_and_claim_is_there(result: StudyResult) -> None:
    columns = {
        "effects": "task effect value low high p against bits k",
        "controls": "task control accuracy balanced low high gap gap_low gap_high p note",
        "overlap": "task_a task_b k distinct_a distinct_b overlap expected "
        "p p_disjoint split_half_a split_half_b split_half_cross gap gap_low gap_high",
        "cross_task": "source target method value low high gap gap_low gap_high p",
        "task_map": "a b measure value chance p p_adjusted best_mean best_low best_high",
        "ablation": "task k mode target off_task baseline effect low high "
        "random_mean random_low random_high gap gap_low gap_high p n_random norm_ratio",
        "erasure": "task layer target baseline effect low high random_mean "
        "random_low random_high p worst_mean worst_low worst_high p_worst n_random",
    }
    assert {name: " ".join(result.tables[name].columns) for name in columns} == columns
    single = {
        "accuracy", "neurons", "neuron_classes", "neuron_values", "layers", "depth_range", "depth", "columns",
        "sigma_compare", "stability", "pc1", "projection",
    }  # fmt: skip
    assert set(result.tables) == single | set(columns) | {"interference", "neuron_texts", "misclassified"}
    for name in single:
        assert set(result.tables[name]["task"]) == {"certainty", "sentiment"}
    claims = [claim.statement for claim in result.claims]
    assert len(set(claims)) == len(claims)
    for task in ("certainty", "sentiment"):
        for about in (
            "5 neurons tell the classes apart", "2 neurons tell the classes apart as well as a whole layer",
            "the 5 neurons of the circuit tell more than random ones of their layers", "single neurons are the unit",
            "the first layers, to layer 1, keep what all layers know", "neurons take opposite signs for the classes",
            "5 neurons tell as much as one direction of a whole layer", "the circuit reads the text, not only its last words",
            "the classes differ along PC1 of the last layer", "the circuit's divergence grows layer by layer",
            "one coordinate fills several places of the top 10",
        ):  # fmt: skip
            assert f"{task}: {about}" in claims
    assert "certainty: the circuit lies early" in claims
    assert "sentiment: the circuit lies late" in claims
    assert all(claim.words for claim in result.claims)
    assert "sentiment: switching its 5 neurons off harms a probe downstream more than switching off others" in claims
    # A template that asks gives the model an answer to lose.
    assert set(result.tables["ablation"].query("task == 'sentiment'")["target"]) == {
        "probe_accuracy", "answer_logodds", "answer_accuracy", "wikitext_loss",
    }  # fmt: skip


def test_controls_hold_every_baseline(result: StudyResult) -> None:
    controls = result.tables["controls"].query("task == 'certainty'").set_index("control")
    assert set(controls.index) == {
        "circuit", "circuit_global", "full_layer_probe", "embedding_layer", "majority class", "one_direction",
        "chosen_cue", "cue_and_circuit",
        "surface: length in characters", "surface: length in words", "surface: length in tokens",
        "surface: ends with a full stop", "surface: ends with punctuation", "surface: final character",
        "surface: final token", "surface: bag of words", "surface: words and bigrams", "surface: all surface cues",
        "random_circuit", "layer_matched_circuit", "permuted_labels", "control_task", "rotated_basis", "without_massive",
        "matched_subset", "circuit_on_sample", "fixed_template", "random_twin_circuit", "random_twin_probe",
    }  # fmt: skip
    paired = controls["gap"].dropna()
    anew = ["fixed_template", "random_twin_circuit", "random_twin_probe"]
    beside = pd.Series(controls.loc["circuit", "balanced"], paired.index)
    beside[anew] = controls.loc["circuit_on_sample", "balanced"]  # on the same rows, in fitting and in judging
    np.testing.assert_allclose(paired, beside - controls.loc[paired.index, "balanced"], atol=1e-9)
    for name in anew:
        assert re.search(
            r"on \d+ of 80 rows, whole groups drawn at random, as many as 0.5 of a pass", controls.loc[name, "note"]
        )
    assert (controls["gap_low"].dropna() <= paired + 1e-9).all()
    assert controls.loc["permuted_labels", "p"] == 1 / 100
    assert controls.loc["permuted_labels", "accuracy"] == pytest.approx(0.5, abs=0.1)
    assert "the gap is selectivity" in controls.loc["control_task", "note"]
    # The answers that were made up are whole sentences: the full stop alone tells them apart.
    assert controls.loc["surface: ends with a full stop", "accuracy"] > 0.85


def test_saved_and_loaded_it_is_the_same(result: StudyResult, tmp_path: Any) -> None:
    folder = result.save(tmp_path / "out", figures=False)
    assert moescope.load(folder) == result


@pytest.mark.parametrize("site", ["mlp_act:1-3", "attn_out:2"])
def test_any_site_multi_class_and_a_run_that_repeats_itself(site: str) -> None:
    model, task = planted_model(), planted_task(rows=150)
    examples = tuple(dataclasses.replace(e, label=i % 3, group=str(i // 3)) for i, e in enumerate(task.examples))
    three = dataclasses.replace(task, examples=examples, classes=("a", "b", "c"), answers=(), name="three")
    settings = dataclasses.replace(QUICK, site=site, twin=False, n_label_permutations=0)
    first, second = (circuits(model, [three, task], settings=settings) for _ in range(2))
    kind = site.partition(":")[0]
    assert {neuron.site.kind for neuron in first.circuits["three"].neurons} == {kind}
    assert len(first.tables["pc1"].query("task == 'three'")) == 3
    assert "permuted_labels" not in set(first.tables["controls"]["control"])
    for name, table in first.tables.items():
        pd.testing.assert_frame_equal(table, second.tables[name])
    assert first.claims == second.claims or str(first.claims) == str(second.claims)


def test_a_position_other_than_the_final_token() -> None:
    settings = dataclasses.replace(QUICK, position="mean", twin=False)
    result = circuits(planted_model(6.0), [planted_task()], settings=settings)
    note = result.tables["controls"].set_index("control").loc["control_task", "note"]
    assert "120 inputs" in note or "119 inputs" in note  # each text is an input of its own


def test_control_labels_are_a_function_of_the_final_token() -> None:
    model, task = planted_model(), planted_task(rows=200)
    features = capture_features(model, task, columns_of(model, "resid:1"), QUICK)
    labels, n_kinds = control_labels(features, model.tokenizer, "final", np.random.default_rng(0))
    last = [e.text.split()[-1] for e in task.examples]
    assert n_kinds == len(set(last))
    assert len({(word, int(label)) for word, label in zip(last, labels, strict=True)}) == n_kinds
    assert set(labels) == {0, 1}
    other, _ = control_labels(features, model.tokenizer, "final", np.random.default_rng(1))
    assert (other != labels).any()


def test_memory_of_inputs_shows_in_the_control_task() -> None:
    """Forty final words, hundreds of rows: a probe learns any label of a word, so selectivity is far below the gain."""
    settings = dataclasses.replace(QUICK, k=16, ks=(16,), site="resid:0", twin=False, n_label_permutations=0)
    result = circuits(planted_model(6.0), [planted_task(rows=400)], settings=settings)
    controls = result.tables["controls"].set_index("control")
    assert controls.loc["circuit", "accuracy"] > 0.95
    assert controls.loc["control_task", "accuracy"] > 0.75


def test_a_circuit_forms_over_checkpoints(tmp_path: Any) -> None:
    model = planted_model(6.0)
    twin = random_twin(model, seed=3)
    for step, module in ((0, twin.module), (100, model.module)):
        folder = tmp_path / f"step-{step}"
        module.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
    settings = SearchSettings(k=3, site="resid:1")
    result = dynamics([tmp_path / "step-100", tmp_path / "step-0"], [planted_task(rows=400)], settings=settings)
    table = result.tables["dynamics"]
    assert table["step"].tolist() == [0, 100]
    assert table["accuracy"].iloc[1] > table["accuracy"].iloc[0]
    assert table["overlap_with_last"].iloc[1] == 3
    (claim,) = result.claims
    assert (claim.statement, claim.id) == ("planted: the circuit forms in training", "H21")
    assert claim.measured == table["balanced"].iloc[1]
    # what the trained model reads of the last word is the word, which a cue reads too
    assert (claim.outcome, claim.explanation) == ("holds", "trivial cue"), claim.words
    with pytest.raises(InputError, match="at least two"):
        dynamics([tmp_path / "step-0"], [planted_task()])
    with pytest.raises(InputError, match="no training step"):
        dynamics([tmp_path / "final", tmp_path / "step-0"], [planted_task()])
    with pytest.raises(InputError, match="exactly one model"):
        dynamics(["a", "b"], [planted_task()], revisions=["x1"])


@pytest.mark.parametrize("untrained", [4, 0])
def test_a_circuit_that_is_there_from_one_checkpoint_on_forms_in_a_jump(tmp_path: Any, untrained: int) -> None:
    model = planted_model(6.0)
    twin = random_twin(model, seed=3)
    for i in range(7):
        folder = tmp_path / f"step-{2**i}"
        (twin if i < untrained else model).module.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
    settings = SearchSettings(k=3, site="resid:1", n_folds=3)
    result = dynamics(sorted(tmp_path.iterdir()), [planted_task(rows=200)], settings=settings)
    claim = next(c for c in result.claims if c.statement == "planted: the circuit forms in a jump, not smoothly")
    assert claim.outcome == ("holds" if untrained else "contradicted"), claim.words
    assert ("between steps 8 and 16" in claim.words) == bool(untrained)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"k": 0}, "^k: must be at least 1"),
        ({"ks": ()}, "^ks: give at least one"),
        ({"k": 1000}, "K = 1000 is larger than the 128 neurons"),
        ({"k": 17}, "K = 17 is over half of the 32 neurons of a layer"),
        ({"n_folds": 2}, "^n_folds: must be at least 3"),
        ({"n_permutations": 5}, "^n_permutations: must be at least 19"),
        ({"n_label_permutations": 98}, "^n_label_permutations: 98 draws cannot show anything at 0.05 for 5 claims"),
        ({"n_rotations": 5}, "^n_rotations: must be at least 20"),
        ({"n_random": 5}, "^n_random: must be at least 20"),
        ({"sigma": "std"}, "^sigma: 'std' is none of"),
        ({"selection": "outer"}, "^selection: 'outer' is none of"),
        ({"classifier": "svm"}, "^classifier: 'svm' is none of"),
        ({"ablate": "erase"}, "^ablate: 'erase' is none of"),
        ({"ablate_ks": (0,)}, "^ablate_ks: must be at least 1"),
        ({"ablate_random": 5}, "^ablate_random: must be at least 19"),
        ({"control_half_width": 0.5}, "^control_half_width"),
        ({"control_cost": 0}, "^control_cost: must be above 0"),
        ({"position": "first"}, "^position: 'first' is none of"),
        ({"site": "cortex"}, "cortex"),
    ],
)
def test_bad_options_are_named_before_any_work(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        circuits(planted_llama(), [planted_task()], CircuitSettings(**options))


def test_tasks_must_be_there_and_differ_in_name() -> None:
    with pytest.raises(InputError, match="tasks: at least 1 needed"):
        circuits(planted_llama(), [])
    with pytest.raises(InputError, match="tasks: two are called 'planted'"):
        circuits(planted_llama(), [planted_task(), planted_task()])


def test_the_circuit_is_made_of_neurons(result: StudyResult) -> None:
    circuit = result.circuits["certainty"]
    assert len(circuit.neurons) == len(circuit.divergence) == 5
    assert all(isinstance(neuron, Neuron) and isinstance(neuron.site, Site) for neuron in circuit.neurons)
    shown = result.tables["neurons"].query("task == 'certainty'")
    assert [(n.site.layer, n.index) for n in circuit.neurons] == list(zip(shown["layer"][:5], shown["neuron"][:5], strict=True))


def long_task(rows: int = 200) -> Task:
    """The planted task with thirty words more in front of each text."""
    rng = np.random.default_rng(5)
    task = planted_task(rows=rows)
    examples = tuple(
        dataclasses.replace(e, text=" ".join([*(f"w{i}" for i in rng.integers(WORDS, size=30)), e.text])) for e in task.examples
    )
    return dataclasses.replace(task, examples=examples, name="long", sha256=task.sha256)


def counted_study(settings: CircuitSettings, tasks: list[Task], **run: Any) -> tuple[StudyResult, int]:
    """A study, and the positions that its models' bodies were called with, counted from outside."""
    positions = 0
    forward = LlamaModel.forward

    def counting(self: LlamaModel, input_ids: Any = None, attention_mask: Any = None, **rest: Any) -> Any:
        nonlocal positions
        if attention_mask.ndim == 4:  # edited tokens side by side, all of them real
            positions += input_ids.numel()
        else:  # with a cache the mask holds the past too
            positions += int(attention_mask[:, -input_ids.shape[1] :].sum())
        return forward(self, input_ids=input_ids, attention_mask=attention_mask, **rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LlamaModel, "forward", counting)
        return circuits(planted_model(6.0), tasks, settings, run=Run(**run)), positions


@pytest.mark.parametrize("short", [False, True])
def test_a_study_with_all_controls_costs_one_and_a_half_passes(short: bool) -> None:
    task = planted_task(rows=200) if short else long_task()
    result, positions = counted_study(dataclasses.replace(QUICK, examples=0), [task])
    tokens = result.meta["forward_tokens"]
    assert list(tokens) == ["bare", "batching", "main", "template", "twin"]
    assert tokens["bare"] == sum(len(e.text.split()) for e in task.examples)
    assert tokens["main"] == tokens["bare"]
    read = sum(count for what, count in tokens.items() if what != "bare")
    assert read == positions
    assert tokens["batching"] <= 110  # once a model, whatever is read
    assert read - tokens["batching"] <= 1.5 * tokens["bare"]
    assert tokens["template"] > 0.1 * tokens["bare"]
    assert tokens["twin"] > 0.1 * tokens["bare"]


def test_interventions_add_their_edited_passes_only() -> None:
    settings = dataclasses.replace(QUICK, ablate="mean", ablate_ks=(1, 5), ablate_random=119, ablate_text_tokens=64)
    task, other = planted_task(rows=200), dataclasses.replace(planted_task(rows=120, seed=3), name="other")
    plain, _ = counted_study(QUICK, [task, other])
    result, positions = counted_study(settings, [task, other], seed=0)
    tokens = result.meta["forward_tokens"]
    assert {name: tokens[name] for name in plain.meta["forward_tokens"]} == plain.meta["forward_tokens"]
    # A pass that starts late calls the body and runs a share of it: never more than was called for.
    assert sum(tokens.values()) - tokens["bare"] < positions
    judged = {row["name"]: row["judge"]["rows"] for row in result.meta["rows"] if "interventions" in row["name"]}
    assert judged == {"planted: interventions": 100, "other: interventions": 60}
    # none, the circuit, one direction, its random sets; two further sizes with theirs; four layers of erasure
    n_sets = 3 + 119 + 2 * 20 + 4 * 40
    # One token a set and text, on task and off, and untouched passes over those texts (with the check of the shortcuts).
    assert tokens["edited"] < n_sets * 320 + 2 * tokens["bare"]
    assert tokens["text"] < 2 * 3 * (1 + 1 + 20) * 64


def test_the_rows_of_a_control_follow_the_interval_asked_for() -> None:
    settings = dataclasses.replace(QUICK, twin=False, control_half_width=0.1, control_cost=5)
    controls = circuits(planted_model(6.0), [planted_task(rows=400)], settings).tables["controls"].set_index("control")
    note = controls.loc["fixed_template", "note"]
    rows = int(re.search(r"on (\d+) of 400 rows, .* as many as ± 10.0% needs", note)[1])  # type: ignore[index]
    assert 90 <= rows <= 98  # 1 / (2 · 0.1)² · 1.96² = 96
    whole = dataclasses.replace(settings, control_half_width=0)
    controls = circuits(planted_model(6.0), [planted_task(rows=400)], whole).tables["controls"].set_index("control")
    assert controls.loc["fixed_template", "note"] == "same closing words after every text"
    assert "circuit_on_sample" not in controls.index


def test_what_shows_that_a_control_is_one_is_on_record(result: StudyResult) -> None:
    evidence = {control["control"]: control["evidence"] for control in result.meta["controls"]}
    for task in ("certainty", "sentiment"):
        for name in (
            "random twin", "fixed template", "permuted labels", "rotated basis 1", "random_circuit",
            "layer_matched_circuit", "matched random neurons", "erasure of permuted labels",
        ):  # fmt: skip
            assert evidence[f"{task}: {name}"]
    assert evidence["certainty: control task"]
    assert "sentiment: control task" not in evidence  # the question ends every text alike: there is one kind of input
    assert result.meta["fingerprint"] in evidence["certainty: random twin"]
    assert {row["name"] for row in result.meta["rows"]} >= {"certainty: circuit", "certainty: interventions"}


def test_a_twin_that_is_the_model_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    from moescope.studies.circuits import study

    monkeypatch.setattr(study, "random_twin", lambda model, seed: model)
    with pytest.raises(ControlFault, match="random twin"):
        circuits(planted_model(), [planted_task()], QUICK)


def test_a_basis_that_is_not_rotated_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    from moescope.studies.circuits import controls

    monkeypatch.setattr(controls, "rotations", lambda columns, seed: {w: np.eye(w, dtype=np.float32) for w in columns.widths})
    with pytest.raises(ControlFault, match="rotated basis"):
        circuits(planted_model(), [planted_task()], dataclasses.replace(QUICK, twin=False))


def test_permuted_labels_that_ignore_groups_are_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    from moescope.studies.circuits import controls

    monkeypatch.setattr(controls, "permute_labels", lambda y, groups, rng: rng.permutation(y))
    with pytest.raises(ControlFault, match="permuted labels"):
        circuits(planted_model(), [planted_task()], dataclasses.replace(QUICK, twin=False))
