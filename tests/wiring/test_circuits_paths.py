"""What a change of one circuit does to another, and along a column, where a layer is made to connect them or to do nothing."""

from __future__ import annotations

import numpy as np
import pytest

from moescope.study.result import StudyResult
from moescope.types import Claim
from tests.wiring import call
from tests.wiring.planted import lookup_model, squares, task, words_of

WIDTH, ROWS, NEURON, OTHER = 64, 120, 7, 20
CLASSES = np.random.default_rng(99).permutation(np.arange(ROWS) % 2)
SIGN = 2.0 * CLASSES - 1.0


def study(*, to: int | None = None, site: str = "resid") -> StudyResult:
    """A in one coordinate of two layers, B in another; the second layer adds the first's square to ``to``."""
    words, tasks = {}, []
    for i, (name, column) in enumerate((("A", NEURON), ("B", OTHER))):
        x = np.random.default_rng(30 + i).normal(size=(ROWS, WIDTH))
        x[:, 32:] *= 3
        x[:, column] += 3 * SIGN
        own = words_of(x, name.lower())
        words |= own
        tasks.append(task([*own], CLASSES, name=name))
    model = lookup_model(words, layers=2)
    if to is not None:
        squares(model, 1, NEURON, 1.5 * np.eye(WIDTH)[to])
    return call.circuits(model, *tasks, k=2, site=site, paths="mean")


def said(result: StudyResult, about: str) -> Claim:
    found = [c for c in result.claims if about in c.statement]
    assert len(found) == 1
    return found[0]


@pytest.fixture(scope="module")
def apart() -> StudyResult:
    return study()


def test_circuits_without_a_connection_have_none(apart: StudyResult) -> None:
    for about in ("A's 2 neurons act no more on B's", "B's 2 neurons act no more on A's"):
        claim = said(apart, about)
        assert (claim.outcome, claim.explanation) == ("holds", "none found")
        assert claim.measured == pytest.approx(0, abs=1e-3)


def test_a_column_that_only_the_skip_connection_carries_is_not_refined(apart: StudyResult) -> None:
    for name in "AB":
        claim = said(apart, f"{name}: along its columns the blocks act")
        assert (claim.outcome, claim.explanation) == ("contradicted", "chance")
        assert claim.measured == pytest.approx(0, abs=1e-3)
    row = apart.tables["paths"].query("kind == 'column'").iloc[0]
    assert row["whole"] == pytest.approx(row["skip"], rel=1e-3)
    assert row["whole"] > 0.5


def test_what_was_read_and_judged_is_on_record(apart: StudyResult) -> None:
    # three routes a task, each the circuit and 99 random sets, from the first layer's output on
    assert 0 < apart.meta["forward_tokens"]["paths"] <= 2 * 3 * 100 * ROWS // 2 + 200
    assert {r["name"] for r in apart.meta["rows"]} >= {"A: interventions", "B: interventions"}


def test_a_planted_connection_is_found() -> None:
    claim = said(study(to=OTHER), "A's 2 neurons act no more on B's")
    assert claim.outcome == "contradicted"
    assert isinstance(claim.measured, float)
    assert claim.measured > 0.3


def test_a_planted_refinement_is_found() -> None:
    result = study(to=NEURON)
    claim = said(result, "A: along its columns the blocks act")
    assert claim.outcome == "holds"
    assert isinstance(claim.measured, float)
    assert claim.measured > 0.2
    assert said(result, "B: along its columns the blocks act").outcome == "contradicted"


def test_where_there_is_no_path_nothing_is_said() -> None:
    result = study(site="resid:1")
    assert said(result, "A's 2 neurons act no more on B's").outcome == "not tested"
    assert said(result, "A: along its columns").outcome == "not tested"
