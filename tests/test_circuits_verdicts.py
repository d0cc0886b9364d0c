"""Each verdict follows from its numbers: one table of effects is taken through every case."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

from moescope.errors import InputError
from moescope.stats import Difference
from moescope.studies.circuits.claims import circuit_claims
from moescope.studies.circuits.controls import MAJORITY
from moescope.studies.circuits.settings import PRIMARY, CircuitSettings
from moescope.studies.circuits.single import TaskFindings
from moescope.studies.circuits.spread import effect_of
from moescope.study.verdicts import reading, verdicts
from moescope.types import Claim
from tests.made_features import QUICK, made_features, made_findings

STRONG = {
    "chance": 0.40, "cue": 0.10, "layer matched": 0.30, "control task": 0.40, "rotation": 0.10, "twin": 0.30,
    "direction": 0.0, "template": 0.30, "matched": 0.35, "probe: chance": 0.41, "two": 0.0, "two: chance": 0.40,
    "two: cue": 0.10, "early": 0.0, "early: chance": 0.40, "early: cue": 0.10,
}  # fmt: skip


@pytest.fixture(scope="module")
def found() -> TaskFindings:
    return made_findings(made_features("certainty", {5: 2.0, 21: 1.8}))


def effects(half: float = 0.02, **changes: float) -> pd.DataFrame:
    """A strong circuit that nothing explains, every interval of ``half``; ``changes`` sets values, of spaces ``_``."""
    values = STRONG | {name.replace("__", ": ").replace("_", " "): value for name, value in changes.items()}
    rows = [
        {"effect": name, "value": v, "low": v - half, "high": v + half, "p": 1e-6 if abs(v) > half else 0.5}
        for name, v in values.items()
        if v is not None
    ]
    return pd.DataFrame(rows).assign(task="certainty", against="91.0%", k=[1 if r["effect"] == "early" else 2 for r in rows])


CONTROLS = pd.DataFrame(
    [
        {"task": "certainty", "control": name, "accuracy": value, "balanced": value, "note": "as it is"}
        for name, value in {
            "circuit": 0.9, "circuit_global": 0.92, "full_layer_probe": 0.91, "chosen_cue": 0.7, "one_direction": 0.9,
            "layer_matched_circuit": 0.6, "random_circuit": 0.55, "rotated_basis": 0.8, "fixed_template": 0.8,
            "matched_subset": 0.85, "without_massive": 0.9, MAJORITY: 0.5,
        }.items()
    ]
)  # fmt: skip


def claims(found: TaskFindings, table: pd.DataFrame, settings: CircuitSettings = QUICK) -> dict[str, Claim]:
    whole = {**found.tables, "controls": CONTROLS, "effects": table}
    judged = verdicts(circuit_claims({"certainty": found}, whole, settings))
    return {c.statement.removeprefix("certainty: "): c for c in judged}


@pytest.mark.parametrize(
    ("changes", "outcome", "explanation", "why"),
    [
        ({}, "holds", "none found", "beyond the best trivial cue"),
        ({"chance": 0.0}, "contradicted", "chance", "3.0 points or more is excluded"),
        ({"cue": 0.0}, "holds", "trivial cue", "the best trivial cue"),
        ({"twin": 0.0}, "holds", "trivial cue", "a randomly initialised twin"),
        ({"control_task": 0.0}, "holds", "trivial cue", "random labels of the same inputs"),
        ({"cue": 0.015}, "inconclusive", None, "neither an effect nor its absence"),
    ],
)
def test_a_handful_of_neurons(
    found: TaskFindings, changes: dict[str, float], outcome: str, explanation: str | None, why: str
) -> None:
    claim = claims(found, effects(**changes))["4 neurons tell the classes apart"]
    assert (claim.outcome, claim.explanation) == (outcome, explanation), claim.words
    assert why in claim.words
    assert claim.published is not None
    assert claim.published.value == pytest.approx(0.863)
    assert claim.interval == pytest.approx((0.5 + claims_value(changes) - 0.02, 0.5 + claims_value(changes) + 0.02))
    assert f"{claim.details['significant_neurons']} of 64 neurons" in claim.words


def claims_value(changes: dict[str, float]) -> float:
    return changes.get("chance", STRONG["chance"])


def test_a_control_that_did_not_run_is_named_and_beaten_by_nobody(found: TaskFindings) -> None:
    table = effects()
    claim = claims(found, table[~table["effect"].isin(["twin", "control task"])])["4 neurons tell the classes apart"]
    assert claim.outcome == "holds"
    assert "not run: an untrained twin (twin is off); a control task" in claim.words
    assert "beyond a randomly initialised twin" not in claim.words


@pytest.mark.parametrize(
    ("changes", "outcome", "explanation"),
    [
        ({}, "holds", "none found"),
        ({"two": -0.06}, "contradicted", None),
        ({"two": -0.02}, "inconclusive", None),
        ({"two__chance": 0.0}, "holds", "chance"),
        ({"two__cue": 0.0}, "holds", "trivial cue"),
        # two neurons at 80 % beside a probe at 42.5 %, forty rows
        ({"two": 0.375, "probe__chance": -0.075}, "inconclusive", None),
    ],
)
def test_two_neurons(found: TaskFindings, changes: dict[str, float], outcome: str, explanation: str | None) -> None:
    claim = claims(found, effects(**changes))["2 neurons tell the classes apart as well as a whole layer"]
    assert (claim.outcome, claim.explanation) == (outcome, explanation), claim.words


@pytest.mark.parametrize(
    ("changes", "outcome", "explanation"),
    [
        ({}, "holds", "none found"),
        ({"rotation": 0.0}, "contradicted", None),
        ({"rotation": 0.015}, "inconclusive", None),
        ({"chance": 0.0, "rotation": 0.05}, "holds", "chance"),
    ],
)
def test_the_unit(found: TaskFindings, changes: dict[str, float], outcome: str, explanation: str | None) -> None:
    claim = claims(found, effects(**changes))["single neurons are the unit"]
    assert (claim.outcome, claim.explanation) == (outcome, explanation), claim.words


@pytest.mark.parametrize(
    ("changes", "outcome", "explanation"),
    [
        ({}, "holds", "none found"),
        ({"early": -0.1}, "contradicted", None),
        ({"early": -0.02}, "inconclusive", None),
        ({"early__cue": 0.0}, "holds", "trivial cue"),
        ({"early__chance": 0.0}, "holds", "chance"),
    ],
)
def test_done_early(found: TaskFindings, changes: dict[str, float], outcome: str, explanation: str | None) -> None:
    claim = claims(found, effects(**changes))["the first layers, to layer 1, keep what all layers know"]
    assert (claim.outcome, claim.explanation) == (outcome, explanation), claim.words
    assert claim.id == "H12"


def test_what_holds_by_construction_is_called_that(found: TaskFindings) -> None:
    made = claims(found, effects())
    assert made["neurons take opposite signs for the classes"].outcome == "identity"
    column = made["one coordinate fills several places of the top 10"]
    assert column.outcome == "identity"  # coordinate 5 in layers 0 and 1
    assert column.measured >= 2
    other = made_findings(made_features("certainty", {5: 2.0, 21: 1.8}, kind="mlp_act"))
    assert claims(other, effects())["one coordinate fills several places of the top 10"].outcome == "descriptive"


def test_every_control_that_is_printed_enters_a_claim(found: TaskFindings) -> None:
    made = claims(found, effects())
    by_control = {claim.control.name for claim in made.values() if claim.control is not None}
    assert by_control >= {"chosen trivial cue", "random neurons of the same layers", "full-layer probe", "random bases"}
    for statement, effect in (
        ("the 4 neurons of the circuit tell more than random ones of their layers", "layer matched"),
        ("the circuit reads the text, not only its last words", "template"),
        ("the circuit works where length and full stop are balanced", "matched"),
    ):
        assert made[statement].outcome == "holds"
        assert claims(found, effects(**{effect.replace(" ", "_"): 0.0}))[statement].outcome == "contradicted"


def test_the_family_is_adjusted_and_needs_its_draws(found: TaskFindings) -> None:
    made = claims(found, effects())
    family = [claim for claim in made.values() if claim.family == "certainty"]
    assert len(family) == len(PRIMARY)
    assert all(claim.p_adjusted >= claim.p for claim in family)
    with pytest.raises(InputError, match="give at least 99"):
        dataclasses.replace(QUICK, n_label_permutations=98)
    assert CircuitSettings().n_label_permutations >= len(PRIMARY) / CircuitSettings().alpha - 1


def test_forty_rows_show_nothing_either_way(found: TaskFindings) -> None:
    claim = claims(found, effects(half=0.2, chance=0.15))["4 neurons tell the classes apart"]
    assert claim.outcome == "inconclusive"
    assert np.isclose(claim.measured, 0.9)


def test_an_effect_of_a_pair_may_be_absent_and_keeps_its_kind_and_unit() -> None:
    found = effect_of(Difference(0.0, -0.01, 0.01, 0.9), "the other", 0.03, kind="none found", share=False)
    assert (found.kind, found.no_worse, found.seen, found.share) == ("none found", False, False, False)
    assert reading(found, found.p) == "absent"
