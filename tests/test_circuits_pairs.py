"""Two tasks: overlap beside chance and ceiling, transfer beside refit, and what each verdict rests on."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from moescope.errors import InputError
from moescope.studies.circuits.claims_pairs import language_claims, pair_claims
from moescope.studies.circuits.features import Features
from moescope.studies.circuits.language import language_rows
from moescope.studies.circuits.pairs import cross_task_rows, native_row, overlap_rows, task_map_rows
from moescope.studies.circuits.single import TaskFindings, overlap_ks
from moescope.types import Claim
from tests.made_features import QUICK, made_features, made_findings

HERE, THERE = {5: 2.0, 20: 1.8, 21: 1.8, 50: 1.8}, {9: 2.0, 33: 1.8, 40: 1.8, 60: 1.8}


@pytest.fixture(scope="module")
def tasks() -> dict[str, TaskFindings]:
    """Two tasks of their own neurons, and one that shares the first's, with the opposite sign."""
    made = {
        "a": made_features("a", HERE, seed=1),
        "b": made_features("b", THERE, seed=2),
        "c": made_features("c", {k: -v for k, v in HERE.items()}, seed=3),
    }
    return {name: made_findings(features) for name, features in made.items()}


def test_overlap_stands_beside_chance_and_ceiling(tasks: dict[str, TaskFindings]) -> None:
    ks = overlap_ks(QUICK, 64)
    rows = pd.DataFrame(overlap_rows(tasks["a"], tasks["b"], ks)).set_index("k")
    assert rows.loc[4, "overlap"] == 0
    assert rows.loc[4, "expected"] == 0.25
    assert rows.loc[4, "p"] == 1
    assert rows.loc[4, "kuncheva"] < 0
    assert rows.loc[4, ["split_half_a", "split_half_b"]].min() > 3.5
    assert rows.loc[4, "split_half_cross"] < 0.5
    assert rows.loc[4, "p_disjoint"] == pytest.approx(60 * 59 * 58 * 57 / (64 * 63 * 62 * 61))
    same = pd.DataFrame(overlap_rows(tasks["a"], tasks["c"], ks)).set_index("k")
    assert same.loc[4, "overlap"] == 4
    assert same.loc[4, "p"] < 1e-5
    assert same.loc[4, "split_half_cross"] > 3.5


def cross(a: TaskFindings, b: TaskFindings) -> pd.DataFrame:
    return pd.DataFrame(cross_task_rows(a, b, QUICK)).set_index("method")


def test_transfer_is_not_refit(tasks: dict[str, TaskFindings]) -> None:
    """The third task lives in the first's neurons with the signs turned: transfer is far below chance, refit far above."""
    rows = cross(tasks["a"], tasks["c"])
    assert rows.loc["transfer_accuracy", "value"] < 0.2
    assert rows.loc["transfer_auroc", "value"] > 0.9
    assert rows.loc["refit", "value"] > 0.85
    assert rows.loc["refit_random", "value"] < rows.loc["refit", "value"] - 0.2
    model = LinearDiscriminantAnalysis(solver="lsqr")
    own, other, chosen = tasks["a"].features, tasks["c"].features, tasks["a"].ranking[:4]
    model.fit(own.x[:, chosen], own.y)
    assert rows.loc["transfer_accuracy", "value"] == (model.predict(other.x[:, chosen]) == other.y).mean()
    apart = cross(tasks["a"], tasks["b"])
    assert apart.loc["refit", "low"] < 0.52
    assert set(apart.index) == {
        "transfer_accuracy", "transfer_auroc", "refit", "refit_top_variance", "refit_random", "refit_layer_matched",
    }  # fmt: skip


def test_tasks_of_different_class_counts_are_refit_only(tasks: dict[str, TaskFindings]) -> None:
    three = made_findings(made_features("three", HERE, n_classes=3, rows=180))
    assert not {"transfer_accuracy", "transfer_auroc"} & set(cross(tasks["a"], three).index)
    assert cross(three, tasks["a"]).loc["refit", "value"] > 0.85


def pair_tables(tasks: dict[str, TaskFindings]) -> dict[str, pd.DataFrame]:
    found = list(tasks.values())
    rows = [row for a in found for b in found for row in ([native_row(a, QUICK)] if a is b else cross_task_rows(a, b, QUICK))]
    pairs = [(a, b) for i, a in enumerate(found) for b in found[i + 1 :]]
    ks = overlap_ks(QUICK, 64)
    return {
        "cross_task": pd.DataFrame(rows),
        "overlap": pd.DataFrame([row for a, b in pairs for row in overlap_rows(a, b, ks)]),
        "controls": pd.DataFrame([{"task": name, "control": "majority class", "accuracy": 0.5} for name in tasks]),
        "task_map": pd.DataFrame(task_map_rows(found, QUICK)),
    }


def verdicts(tasks: dict[str, TaskFindings]) -> dict[str, Claim]:
    return {claim.name: claim for claim in pair_claims(list(tasks), pair_tables(tasks), QUICK)}


