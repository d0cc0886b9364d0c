"""Controls, splits and choices of the distillation study, on a layer that is linear on its texts' vectors and nowhere else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from moescope.models import LoadedModel
from moescope.studies.distill import runs as training
from moescope.studies.distill.data import batches
from moescope.study.result import StudyResult
from moescope.types import Claim
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
    for _, rows in study.tables["students"].query("chosen").groupby(["data", "student"]):
        assert rows["fvu"].nunique() == 3


def test_each_seed_has_a_start_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A seed's own order of the data would tell runs apart that begin alike."""
    starts: dict[str, set[float]] = {}

    class Recorded(training.Student):
        def __init__(self, *given: Any, **options: Any) -> None:
            super().__init__(*given, **options)
            starts.setdefault(str(given[0]), set()).add(float(sum(p.detach().abs().sum() for p in self.parameters())))

    monkeypatch.setattr(training, "Student", Recorded)
    words = {f"w{i}": x for i, x in enumerate(signs(40, 0))}
    texts = [" ".join([f"w{i % 40}"] * 8) for i in range(152)]
    call.distill(gates(words), 0, texts, control=(), lr=(1e-2,), steps=1, seeds=3, **SMALL)
    assert starts
    assert all(len(sums) == 3 for sums in starts.values())


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


# --- the verdicts, where the truth is known --------------------------------------------------------------------------------

WIDE = 32
COMMON = ("the", "of", "and", "=", "+", "def", "return", "said", "was", "number")  # of the passages by which experts are read


def even(words: dict[str, np.ndarray]) -> LoadedModel:
    """Layer 0 adds the squares of its input's coordinates, each along a direction of its own: no linear map sees any of it."""
    model = lookup_model(words, layers=2, inner=2 * WIDE)
    mlp: Any = model.body.layers[0].mlp
    directions = torch.linalg.qr(torch.randn(WIDE, WIDE, generator=torch.Generator().manual_seed(0))).Q
    sign = torch.tensor([1.0, -1.0]).repeat(WIDE)
    with torch.no_grad():
        # z silu(z) of z and of -z add up to z squared
        for part in (mlp.gate_proj, mlp.up_proj):
            part.weight.copy_((torch.eye(WIDE).repeat_interleave(2, 0).T * sign).T)
        mlp.down_proj.weight.copy_(0.01 * directions.repeat_interleave(2, 1))
    return model


def sparse(n: int, seed: int) -> np.ndarray:
    """(n, WIDE), two coordinates of which are not 0."""
    rng, x = np.random.default_rng(seed), np.zeros((n, WIDE))
    for row in x:
        row[rng.choice(WIDE, 2, replace=False)] = rng.uniform(1, 2, 2) * rng.choice([-1.0, 1.0], 2)
    return x


