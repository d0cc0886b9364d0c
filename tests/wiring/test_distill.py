"""Controls, splits and choices of the distillation study, on a layer that is linear on its texts' vectors and nowhere else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from moescope.models import LoadedModel
from moescope.study.result import StudyResult
from tests.wiring import call
from tests.wiring.planted import expects, lookup_model

WIDTH = 16
SMALL: dict[str, Any] = {"experts": 16, "active": (2,), "rank": 4, "batch": 128}


def signs(n: int, seed: int) -> np.ndarray:
    """(n, WIDTH) of plus and minus one, the first always plus."""
    x = np.random.default_rng(seed).choice([-1.0, 1.0], (n, WIDTH))
    x[:, 0] = 1
    return x


def gates(words: dict[str, np.ndarray]) -> LoadedModel:
    """Layer 0's neurons are on or off by one coordinate each: on plus and minus one that is linear, on other numbers not.

    The head expects the word that stands there to come again.
    """
    model = lookup_model(words, layers=2)
    mlp: Any = model.body.layers[0].mlp
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for part in (mlp.gate_proj, mlp.up_proj, mlp.down_proj):
            part.weight.zero_()
        for neuron in range(1, WIDTH):
            mlp.gate_proj.weight[neuron, neuron] = 3.0
            mlp.up_proj.weight[neuron, 0] = 1.0
        mlp.down_proj.weight[:, 1:WIDTH] = 0.02 * torch.randn(WIDTH, WIDTH - 1, generator=rng)
    for word, vector in words.items():
        expects(model, word, 3 * vector)
    return model


@pytest.fixture(scope="module")
def study() -> StudyResult:
    """Every text but each twentieth, which no student may train on, is one of forty words again and again.

    Those others are of words that stand nowhere else.
    """
    words = {f"w{i}": x for i, x in enumerate(signs(40, 0))} | {f"held{i}": x for i, x in enumerate(signs(64, 1))}
    texts = [" ".join([f"w{i % 40}"] * 8) for i in range(152)]
    for number in range(8):
        texts.insert(20 * number, " ".join(f"held{8 * number + i}" for i in range(8)))
    controls = ("gaussian", "shuffled-teacher", "shuffled-outputs", "twin")
    return call.distill(gates(words), 0, texts, control=controls, lr=(1e-2,), steps=3, seeds=3, **SMALL)


def baseline(study: StudyResult, data: str, name: str = "linear") -> float:
    found = study.tables["baselines"].query("data == @data and baseline == @name")
    return float(found["fvu"].iloc[0])


def test_held_out_texts_do_not_train(study: StudyResult) -> None:
    """Every token that is read is met in training, so that its mean output, of which nothing else is a function, is known."""
    assert baseline(study, "activations", "token mean") < 1e-6
    # and what is read, in whatever split, is the vectors of the others: all of a text's but the first
    assert sum(study.meta["data"][split] for split in ("train", "validation", "test")) == 152 * 7


def test_the_spliced_models_loss_is_of_held_out_texts(study: StudyResult) -> None:
    """The model knows what comes next in the others."""
    assert study.tables["splice"].set_index("layer_is").loc["original", "loss"] > 3


@pytest.mark.parametrize("control", ["gaussian", "shuffled-teacher", "twin"])
def test_a_control_is_not_the_layer_on_its_texts(study: StudyResult, control: str) -> None:
    assert baseline(study, "activations") < 1e-4
    assert baseline(study, control) > 0.01


def test_outputs_of_other_tokens_are_of_other_tokens(study: StudyResult) -> None:
    assert baseline(study, "shuffled-outputs") > 0.8


def test_each_seed_starts_anew(study: StudyResult) -> None:
    for _, runs in study.tables["students"].query("chosen").groupby(["data", "student"]):
        assert runs["fvu"].nunique() == 3


def test_a_dense_student_costs_what_an_expert_student_does_with_its_router(study: StudyResult) -> None:
    summary = study.tables["summary"].query("data == 'activations'")
    dense = summary[summary["kind"] == "dense"]["multiply_adds"]
    neuron = 3 * WIDTH
    for cost in summary[summary["kind"] == "moe"]["multiply_adds"]:
        assert ((dense <= cost) & (dense > cost - neuron)).any()


def by_heart(**options: Any) -> StudyResult:
    """Runs on few vectors, no two alike, on their outputs and on those of others."""
    words = {f"w{i}": x for i, x in enumerate(signs(400, 2))}
    texts = [" ".join(f"w{8 * i + j}" for j in range(8)) for i in range(40)]
    how: dict[str, Any] = {"control": ("shuffled-outputs",), "seeds": 1, "equal_cost": False}
    return call.distill(gates(words), 0, texts, **(SMALL | how | options))


@pytest.fixture(scope="module")
def unlearnable() -> StudyResult:
    """Enough neurons and steps that the outputs of others are learnt by heart."""
    return by_heart(active=(8,), lr=(1.4e-2,), steps=150)


@pytest.mark.parametrize("split", ["fvu", "validation"])
def test_what_was_learnt_by_heart_is_no_use_on_other_texts(unlearnable: StudyResult, split: str) -> None:
    assert unlearnable.tables["students"].query("data == 'shuffled-outputs'")[split].dropna().min() > 0.95


def test_the_linear_baseline_is_fitted_on_other_texts(unlearnable: StudyResult) -> None:
    assert baseline(unlearnable, "shuffled-outputs") > 0.95


def test_the_rate_is_the_best_on_validation() -> None:
    """Rates so near each other that another split would choose another."""
    students = by_heart(lr=(5e-3, 6e-3, 7e-3, 8e-3, 9e-3), steps=60).tables["students"]
    for _, runs in students.groupby(["data", "student"]):
        assert runs["chosen"].sum() == 1
        assert runs.loc[runs["validation"].idxmin(), "chosen"]
