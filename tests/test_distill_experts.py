"""What experts are near: planted copies are found, sizes and marginals alone are not taken for kinship."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from moescope.errors import InputError
from moescope.studies.distill.expert_study import expert_study
from moescope.studies.distill.neighbours import (
    circuit_overlap,
    load_dictionary,
    nearest_directions,
    nearest_neurons,
    pairing_null,
)
from moescope.studies.distill.reading import read_experts
from moescope.studies.distill.settings import DistillSettings
from moescope.studies.distill.spec import StudentSpec
from moescope.studies.distill.splice import generation_table, splice_table
from moescope.studies.distill.students import Scaling, Student
from moescope.studies.distill.study import distill
from moescope.studies.distill.teacher import Teacher
from moescope.study.result import StudyResult
from moescope.study.verdicts import beyond_draws, verdicts
from moescope.types import Circuit, Neuron, Site
from tests.architectures import tiny_model

TEXTS = [f"{'some words ' * (i % 5 + 2)}and number {i}" for i in range(40)]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def teacher(request) -> Teacher:
    return Teacher(tiny_model(request.param, head=True), 1)


def _planted(teacher: Teacher, width: int = 1) -> Student:
    """Experts 3 and 8 of 12 are teacher neurons 7 and 20, shrunk; for a GLU the second with both signs turned."""
    spec = StudentSpec(shared=2, experts=12, active=3, width=width, router="full")
    scaling = Scaling(torch.randn(32), 0.7, torch.randn(32), 2.1)
    student = Student(spec, teacher.shape, scaling, seed=3)
    bank, neurons = student.experts, teacher.neurons
    with torch.no_grad():
        for expert, neuron in ((3, 7), (8, 20)):
            unit = expert * width + width - 1
            turn = -1.0 if expert == 8 and bank.w_lin is not None else 1.0
            bank.w_in[unit] = 0.3 * neurons.w_in[neuron]
            bank.w_out[unit] = 0.2 * turn * neurons.w_out[neuron]
            if bank.w_lin is not None:
                bank.w_lin[unit] = 0.5 * turn * neurons.w_lin[neuron]
    return student


@pytest.mark.parametrize("width", [1, 3])
def test_a_copy_of_a_neuron_is_found_as_its_nearest(teacher, width) -> None:
    found = nearest_neurons(_planted(teacher, width), teacher.neurons, range(12), 1).set_index("expert")
    assert found.loc[[3, 8], "neuron"].tolist() == [7, 20]
    assert found.loc[[3, 8], "neuron_similarity"].tolist() == pytest.approx([1, 1], abs=1e-5)
    assert found.loc[3, "writes_as"] == 7
    assert (found.drop([3, 8])["neuron_similarity"] < 0.8).all()


def test_circuit_neurons_of_the_layer_and_of_the_residual_stream_are_compared(teacher) -> None:
    student = _planted(teacher)
    with torch.no_grad():
        student.experts.w_out[5] = -4.0 * torch.eye(32)[11]
        student.experts.w_in[6] = 2.0 * torch.eye(32)[9]
    circuits = {
        "a": Circuit("a", (Neuron(Site("mlp_act", 1), 7), Neuron(Site("resid", 1), 11)), (2.0, 1.0)),
        "b": Circuit("b", (Neuron(Site("resid", 0), 9), Neuron(Site("mlp_act", 0), 20)), (2.0, 1.0)),
    }
    found = nearest_neurons(student, teacher.neurons, range(12), 1, circuits).set_index("expert")
    assert found.loc[[3, 5, 6], "circuit_neuron"].tolist() == ["mlp_act:1/7", "resid:1/11", "resid:0/9"]
    assert found.loc[[3, 5, 6], "circuit_task"].tolist() == ["a", "a", "b"]
    assert found.loc[[3, 5, 6], "circuit_similarity"].tolist() == pytest.approx([1, 1, 1], abs=1e-5)
    assert found.loc[8, "circuit_similarity"] < 0.8  # the same index in another layer is another neuron
    other = nearest_neurons(student, teacher.neurons, [3], 1, {"c": Circuit("c", (Neuron(Site("mlp_act", 0), 7),), (1.0,))})
    assert other.loc[0, "circuit_neuron"] is None
    assert np.isnan(other.loc[0, "circuit_similarity"])


def test_overlap_is_the_hypergeometric_tail() -> None:
    near = pd.DataFrame({"neuron": [1, 1, 2, 3, 9]})
    here = [Neuron(Site("mlp_act", 1), i) for i in (1, 2, 3)]
    circuits = {
        "in": Circuit("in", (*here, Neuron(Site("mlp_act", 2), 9)), ()),
        "out": Circuit("out", (Neuron(Site("resid", 1), 1),), ()),
    }
    found = circuit_overlap(near, circuits, layer=1, width=20).set_index("task")
    assert found.loc["in", ["circuit_neurons", "expert_neurons", "overlap"]].tolist() == [3, 4, 3]
    assert found.loc["in", "expected"] == pytest.approx(4 * 3 / 20)
    # the circuit's three all among the four, two-sided
    assert found.loc["in", "p"] == pytest.approx(2 * 4 * 3 * 2 / (20 * 19 * 18))
    assert found.loc["in", ["least", "most"]].tolist() == [0, 2]
    assert np.isnan(found.loc["out", "p"])


def test_pairing_null_tells_copies_from_experts_with_the_same_directions() -> None:
    """Every expert's read and write direction is some neuron's in both students; only in one are they the same neuron's."""
    teacher = Teacher(tiny_model("gpt2", head=True), 1)
    spec = StudentSpec(shared=1, experts=24, active=3, router="full")
    p = []
    for shift in (0, 5):
        student = Student(spec, teacher.shape)
        with torch.no_grad():
            student.experts.w_in[:] = teacher.neurons.w_in[:24]
            student.experts.w_out[:] = teacher.neurons.w_out[:24].roll(shift, 0)
        own, null = pairing_null(student, teacher.neurons, range(24), draws=199)
        assert null.mean() < 0.9
        p.append(beyond_draws(own, null, "chance", 0.03).p)
        assert (own > 0.99) == (shift == 0)
    assert p[0] == pytest.approx(2 / 200)
    assert p[1] > 0.05