def trained(x: np.ndarray, **options: Any) -> StudyResult:
    """No word stands in two texts, so that the token tells nothing."""
    words = {f"w{i}": row for i, row in enumerate(x)} | dict(zip(COMMON, sparse(len(COMMON), 9), strict=True))
    texts = [" ".join(f"w{8 * i + j}" for j in range(8)) for i in range(len(x) // 8)]
    how: dict[str, Any] = {"experts": 64, "active": (2,), "router": ("full",), "lr": (3e-2,), "steps": 150, "batch": 128}
    return call.distill(even(words), 0, texts, **(how | {"equal_cost": False, "seeds": 3} | options))


@pytest.fixture(scope="module")
def contrast() -> StudyResult:
    return trained(sparse(3200, 0))


def claim(result: StudyResult, id: str, words: str) -> Claim:
    (found,) = (c for c in result.claims if c.id == id and words in c.statement)
    return found


GAIN, EXCESS, NO_GAIN = ("M1", "on activations: the experts"), ("M2", "gain more"), ("M2", "explains as much")


def test_a_contrast_that_is_there_is_found(contrast: StudyResult) -> None:
    for which in (GAIN, EXCESS, NO_GAIN):
        assert claim(contrast, *which).outcome == "holds", which
    gain, excess = claim(contrast, *GAIN), claim(contrast, *EXCESS)
    assert gain.interval is not None
    assert gain.interval[0] > 1.2
    assert gain.control is not None
    assert gain.control.value == pytest.approx(contrast.tables["ratio"].query("data == 'gaussian'")["ratio"].iloc[0])
    assert excess.measured == pytest.approx(gain.measured / gain.control.value)
    assert gain.family == excess.family
    assert excess.p_adjusted >= excess.p


def test_a_contrast_that_is_not_there_is_not_found() -> None:
    """Inputs that are Gaussian themselves."""
    found = claim(trained(np.random.default_rng(0).normal(size=(3200, WIDE))), *EXCESS)
    assert (found.outcome, found.explanation) == ("contradicted", "chance")


def test_students_that_a_linear_map_equals_get_no_verdict(study: StudyResult) -> None:
    """Any ratio between them is of how badly they are trained."""
    for which in (GAIN, EXCESS, NO_GAIN):
        found = claim(study, *which)
        assert found.outcome == "undertrained"
        assert found.explanation is None
        assert "the linear map" in found.words


def test_two_seeds_decide_nothing() -> None:
    found = claim(trained(sparse(800, 0), steps=5, seeds=2, lr=(1e-2,)), *GAIN)
    assert found.outcome in ("undertrained", "not tested")


def test_errors_are_of_the_documents_that_judge(contrast: StudyResult) -> None:
    documents = contrast.tables["documents"]
    judge = contrast.rows[1]["judge"]
    for (data, _, _), part in documents.groupby(["data", "student", "seed"]):
        assert len(part) == (judge["groups"] if data == "activations" else 100)
    sums = documents.groupby(["data", "student", "seed"])["error"].sum()
    runs = contrast.tables["students"].query("chosen").set_index(["data", "student", "seed"])["fvu"]
    assert np.allclose(sums, runs.loc[sums.index])


def test_pieces_of_one_text_are_in_one_split() -> None:
    """Every text is a word of its own, again and again over several pieces: on other texts its mean output is of no use."""
    words = {f"w{i}": x for i, x in enumerate(signs(60, 3))}
    found = call.distill(gates(words), 0, [" ".join([f"w{i}"] * 400) for i in range(60)], lr=(1e-2,), steps=2, seeds=1, **SMALL)
    held, real = found.rows[:2]
    assert held["fit"]["rows"] > 2 * held["fit"]["groups"]
    assert sum(real[role]["groups"] for role in ("fit", "select", "judge")) == held["fit"]["groups"] == 57
    assert baseline(found, "activations", "token mean") > 0.9


def test_every_seed_has_an_order_of_the_data_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    firsts: list[torch.Tensor] = []

    def spied(*args: Any, **kwargs: Any) -> Any:
        for number, block in enumerate(batches(*args, **kwargs)):
            if number == 0 and kwargs["epoch"] == 0:
                firsts.append(block.x)
            yield block

    monkeypatch.setattr("moescope.studies.distill.training.batches", spied)
    trained(sparse(800, 0), steps=2, control=())
    assert len(firsts) == 3
    assert len(torch.unique(torch.stack(firsts), dim=0)) == 3


def test_categories_stand_beside_the_untrained_student(contrast: StudyResult) -> None:
    (found,) = (c for c in contrast.claims if c.id == "M7")
    assert found.control is not None
    assert found.control.name == "the same student untrained"
    assert found.control.value != found.measured
    # what it is before any step, no number of steps changes
    (brief,) = (c for c in trained(sparse(3200, 0), steps=1, seeds=1).claims if c.id == "M7")
    assert brief.control is not None
    assert found.control.value == pytest.approx(brief.control.value, abs=1e-9)
