"""Pruning and steering of experts: what chooses, what judges, and what stands beside."""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd

from moescope.models import LoadedModel
from moescope.runtime.mask import PruneMask
from moescope.studies.steer.choose import top_experts
from moescope.study.result import StudyResult
from moescope.tasks.passages import Passage
from moescope.types import Neuron, Site
from tests.planted_routing import random_trace
from tests.wiring import call
from tests.wiring.planted import expects, expert_model, lookup_model

EXPERTS = 8


def languages(n: int = EXPERTS, gain: float = 4.0) -> LoadedModel:
    """Word d goes to expert d, by which alone the model knows that word d comes next."""
    width = 8 * (2 * n // 8 + 1)
    eye = np.eye(width)
    words = {f"d{d}": eye[0] + 2 * eye[1 + d] for d in range(n)}
    model = expert_model(words, 6 * eye[1 : 1 + n], eye[1 + n : 1 + 2 * n])
    for d in range(n):
        expects(model, f"d{d}", gain * eye[1 + n + d])
    return model


def documents(n: int = EXPERTS, category: str = "all") -> list[Passage]:
    return [Passage(" ".join([f"d{d}"] * 12), category, f"{d}") for d in range(n)]


@cache
def pruned() -> StudyResult:
    """Every document has a language, and an expert, of its own: those of the half that judges are idle in the other."""
    return call.prune(languages(), documents(), ratios=(0.5,), ratio=0.5, n_random=39, tokens=400, length=16)[0]


def costs(result: StudyResult) -> pd.Series:
    """Loss added, by criterion."""
    return result.tables["pruning"].drop_duplicates("criterion").set_index("criterion")["effect"]


def test_saliency_is_read_on_other_documents_than_those_that_judge() -> None:
    """Then what is pruned is what they need."""
    effect = costs(pruned())
    assert (effect[["reap", "frequency", "mass"]] > 1).all()


def test_a_loss_that_no_document_changes_has_no_share_of_doubt() -> None:
    """The interval of a proportion of nought reaches far above it; that of a change of nought nats does not."""
    kept = rare()[0].tables["pruning"].query("criterion == 'reap'").iloc[0]
    other = steered().tables["effects"].query("match == 'overall' and category == 'other'").iloc[0]
    for row in (kept, other):
        assert row["effect"] == row["low"] == row["high"] == 0


def test_random_masks_are_not_the_criterions() -> None:
    effect = costs(pruned())
    assert effect["random"] < 0.75 * effect["frequency"]


@cache
def rare() -> tuple[StudyResult, PruneMask]:
    """A rare word's expert tells the next word, the common word's writes next to nothing; two more are never met."""
    eye = np.eye(8)
    words = {"rare": eye[0] + 2 * eye[1], "common": eye[0] + 2 * eye[2], "end": eye[0]}
    writes = np.stack([eye[5], 0.01 * eye[6], eye[7], eye[7]])
    model = expert_model(words, 6 * eye[1:5], writes, reads=eye[1:5])
    expects(model, "end", 6 * eye[5])
    text = " ".join(["common", "common", "common", "common", "rare", "end"] * 3)
    passages = [Passage(text, "all", str(i)) for i in range(4)]
    return call.prune(model, passages, by="reap", ratios=(0.75,), ratio=0.75, n_random=39, tokens=400, length=18)


def test_each_criterion_prunes_by_its_own_measure() -> None:
    effect = costs(rare()[0])
    assert effect["reap"] < effect["frequency"] - 0.1


def test_the_mask_is_that_of_the_criterion_asked_for() -> None:
    assert set(rare()[1].pruned) == {(0, 1), (0, 2), (0, 3)}


@cache
def steered() -> StudyResult:
    """The expert of the first language is banned; languages 0 and 1 are one category, the others another."""
    passages = [
        Passage(p.text, ("mine", "other")[int(p.group) > 1], f"{p.group}/{copy}") for p in documents() for copy in range(2)
    ]
    return call.steer(languages(), passages, ban=[(0, 0), (0, 1)], target="mine", n_random=79, tokens=400, length=16)


def test_a_ban_is_felt_where_its_experts_are_needed() -> None:
    found = steered().tables["effects"].query("match == 'overall'").set_index("category")
    assert found.loc["mine", "effect"] > 1
    assert found.loc["other", "effect"] < 0.1


def test_a_ban_stands_beside_bans_of_others() -> None:
    found = steered().tables["effects"].query("match == 'overall'").set_index("category")
    assert found.loc["mine", "random_mean"] < 0.1
    assert found.loc["other", "random_mean"] > 0.1


def test_random_experts_are_used_as_much_as_the_banned() -> None:
    """Eight experts that are hardly met, and sixteen in use, of which five are banned."""
    n = 24
    share = np.array([1] * 8 + [8] * 16)
    words = [f"d{d}" for d in range(n) for _ in range(share[d])]
    rng = np.random.default_rng(0)
    passages = [Passage(" ".join(rng.permutation(words)), "all", str(i)) for i in range(2)]
    chosen = {"ban": [(0, e) for e in range(19, 24)], "target": "all"}
    found = call.steer(languages(n), passages, **chosen, n_random=79, tokens=400, length=128).tables["effects"]
    assert (found["usage_ratio"].sub(1).abs() < 0.3).all()


def test_a_categorys_experts_are_chosen_by_its_own_prompts() -> None:
    trace = random_trace(6, planted={(3, "code"): (2, 9), (3, "math"): (4, 5)}, strength=0.9)
    assert {e.number for e in top_experts(trace, "code", 2) if e.layer == 3} == {2, 9}


@cache
def silenced() -> StudyResult:
    """The head reads one neuron of many."""
    rng = np.random.default_rng(0)
    words = {f"d{d}": np.concatenate([[1.0], rng.normal(size=31)]) for d in range(2)}
    for d in range(2):
        words[f"d{d}"][5] = 4.0 * d - 2.0
    model = lookup_model(words, layers=2)
    for d in range(2):
        expects(model, f"d{d}", (8.0 * d - 4.0) * np.eye(32)[5])
    passages = [Passage(" ".join([f"d{d}"] * 12), "all", f"{d}/{i}") for d in range(2) for i in range(2)]
    chosen = {"neurons": [Neuron(Site("resid", 0), 5)], "target": "all"}
    return call.steer(model, passages, **chosen, n_random=79, tokens=400, length=16)


def test_a_neurons_ablation_stands_beside_that_of_other_neurons() -> None:
    row = silenced().tables["effects"].query("category == 'all'").iloc[0]
    assert row["effect"] > 0.5
    assert row["random_mean"] < 0.1