def test_dictionary_is_read_in_both_forms_and_its_planted_direction_found(teacher, tmp_path: Path) -> None:
    student = _planted(teacher)
    atoms = torch.randn(40, 32, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        student.experts.w_out[4] = 0.1 * atoms[17]
    save_file({"W_dec": atoms, "b_dec": torch.zeros(32)}, tmp_path / "a.safetensors")
    save_file({"decoder.weight": atoms.T.contiguous()}, tmp_path / "b.safetensors")
    for name in "ab":
        found = nearest_directions(student, load_dictionary(tmp_path / f"{name}.safetensors", 32), range(12))
        assert found.loc[4, "direction"] == 17
        assert found.loc[4, "direction_cosine"] == pytest.approx(1, abs=1e-5)
        assert (found["direction_chance"] < 0.9).all()


def test_bad_dictionaries_and_circuits_are_one_line(teacher, tmp_path: Path) -> None:
    save_file({"other": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    save_file({"W_dec": torch.zeros(4, 31)}, tmp_path / "width.safetensors")
    (tmp_path / "text.safetensors").write_text("no")
    for name, message in (
        ("other", "has no W_dec"),
        ("width", "width 32"),
        ("text", "cannot be read"),
        ("none", "cannot be read"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            load_dictionary(tmp_path / f"{name}.safetensors", 32)
        assert "\n" not in str(caught.value)
    foreign = StudyResult(
        "circuits", {"fingerprint": "x"}, circuits={"a": Circuit("a", (Neuron(Site("resid", 1), 0),), (1.0,))}
    )
    with pytest.raises(InputError, match="fingerprint x"):
        distill(teacher.model, TEXTS, DistillSettings(layer=1), circuits=foreign)
    with pytest.raises(InputError, match="no circuits"):
        distill(teacher.model, TEXTS, circuits=StudyResult("circuits", {"fingerprint": teacher.model.fingerprint}))


def test_lift_is_of_documents_not_of_tokens() -> None:
    """A feature of the letter x: in one story of many tokens it proves nothing, in every story it does."""
    from moescope.studies.distill.data import whole
    from moescope.studies.distill.layer_data import model_pairs

    teacher = Teacher(tiny_model("llama"), 0)
    filler = [f"{'mnop' * 6}{i}" for i in range(24)]
    block = whole(model_pairs(teacher, [t + "x" * 12 for t in filler]), "train")
    student = Student(
        StudentSpec(kind="transcoder", experts=4, active=1), teacher.shape, Scaling(block.x.mean(0), 1.0, torch.zeros(32), 1.0)
    )
    centre = student.scaling.inputs(block.x)[block.tokens == teacher.model.tokenizer.convert_tokens_to_ids("x")].mean(0)
    with torch.no_grad():
        student.experts.w_in.mul_(0.01)
        student.experts.w_in[0] = centre / centre.norm()
        student.experts.bias[0] = -0.5 * centre.norm()
    categories = [*["story", "code"] * 12, None]
    p = {}
    for where in ("one", "all"):
        texts = [
            t + ("x" * 12 if i == 0 else "") if where == "one" else t + ("x" if i % 2 == 0 else "")
            for i, t in enumerate(filler)
        ]
        row = read_experts(teacher, student, [*texts, "x" * 30], categories=categories, experts=[0]).iloc[0]
        assert row["category"] == "story"  # the text of no category has most, and no say
        assert row["category_lift"] > 1.5
        p[where] = row["category_p"]
    assert p["all"] < 0.01
    assert p["one"] > 0.2


def test_generation_stands_beside_the_original(teacher) -> None:
    broken = Student(StudentSpec(kind="dense", shared=4), teacher.shape, Scaling(torch.zeros(32), 1, 30 * torch.randn(32), 9))
    texts = [f"{i}{text}" for i, text in enumerate(TEXTS)]
    table = generation_table(teacher, {"itself": teacher.neurons, "broken": broken}, texts, prompt_tokens=6, new_tokens=5)
    assert table.groupby("prompt").size().tolist() == [3, 3]
    table = table.set_index(["prompt", "layer_is"])
    ids = torch.tensor([[*teacher.model.tokenizer(texts[0])["input_ids"][:6]]])
    with torch.no_grad():
        for _ in range(5):  # without a cache, token by token
            ids = torch.cat([ids, teacher.model.module(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
    prompt = teacher.model.tokenizer.decode(ids[0, :6])
    assert table.loc[(prompt, "original"), "continuation"] == teacher.model.tokenizer.decode(ids[0, 6:]).replace("\n", "↵")
    assert (table.xs("itself", level="layer_is")["same_tokens"] == 5).all()
    assert (table.xs("broken", level="layer_is")["same_tokens"] < 5).any()
    assert generation_table(teacher, {}, ["a"], prompt_tokens=6).empty
    with pytest.raises(InputError, match="head"):
        splice_table(Teacher(tiny_model("gpt2"), 1), {}, TEXTS[:2])


def test_study_reads_experts_beside_circuits_and_dictionary(tmp_path: Path) -> None:
    model = tiny_model("llama", head=True)
    known = StudyResult(
        "circuits",
        {"fingerprint": model.fingerprint},
        circuits={"sentiment": Circuit("sentiment", tuple(Neuron(Site("mlp_act", 1), i) for i in range(9)), (1.0,) * 9)},
    )
    save_file({"W_dec": torch.randn(16, 32)}, tmp_path / "sae.safetensors")
    settings = DistillSettings(layer=1, experts=36, active=(2,), rank=6, lr=(1e-2,), seeds=1, steps=8, batch=256, control=())
    result = distill(model, TEXTS * 2, settings, circuits=known.save(tmp_path / "c"), dictionary=tmp_path / "sae.safetensors")
    experts = result.table("experts")
    assert {"category", "category_p", "neuron", "circuit_neuron", "direction"} <= set(experts.columns)
    assert set(experts["category"].dropna()) <= {"code", "math", "story", "factual"}
    overlap = result.table("expert_circuits").iloc[0]
    assert overlap["expected"] == pytest.approx(overlap["expert_neurons"] * 9 / 48)
    names = [c.statement for c in result.claims]
    for start in ("similarity of experts", "neurons of the sentiment circuit", "cosine of experts", "mean log lift"):
        assert any(name.startswith(start) for name in names), start
    # random experts after eight steps are not the teacher's neurons
    assert next(c for c in result.claims if c.statement.startswith("similarity")).outcome in ("contradicted", "inconclusive")
    assert {"original", *result.table("summary")["student"]} == set(result.table("generation")["layer_is"])
    assert len(result.artifacts) == result.table("summary")["student"].nunique()


def test_a_block_of_experts_is_read_without_neurons() -> None:
    teacher = Teacher(tiny_model("olmoe", head=True), 1)
    student = Student(StudentSpec(shared=2, experts=8, active=2, router="full"), teacher.shape)
    tables, claims = expert_study(
        teacher, "s", student, TEXTS[:4], DistillSettings(), untrained=student, circuits={}, characters=200
    )
    assert "neuron" not in tables["experts"]
    (claim,) = verdicts(claims)
    assert claim.id == "M7"
    # the untrained student is this one: whatever it prefers is no finding
    assert (claim.outcome, claim.explanation) in (("holds", "trivial cue"), ("contradicted", "chance"), ("inconclusive", None))