def test_verdicts_of_pairs(tasks: dict[str, TaskFindings]) -> None:
    claims = verdicts(tasks)
    assert claims["a and b: top-4 circuits do not overlap"].verdict == "reproduced"
    assert claims["a and c: top-4 circuits do not overlap"].verdict == "not reproduced"
    assert claims["a circuit is at chance on c"].verdict == "not reproduced"
    assert claims["a circuit is at chance on c"].measured < 0.2  # and yet the neurons carry it
    assert claims["a circuit is at chance on b"].verdict == "reproduced"  # 4 of 64 carry b, random sets often hit one
    tables = pair_tables({name: tasks[name] for name in "ab"})
    random = tables["cross_task"]["method"] == "refit_layer_matched"
    tables["cross_task"].loc[random, "high"] = 0.51
    rare = {claim.name: claim for claim in pair_claims(["a", "b"], tables, QUICK)}["a circuit is at chance on b"]
    assert rare.verdict == "explained by chance"
    assert "so are random neurons of those layers" in rare.note
    alike = claims["pairs of tasks alike by circuit"]
    assert alike.measured == 1
    assert "a and c" in alike.note


def test_a_task_without_signal_proves_nothing() -> None:
    tasks = {"a": made_findings(made_features("a", HERE)), "n": made_findings(made_features("n", {}, seed=8))}
    claims = verdicts(tasks)
    overlap = claims["a and n: top-4 circuits do not overlap"]
    if overlap.p is not None and overlap.p >= 0.05:
        assert overlap.verdict == "explained by chance"
        assert "hardly repeats itself" in overlap.note
    assert claims["a circuit is at chance on n"].verdict == "explained by chance"
    assert "so are n's own neurons" in claims["a circuit is at chance on n"].note


def test_the_specialization_ratio_is_twice_the_own_accuracy_when_transfer_is_at_a_half(
    tasks: dict[str, TaskFindings],
) -> None:
    tables = pair_tables({name: tasks[name] for name in "ab"})
    transfer = tables["cross_task"]["method"] == "transfer_accuracy"
    off = tables["cross_task"]["source"] != tables["cross_task"]["target"]
    tables["cross_task"].loc[transfer & off, "value"] = 0.5
    claims = {c.name: c for c in pair_claims(["a", "b"], tables, QUICK)}
    for name in "ab":
        claim = claims[f"{name}: specialization ratio"]
        assert claim.verdict == "identity"
        assert claim.measured == pytest.approx(claim.null)
        assert claim.measured == pytest.approx(2 * tasks[name].circuit_hits(4).mean())
    own = [float(tasks[name].circuit_hits(4).mean()) for name in "ab"]
    assert claims["a and b: symmetry score"].measured == pytest.approx(abs(own[0] - own[1]))


def test_the_task_map_sees_shared_neurons_and_directions(tasks: dict[str, TaskFindings]) -> None:
    rows = pd.DataFrame(task_map_rows(list(tasks.values()), QUICK)).set_index(["measure", "a", "b"])
    assert len(rows) == 6
    assert rows.loc[("circuit", "a", "c"), "p_adjusted"] < 0.01 < rows.loc[("circuit", "a", "b"), "p_adjusted"]
    assert (rows["p_adjusted"] >= rows["p"]).all()
    # At the last site the first and third tasks share coordinate 50.
    assert rows.loc[("probe", "a", "c"), "value"] > rows.loc[("probe", "a", "c"), "chance"] + 0.3
    assert rows.loc[("probe", "a", "c"), "p"] == 1 / 50
    assert rows.loc[("probe", "a", "b"), "p"] > 0.05


def bilingual(shift: int, shared_groups: bool) -> Features:
    """A task in two languages; in the second its neurons lie ``shift`` columns further on."""
    features = made_features("words", {}, rows=240, languages=("de", "en"), seed=5)
    spoken = np.asarray([e.language for e in features.task.examples])
    for column in HERE:
        features.x[:, column] += 2 * (features.y - 0.5) * (spoken == "de")
        features.x[:, column + shift] += 2 * (features.y - 0.5) * (spoken == "en")
    if shared_groups:
        return dataclasses.replace(features, groups=np.full(240, "all"))
    return features


def test_a_circuit_that_speaks_both_languages_and_one_that_does_not() -> None:
    for shift, carries in ((0, True), (2, False)):
        rows = pd.DataFrame(language_rows(bilingual(shift, False), QUICK))
        table = rows.set_index(["train_language", "test_language"])
        assert len(table) == 4
        assert table.loc[[("de", "de"), ("en", "en")], "accuracy"].min() > 0.85
        away = table.loc[[("de", "en"), ("en", "de")], "accuracy"]
        assert away.min() > 0.85 if carries else away.max() < 0.6
        (claim,) = language_claims(rows)
        assert claim.measured == away.min()
        assert ("not above" in claim.note) != carries


def test_translations_of_test_texts_are_left_out_of_the_fit() -> None:
    features = bilingual(0, False)
    # Each German pair of rows is a translation of the English pair after it: one group.
    groups = (np.arange(240) // 4).astype(str)
    rows = language_rows(dataclasses.replace(features, groups=groups), QUICK)
    assert {(r["train_language"], r["test_language"]) for r in rows} == {("de", "de"), ("en", "en")}


def test_tasks_without_languages_have_no_table(tasks: dict[str, TaskFindings]) -> None:
    assert language_rows(tasks["a"].features, QUICK) == []
    one = made_features("one", {}, rows=24, languages=("de", "en"))
    few = dataclasses.replace(one, groups=np.where(np.arange(24) < 12, "x", "y"))
    with pytest.raises(InputError, match="language 'de'"):
        language_rows(few, QUICK)
