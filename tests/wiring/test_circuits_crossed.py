"""Texts with two labels, where it is known whether both live in one neuron, and whether one changes how the other is told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from moescope.study.result import StudyResult
from moescope.types import Claim
from tests.wiring import call
from tests.wiring.planted import lookup_model, task, words_of

WIDTH, ROWS, ONE, OTHER = 64, 320, 7, 20
A, B = np.divmod(np.random.default_rng(5).permutation(np.arange(ROWS) % 4), 2)


def study(folder: Path, x: np.ndarray) -> StudyResult:
    """A word for every row of x (N, D), with the labels a and b; and a task that needs to be there."""
    words = words_of(x)
    file = folder / "crossed.jsonl"
    rows = ({"text": t, "a": ("no", "yes")[i], "b": ("low", "high")[j]} for t, i, j in zip(words, A, B, strict=True))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = task([*words][:60], A[:60])
    more = {"crossed": f"{file}?labels=a,b", "crossed_random": 79, "ablate_rows": 200}
    return call.circuits(lookup_model(words), made, **more)  # type: ignore[arg-type]


def noise() -> np.ndarray:
    x = np.random.default_rng(3).normal(size=(ROWS, WIDTH))
    x[:, 40:60] *= 2.5  # as wide as a planted coordinate: what random sets are matched with
    return x


def said(result: StudyResult, about: str) -> Claim:
    (claim,) = [c for c in result.claims if about in c.statement]
    return claim


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    """Each label in a neuron of its own."""
    x = noise()
    x[:, ONE] += 2.0 * (2 * A - 1)
    x[:, OTHER] += 2.0 * (2 * B - 1)
    return study(tmp_path_factory.mktemp("apart"), x)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    """Both labels in one neuron, each on its own account."""
    x = noise()
    x[:, ONE] += 2.0 * (2 * A - 1) + 2.0 * (2 * B - 1)
    return study(tmp_path_factory.mktemp("shared"), x)


@pytest.fixture(scope="module")
def turned(tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    """Both labels in one neuron; the sign by which it tells b depends on a."""
    x = noise()
    x[:, ONE] += 4.0 * (2 * A - 1) + 2.0 * (2 * A - 1) * (2 * B - 1)
    return study(tmp_path_factory.mktemp("turned"), x)


def test_neurons_of_their_own_are_edited_one_by_one(apart: StudyResult) -> None:
    claim = said(apart, "double dissociation")
    assert (claim.outcome, claim.explanation) == ("holds", "none found")
    cells = apart.tables["crossed_edits"].set_index(["edited", "read"])
    assert min(cells.loc[(n, n), "cost"] for n in "ab") > 0.5
    assert max(abs(cells.loc[(n, m), "cost"]) for n, m in ("ab", "ba")) < 0.15
    assert cells.loc[("contrast", "contrast"), "cost"] == claim.measured
    assert abs(cells.loc[("contrast", "contrast"), "random"]) < 0.15


def test_a_circuit_of_its_own_carries_over(apart: StudyResult) -> None:
    for name, other in ("ab", "ba"):
        claim = said(apart, f"{name}: the circuit of texts of one {other}")
        assert claim.outcome == "holds"
        assert claim.control is not None
        assert claim.control.value == pytest.approx(0.5, abs=0.08)


def test_one_neuron_for_both_is_not_edited_for_one(shared: StudyResult) -> None:
    claim = said(shared, "double dissociation")
    assert claim.outcome == "contradicted"
    assert claim.measured == pytest.approx(0, abs=0.05)
    assert shared.tables["crossed_edits"]["cost"].head(4).min() > 0.3


def test_a_circuit_that_turns_with_the_other_label_does_not_carry_over(turned: StudyResult) -> None:
    assert said(turned, "b: the circuit of texts of one a").outcome == "contradicted"
    rows = turned.tables["crossed_strata"].query("property == 'b' and tested_on == 'both'").set_index("fitted_on")
    assert rows.loc["same", "value"] > 0.85
    assert rows.loc["opposite", "value"] < 0.6


def test_rows_that_judge_an_edit_chose_and_fitted_nothing(apart: StudyResult) -> None:
    (rows,) = [row for row in apart.meta["rows"] if row["name"].endswith(": edits")]
    assert rows["fit"] == rows["select"]
    assert rows["judge"]["rows"] == ROWS // 2
    assert apart.meta["forward_tokens"]["crossed"] == ROWS


def test_noise_has_no_circuit_to_keep_or_lose(tmp_path: Path) -> None:
    """What is fitted on rows that judge would know their noise."""
    result = study(tmp_path, noise())
    assert said(result, "double dissociation").outcome == "not tested"
    assert said(result, "b: the circuit of texts of one a").outcome == "not tested"
    assert result.tables["crossed_strata"].query("tested_on == 'both'")["value"].max() < 0.6
