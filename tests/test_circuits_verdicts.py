"""Each verdict follows from its numbers: one table is taken through every case."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from moescope.studies.circuits.claims import best_cue, circuit_claims
from moescope.studies.circuits.claims_causal import ablation_claims, erasure_claims
from moescope.studies.circuits.controls import MAJORITY
from moescope.studies.circuits.single import TaskFindings
from moescope.types import Claim
from tests.made_features import QUICK, made_features, made_findings


@pytest.fixture(scope="module")
def found() -> TaskFindings:
    return made_findings(made_features("certainty", {5: 2.0, 21: 1.8}))


def controls(**changes: Any) -> pd.DataFrame:
    """A strong circuit at 90 % that nothing explains; ``changes`` sets cells as ``control__column=value``."""
    rows = {
        "circuit": {"accuracy": 0.90, "low": 0.86, "high": 0.94},
        "full_layer_probe": {"accuracy": 0.91, "low": 0.87, "high": 0.95},
        "embedding_layer": {"accuracy": 0.60, "low": 0.55, "high": 0.65},
        MAJORITY: {"accuracy": 0.50, "low": 0.50, "high": 0.50},
        "surface: final token": {"accuracy": 0.70, "low": 0.65, "high": 0.75},
        "surface: bag of words": {"accuracy": 0.65, "low": 0.60, "high": 0.70},
        "layer_matched_circuit": {"accuracy": 0.60, "low": 0.5, "high": 0.72},
        "permuted_labels": {"accuracy": 0.50, "low": 0.45, "high": 0.55, "p": 0.01},
        "rotated_basis": {"accuracy": 0.80, "gap": 0.1, "gap_low": 0.05, "gap_high": 0.15},
        "matched_subset": {"accuracy": 0.85},
    }
    for cell, value in changes.items():
        control, _, column = cell.partition("__")
        name = {"cue": "surface: final token", "random": "layer_matched_circuit", "permuted": "permuted_labels"}
        rows[name.get(control, control)][column] = value
    table = pd.DataFrame([{"task": "certainty", "control": name, **row} for name, row in rows.items()])
    return table


def claims(found: TaskFindings, table: pd.DataFrame, **tables: pd.DataFrame) -> dict[str, Claim]:
    whole = {**found.tables, "controls": table, **tables}
    return {c.name.removeprefix("certainty: "): c for c in circuit_claims({"certainty": found}, whole, QUICK)}


def test_the_best_cue_is_any_surface_row_or_the_embedding() -> None:
    table = controls().set_index("control")
    assert best_cue(table) == ("'final token'", 0.7)
    assert best_cue(controls(embedding_layer__accuracy=0.8).set_index("control")) == ("the embedding layer", 0.8)


@pytest.mark.parametrize(
    ("changes", "verdict", "why"),
    [
        ({}, "reproduced", "above the best trivial cue"),
        ({"circuit__low": 0.5}, "explained by chance", "majority"),
        ({"permuted__p": 0.2}, "explained by chance", "majority"),
        ({"cue__accuracy": 0.95}, "explained by a trivial cue", "'final token' alone reaches 95.0%"),
        ({"cue__accuracy": 0.88}, "explained by a trivial cue", "inside the interval"),
        ({"random__high": 0.93}, "not reproduced", "random neurons of the same layers"),
    ],
)
def test_a_handful_of_neurons(found: TaskFindings, changes: dict[str, float], verdict: str, why: str) -> None:
    claim = claims(found, controls(**changes))["4 neurons carry the task"]
    assert claim.verdict == verdict
    assert why in claim.note
    assert claim.published == pytest.approx(0.863)
    assert "the circuit where length and full stop are balanced 85.0%" in claim.note
    assert f"{claim.details['significant_neurons']} of 64 neurons" in claim.note


@pytest.mark.parametrize(
    ("changes", "two", "verdict"),
    [
        ({}, (0.90, 0.86), "reproduced"),
        ({}, (0.85, 0.80), "not reproduced"),
        ({}, (0.60, 0.49), "explained by chance"),
        ({"cue__accuracy": 0.9}, (0.90, 0.86), "explained by a trivial cue"),
    ],
)
def test_two_neurons(found: TaskFindings, changes: dict[str, float], two: tuple[float, float], verdict: str) -> None:
    accuracy = found.tables["accuracy"].copy()
    accuracy.loc[accuracy["k"] == 2, ["accuracy", "low"]] = two
    assert claims(found, controls(**changes), accuracy=accuracy)["2 neurons suffice"].verdict == verdict


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "reproduced"),
        ({"rotated_basis__gap_low": -0.01}, "not reproduced"),
        ({"circuit__low": 0.49}, "explained by chance"),
    ],
)
def test_the_unit(found: TaskFindings, changes: dict[str, float], verdict: str) -> None:
    assert claims(found, controls(**changes))["single neurons are the unit"].verdict == verdict


@pytest.mark.parametrize(
    ("cue", "at", "last_low", "verdict"),
    [
        (0.7, {"loss": 0.0, "loss_low": -0.01, "loss_high": 0.01}, 0.85, "reproduced"),
        (0.7, {"loss": 0.0, "loss_low": -0.05, "loss_high": 0.05}, 0.85, "measured"),
        (0.7, {"loss": 0.1, "loss_low": 0.05, "loss_high": 0.15}, 0.85, "not reproduced"),
        (0.9, {"loss": 0.0, "loss_low": -0.01, "loss_high": 0.01}, 0.85, "explained by a trivial cue"),
        (0.7, {"loss": 0.0, "loss_low": -0.01, "loss_high": 0.01}, 0.50, "explained by chance"),
    ],
)
def test_done_early(found: TaskFindings, cue: float, at: dict[str, float], last_low: float, verdict: str) -> None:
    depth = found.tables["depth"].copy()
    curve = depth["curve"] == "circuit_reselected"
    for column, value in {"accuracy": 0.9, "low": 0.85, **at}.items():
        depth.loc[curve & (depth["layer"] == 0), column] = value
    depth.loc[curve & (depth["layer"] == 3), "low"] = last_low
    claim = claims(found, controls(cue__accuracy=cue), depth=depth)["done early"]
    assert claim.verdict == verdict
    assert "at 25% depth" in str(claim.measured)


def test_what_holds_by_construction_is_called_that(found: TaskFindings) -> None:
    made = claims(found, controls())
    assert made["classes oppose on PC1"].verdict == "identity"
    assert made["largest functional column"].verdict == "identity"  # coordinate 5 in layers 0 and 1
    assert made["largest functional column"].measured >= 2
    other = made_findings(made_features("certainty", {5: 2.0, 21: 1.8}, kind="mlp_act"))
    assert claims(other, controls())["largest functional column"].verdict == "measured"


def test_without_label_permutations_there_is_no_p(found: TaskFindings) -> None:
    table = controls()
    claim = claims(found, table[table["control"] != "permuted_labels"])["4 neurons carry the task"]
    assert claim.p is None
    assert claim.verdict == "reproduced"


def test_ablation_and_erasure_say_what_they_found() -> None:
    row = {
        "task": "t", "mode": "mean", "off_task": False, "baseline": 0.9, "random_mean": 0.0, "random_low": -0.01,
        "random_high": 0.01, "n_random": 100, "norm_ratio": 1.0,
    }  # fmt: skip
    frame = pd.DataFrame(
        [
            {**row, "target": "probe_accuracy", "k": k, "effect": effect, "p": p}
            for k, effect, p in ((1, 0.0, 0.9), (5, -0.2, 0.01))
        ]
        + [{**row, "target": "wikitext_loss", "k": 5, "effect": 0.001, "p": 0.4, "norm_ratio": 0.1}]
    )
    probe, loss = ablation_claims(frame, QUICK)
    assert probe.name == "t: switching the circuit off harms a probe downstream"
    assert (probe.measured, probe.p) == (-0.2, 0.01)
    assert probe.note.startswith("yes:")
    assert "matching failed" not in probe.note
    assert loss.note.startswith("no:")
    assert "matching failed" in loss.note
    erased = pd.DataFrame(
        [
            {**row, "layer": layer, "target": "probe_accuracy", "effect": effect, "p": 0.05}
            for layer, effect in ((0, -0.1), (1, -0.4))
        ]
    )
    (claim,) = erasure_claims(erased)
    assert claim.measured == -0.4
    assert "after layer 1" in claim.note
