"""The next task's early identification put in: a circuit that it switches on is found, one that is merely beside it is not."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

import moescope
from moescope.capture.encode import encode
from moescope.errors import InputError
from moescope.studies.route.early import Late
from moescope.types import Task
from tests.gated_llama import TASKS, K, gated_llama, worded

QUICK: dict[str, Any] = {"causal": True, "unknown": 0.1, "layer": 1, "timed_texts": 3, "k": K}
QUICK |= {"early_neurons": 3, "n_changes": 79, "causal_texts": 24}
PER_EARLY = (
    "tells its own classes less well",
    "the next task's circuit goes on",
    "what later layers write names the next task",
)


def study(*, gated: bool, tasks: list[Task]) -> moescope.StudyResult:
    return moescope.route(gated_llama(gated=gated), tasks, moescope.RouteSettings(**QUICK))


def claims(result: moescope.StudyResult, ending: str) -> list[moescope.types.Claim]:
    """Of the direction, then of its coordinates."""
    return [claim for claim in result.claims if claim.statement.endswith(ending)]


@pytest.fixture(scope="module")
def gated() -> moescope.StudyResult:
    return study(gated=True, tasks=[worded(t) for t in range(TASKS)])


def test_a_circuit_that_its_task_switches_on_is_found(gated: moescope.StudyResult) -> None:
    """By the whole direction and by its three coordinates: the task's own circuit is lost, and only the next one's goes on."""
    for ending in PER_EARLY[:2]:
        assert [claim.outcome for claim in claims(gated, ending)] == ["holds", "holds"], ending
        assert {claim.id for claim in claims(gated, ending)} == {"H15"}
    lost, on = (claims(gated, ending) for ending in PER_EARLY[:2])
    assert max(claim.measured for claim in lost) < 0.7
    assert min(claim.measured for claim in on) > 0.4
    assert [claim.explanation for claim in on] == ["none found"] * 2, "beyond a third task, which switches it off as well"
    (further,) = claims(gated, "goes further than other neurons of its layers")
    assert further.outcome == "holds"


def test_every_change_is_in_the_tables(gated: moescope.StudyResult) -> None:
    changes = gated.table("causal_changes").groupby(["early", "change"]).size()
    assert dict(changes.unstack().loc["direction"]) == {"next": 1, "random": 79, "third": 1}
    table = gated.table("causal").set_index(["early", "task", "change"])
    assert list(table.xs("direction").xs("next", level="change")["towards"]) == ["t1", "t2", "t0"]
    assert (table.xs("none", level="change")["told"] - 1).abs().max() < 1e-9
    assert table.xs("none", level="change")["way"].abs().max() < 0.1
    assert table.xs("next", level="change")["router"].min() > 0.9, "what is moved is what the router reads"
    assert table.xs("third", level="change")["router"].max() < 0.1
    sizes = table["size"].drop("none", level="change").groupby(["early", "task"])
    assert (sizes.max() == sizes.min()).all(), "all of one size"
    assert [record["name"] for record in gated.meta["rows"]].count("early identification replaced") == 1
    shown = " ".join(figure.get_text() for figure in gated.figure("causal").legends[0].get_texts())
    assert "third" in shown


def test_a_circuit_that_is_merely_beside_its_task_is_not() -> None:
    """Two tasks, whose circuits are active each in its own texts, but are switched on by nothing that names the task."""
    result = study(gated=False, tasks=[worded(t) for t in range(2)])
    lost, on, _ = (claims(result, ending) for ending in PER_EARLY)
    assert "holds" not in [claim.outcome for claim in lost]
    assert min(claim.measured for claim in lost) > 0.9
    assert [(claim.outcome, claim.explanation) for claim in on] == [("contradicted", "chance")] * 2
    assert result.table("causal")["way_there"].min() > 0.5, "there is a way to go"
    assert all("not run: a change towards a third task" in claim.words for claim in on)


def test_where_no_circuit_tells_the_classes_there_is_nothing_to_lose() -> None:
    """Classes by lot: neurons that were chosen for them on some texts say nothing of others."""

    def by_lot(task: Task, seed: int) -> Task:
        label = np.random.default_rng(seed).permutation([e.label for e in task.examples])
        examples = [dataclasses.replace(e, label=int(c)) for e, c in zip(task.examples, label, strict=True)]
        return dataclasses.replace(task, examples=tuple(examples))

    result = study(gated=False, tasks=[by_lot(worded(t), t) for t in range(2)])
    assert [claim.outcome for claim in claims(result, PER_EARLY[0])] == ["not tested"] * 2


def test_what_the_skip_connection_carries_is_not_what_later_layers_write() -> None:
    """Where layers after the router's add nothing, nothing is read as added, however far the stream is moved."""
    model = gated_llama(gated=True)
    with torch.no_grad():
        for layer in model.module.model.layers[2:]:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    late, texts = Late(model, 1, 512), encode(model, ["w1 w2 w3", "w4 w5 w6 w7"])
    still, moved = (late.read(texts, shift=shift) for shift in (None, np.full(32, 5.0)))
    np.testing.assert_array_equal(moved[1], np.zeros((2, 32)))
    assert np.abs(moved[0] - still[0]).max() > 0.1, "the neurons see it"


def test_tokens_that_the_router_does_not_read_are_not_moved() -> None:
    model = gated_llama(gated=True)
    late, alone = Late(model, 1, 512), encode(model, ["w1"])
    still, moved = (late.read(alone, shift=shift) for shift in (None, np.full(32, 5.0)))
    np.testing.assert_array_equal(still[0], moved[0])


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"n_changes": 78}, "n_changes: 78 draws cannot show anything at 0.05 for 2 claims judged together; give at least 79"),
        ({"layer": 3}, "layer: layer 3 is the last, so nothing runs after it"),
    ],
)
def test_what_cannot_be_asked(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        moescope.route(gated_llama(gated=True), [worded(t) for t in range(2)], moescope.RouteSettings(**{**QUICK, **changed}))


def test_routing_is_not_moved() -> None:
    given = {"causal": True, "unknown": 0.2, "timed_texts": 3}
    with pytest.raises(
        InputError, match="causal: it moves the residual stream, and routing is read here; add features=residual"
    ):
        moescope.route("moe-tiny", [worded(t, 60) for t in range(2)], moescope.RouteSettings(**given))
