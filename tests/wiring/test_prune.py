"""Pruning on models whose right answer is written down: what a checkpoint of fewer experts costs, and beside what."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from moescope.models import LoadedModel
from moescope.runtime.mask import PruneMask
from moescope.study.result import StudyResult
from moescope.tasks.passages import Passage
from tests.architectures import tiny_model
from tests.wiring import call
from tests.wiring.planted import expects, expert_model
from tests.wiring.test_experts import languages

SIZES = {"ratio": 0.5, "ratios": (), "n_random": 39, "tokens": 1200, "length": 16}


def spoken(known: range, copies: int = 6, category: str = "all") -> list[Passage]:
    """Documents of one language each; every language has several."""
    return [Passage(" ".join([f"d{d}"] * 12), category, f"{d}/{copy}") for d in known for copy in range(copies)]


def cost(result: StudyResult, criterion: str) -> float:
    return float(result.tables["pruning"].drop_duplicates("criterion").set_index("criterion").loc[criterion, "effect"])


def outcome(result: StudyResult, part: str) -> str | None:
    return next(claim.outcome for claim in result.claims if part in claim.statement)


@cache
def half_dead() -> tuple[StudyResult, PruneMask]:
    """Nobody speaks the languages of experts 4 to 7."""
    return call.prune(languages(), spoken(range(4)), **SIZES)


def test_experts_that_nobody_needs_cost_nothing() -> None:
    result, mask = half_dead()
    assert set(mask.pruned) == {(0, 4), (0, 5), (0, 6), (0, 7)}
    assert cost(result, "reap") == pytest.approx(0, abs=1e-5)
    assert cost(result, "random") > 0.5
    assert outcome(result, "costs less than random masks do") == "holds"
    assert outcome(result, "costs no more than 0.02") == "holds"
    assert result.claims[0].measured == "use the pruned checkpoint"


@cache
def all_needed() -> StudyResult:
    """Every expert has as many documents."""
    return call.prune(languages(), spoken(range(8)), **SIZES)[0]


def test_where_every_expert_matters_alike_none_is_better_left_out_than_another() -> None:
    result = all_needed()
    assert cost(result, "reap") > 0.5
    assert outcome(result, "costs less than random masks do") in ("contradicted", "inconclusive")
    assert result.claims[0].measured == "do not prune so much"


def test_random_masks_leave_out_as_many_experts() -> None:
    for result in (half_dead()[0], all_needed()):
        left = result.tables["pruning"].set_index("criterion")["bytes"]
        assert left["random"] == left["reap"] == 0.5


def test_a_constant_in_the_place_of_an_expert_that_writes_one_costs_nothing() -> None:
    assert cost(all_needed(), "mean output") == pytest.approx(0, abs=1e-4)


@cache
def random_model() -> StudyResult:
    rng = np.random.default_rng(0)
    passages = [Passage("".join(rng.choice(list("abcdefgh "), 40)), "all", str(i)) for i in range(8)]
    model: LoadedModel = tiny_model("olmoe", head=True)
    return call.prune(model, passages, **(SIZES | {"ratio": 1 / 3, "length": 40}))[0]


def test_rounded_weights_are_not_the_whole_model() -> None:
    kl = random_model().tables["pruning"].set_index(["criterion", "ratio"])["kl"]
    assert 1e-7 < kl["8-bit", 0.46875] < kl["4-bit", 0.71875]


def test_as_many_experts_are_rounded_as_save_the_same_bytes() -> None:
    table = random_model().tables["pruning"].query("ratio < 0.4").set_index("criterion")
    assert table.loc["8-bit", "bytes"] == pytest.approx(table.loc["reap", "bytes"], abs=0.46875 / 6)


@cache
def shouting(guard: bool = True) -> tuple[StudyResult, PruneMask]:
    """A rare word's expert, which tells the next word, writes a hundred times more than any other; two are chosen more."""
    eye = np.eye(8)
    words = {"rare": eye[0] + 2 * eye[1], "one": eye[0] + 2 * eye[2], "two": eye[0] + 2 * eye[3], "end": eye[0]}
    writes = np.stack([100 * eye[5], 0.1 * eye[6], 0.1 * eye[6], 0.1 * eye[7]])
    model = expert_model(words, 6 * eye[1:5], writes, reads=eye[1:5])
    expects(model, "end", 6 * eye[5])
    text = " ".join(["one", "two", "one", "two", "rare", "end"] * 3)
    passages = [Passage(text, "all", str(i)) for i in range(6)]
    options: dict[str, Any] = SIZES | {"by": "frequency", "guard": guard, "length": 18}
    return call.prune(model, passages, **options)


def test_the_guard_keeps_what_a_model_breaks_without() -> None:
    result, mask = shouting()
    assert (0, 0) not in mask.pruned
    assert (0, 0) in shouting(guard=False)[1].pruned
    assert cost(result, "unguarded") > cost(result, "frequency") + 0.1
    guard = next(claim for claim in result.claims if claim.statement.startswith("super experts"))
    assert guard.measured == 1
    assert "layer:expert 0:0" in guard.words


@cache
def foreign() -> StudyResult:
    """Languages 4 to 7 are home; the others are abroad."""
    passages = [*spoken(range(4, 8), category="home"), *spoken(range(4), category="abroad")]
    return call.prune(languages(), passages, domain="home", **SIZES)[0]


def test_experts_are_chosen_by_the_domain_and_judged_on_others_too() -> None:
    result = foreign()
    table = result.tables["domains"].query("criterion == 'reap'").set_index("category")
    assert table.loc["home", "effect"] == pytest.approx(0, abs=1e-5)
    assert table.loc["abroad", "effect"] > 0.5
    assert table["chose"].to_dict() == {"home": True, "abroad": False}
    assert cost(result, "reap") == pytest.approx(0, abs=1e-5)
    assert outcome(result, "on home: costs no more than 0.02 nats a token on other text") == "contradicted"


def test_the_checkpoint_in_the_result_is_what_was_judged() -> None:
    """Loaded again, it has the loss that the table says."""
    result, mask = half_dead()
    checkpoint: Any = result.artifacts["checkpoint"]
    from moescope.models import load

    loaded = load(checkpoint.folder, head=True)
    assert loaded.config.num_experts == mask.kept == 4
    ids = torch.tensor([loaded.tokenizer(" ".join(["d1"] * 12))["input_ids"]])
    with torch.no_grad():
        logits = loaded.module(input_ids=ids).logits[0, :-1]  # type: ignore[operator]
    loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:])
    line = result.tables["pruning"].set_index("criterion").loc["reap"]
    assert float(loss) == pytest.approx(line["loss"], rel=1e-4)
