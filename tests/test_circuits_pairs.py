"""Two tasks: overlap beside chance and ceiling, transfer beside refit, and what each verdict rests on."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from moescope.errors import InputError
from moescope.select.ranking import rank
from moescope.select.sums import divergence, fold_class_sums
from moescope.stats import permuted_label_matrix
from moescope.studies.circuits.claims_pairs import language_claims, pair_claims
from moescope.studies.circuits.features import Features
from moescope.studies.circuits.language import language_rows
from moescope.studies.circuits.overlap import coordinates, permuted_rankings
from moescope.studies.circuits.pairs import Ranked, cross_task_rows, native_row, overlap_rows, task_map_rows
from moescope.studies.circuits.single import TaskFindings, overlap_ks
from moescope.study.verdicts import verdicts
from moescope.types import Claim, Site
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


@pytest.fixture(scope="module")
def units() -> dict[str, TaskFindings]:
    """The first and third task again, where every column is a coordinate of its own."""
    made = {
        "a": made_features("a", HERE, seed=1, kind="mlp_act"),
        "b": made_features("b", THERE, seed=2, kind="mlp_act"),
        "c": made_features("c", {k: -v for k, v in HERE.items()}, seed=3, kind="mlp_act"),
    }
    return {name: made_findings(features) for name, features in made.items()}


def ranked(tasks: dict[str, TaskFindings]) -> dict[str, Ranked]:
    return {name: Ranked.of(found, QUICK, 32, turn=i) for i, (name, found) in enumerate(tasks.items())}


def test_overlap_stands_beside_permuted_labels_and_ceiling(
    tasks: dict[str, TaskFindings], units: dict[str, TaskFindings]
) -> None:
    """The first task's neurons 5 and 21 are coordinate 5 in two layers, and 20 and 50 coordinates 4 and 2."""
    ks = overlap_ks(QUICK, 64)
    rows = pd.DataFrame(overlap_rows("a", "b", ranked(tasks), ks)).set_index("k")
    assert rows.loc[4, ["distinct_a", "distinct_b", "overlap"]].tolist() == [3, 4, 0]
    assert 0.2 < rows.loc[4, "expected"] < 1.5
    assert rows.loc[4, "p"] > 0.05
    assert rows.loc[4, ["split_half_a", "split_half_b"]].min() > 2.5
    assert rows.loc[4, "split_half_cross"] < 0.5
    assert rows.loc[4, "gap_low"] > 0.3
    same = pd.DataFrame(overlap_rows("a", "c", ranked(tasks), ks)).set_index("k")
    assert same.loc[4, "overlap"] == 3
    same = pd.DataFrame(overlap_rows("a", "c", ranked(units), ks)).set_index("k")
    assert same.loc[4, "overlap"] == 4
    assert same.loc[4, "p"] <= 0.1  # labels that keep some of the class by chance draw all of its neurons
    assert same.loc[4, "split_half_cross"] > 3.5
    assert same.loc[4, "gap_low"] < 0 < same.loc[4, "gap_high"]


def test_an_index_is_one_coordinate_in_the_stream_alone() -> None:
    stream = made_features("x", {}, layers=3, width=4).columns
    assert coordinates(stream).tolist() == [0, 1, 2, 3] * 3
    units = made_features("x", {}, layers=3, width=4, kind="mlp_act").columns
    assert sorted(coordinates(units).tolist()) == list(range(12))
    mixed = dataclasses.replace(stream, sites=(Site("resid", 0), Site("mlp_act", 0), Site("resid", 1)))
    assert len(set(coordinates(mixed).tolist())) == 8


@pytest.mark.parametrize("sigma", ["pooled", "total", "negative"])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_rankings_of_permuted_labels_are_those_of_the_divergence(sigma: str, n_classes: int) -> None:
    features = made_features("x", HERE, n_classes=n_classes, rows=90)
    features.x[:, 3] = 7.0  # never varies
    drawn = permuted_rankings(features, sigma, n=70, k=5, seed=4)  # type: ignore[arg-type]
    labels = permuted_label_matrix(features.y, features.groups, 70, np.random.default_rng(4))
    for row in (0, 69):
        sums = fold_class_sums(features.x, labels[row], np.zeros(90, np.int64))
        assert drawn[row].tolist() == rank(divergence(*sums.total(), sigma=sigma))[:5].tolist()  # type: ignore[arg-type]


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
        "transfer_accuracy", "transfer_auroc", "refit", "refit_top_variance", "own", "refit_random", "refit_layer_matched",
    }  # fmt: skip
    assert rows.loc["refit", "gap_low"] > 0.1
    assert rows.loc["transfer_auroc", "gap_high"] < -0.3  # its polarity is turned
    assert apart.loc["refit", "gap"] == pytest.approx(
        apart.loc["refit", "value"] - apart.loc["refit_layer_matched", "value"], abs=1e-6
    )


def test_tasks_of_different_class_counts_are_refit_only(tasks: dict[str, TaskFindings]) -> None:
    three = made_findings(made_features("three", HERE, n_classes=3, rows=180))
    assert not {"transfer_accuracy", "transfer_auroc"} & set(cross(tasks["a"], three).index)
    assert cross(three, tasks["a"]).loc["refit", "value"] > 0.85


def pair_tables(tasks: dict[str, TaskFindings]) -> dict[str, pd.DataFrame]:
    found, places = list(tasks.values()), ranked(tasks)
    rows = [row for a in found for b in found for row in ([native_row(a, QUICK)] if a is b else cross_task_rows(a, b, QUICK))]
    names = list(tasks)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    ks = overlap_ks(QUICK, 64)
    return {
        "cross_task": pd.DataFrame(rows),
        "overlap": pd.DataFrame([row for a, b in pairs for row in overlap_rows(a, b, places, ks)]),
        "task_map": pd.DataFrame(task_map_rows(found, places, QUICK)),
    }


def judged(tasks: dict[str, TaskFindings], tables: dict[str, pd.DataFrame] | None = None) -> dict[str, Claim]:
    cases = pair_claims(list(tasks), tables or pair_tables(tasks), QUICK)
    return {claim.statement: claim for claim in verdicts(cases)}


def test_verdicts_of_pairs(tasks: dict[str, TaskFindings]) -> None:
    claims = judged(tasks)
    repeats = "each circuit of 4 repeats itself on other texts more than it resembles the other"
    assert claims[f"a and b: {repeats}"].outcome == "holds"
    assert claims[f"a and c: {repeats}"].outcome in ("contradicted", "inconclusive")
    assert claims["a and c: the top-4 circuits share no coordinate beyond chance"].outcome == "contradicted"
    shared = claims["a's 4 neurons say no more of c than random neurons of their layers do"]
    assert shared.outcome == "contradicted"
    assert "more than they" in shared.words
    assert claims["a's 4 neurons say no more of b than random neurons of their layers do"].outcome != "contradicted"
    assert claims["a's classifier, not fitted anew, tells c's classes apart with either polarity"].outcome == "holds"
    alike = next(claim for name, claim in claims.items() if name.startswith("some tasks are alike by probe"))
    assert "a and c the most" in alike.statement
    assert alike.id == "H22"
    families = {claim.family for claim in claims.values() if claim.family}
    assert families == {"a and b", "a and c", "b and c"}
    assert all(claim.words for claim in claims.values())


def test_a_task_without_signal_proves_nothing() -> None:
    tasks = {"a": made_findings(made_features("a", HERE)), "n": made_findings(made_features("n", {}, seed=8))}
    claims = judged(tasks)
    said = claims["a's 4 neurons say no more of n than random neurons of their layers do"]
    assert (said.outcome, said.explanation) in {("inconclusive", None), ("holds", "chance")}
    assert claims["a's classifier, not fitted anew, tells n's classes apart with either polarity"].outcome != "holds"


def test_the_specialization_ratio_is_twice_the_own_accuracy_when_transfer_is_at_a_half(
    tasks: dict[str, TaskFindings],
) -> None:
    tables = pair_tables({name: tasks[name] for name in "ab"})
    transfer = tables["cross_task"]["method"] == "transfer_accuracy"
    off = tables["cross_task"]["source"] != tables["cross_task"]["target"]
    tables["cross_task"].loc[transfer & off, "value"] = 0.5
    claims = judged({name: tasks[name] for name in "ab"}, tables)
    for name in "ab":
        claim = claims[f"{name}: specialization ratio, own accuracy over that of the transferred classifier"]
        assert claim.outcome == "identity"
        assert claim.control is not None
        assert claim.measured == pytest.approx(claim.control.value)
        assert claim.measured == pytest.approx(2 * tasks[name].circuit_hits(4).mean())
    own = [float(tasks[name].circuit_hits(4).mean()) for name in "ab"]
    symmetry = claims["a and b: symmetry score |AA−BB| + |AB−BA|"]
    assert symmetry.measured == pytest.approx(abs(own[0] - own[1]))
    assert symmetry.outcome == "descriptive"


def test_the_task_map_sees_shared_neurons_and_directions(units: dict[str, TaskFindings]) -> None:
    rows = pd.DataFrame(task_map_rows(list(units.values()), ranked(units), QUICK)).set_index(["measure", "a", "b"])
    assert len(rows) == 6
    assert rows.loc[("circuit", "a", "c"), "p_adjusted"] <= 0.1 < rows.loc[("circuit", "a", "b"), "p_adjusted"]
    # At the last site the first and third tasks share coordinate 50.
    assert rows.loc[("probe", "a", "c"), "value"] > rows.loc[("probe", "a", "c"), "chance"] + 0.3
    assert rows.loc[("probe", "a", "c"), "p"] == 2 / 50
    assert rows.loc[("probe", "a", "c"), "p_adjusted"] == 2 / 50
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
        claims = verdicts(language_claims(rows, QUICK))
        assert sorted(claim.measured for claim in claims) == sorted(away)
        assert all((claim.outcome == "holds") == carries for claim in claims)
        assert {claim.id for claim in claims} == {"H22"}


def test_translations_of_test_texts_are_left_out_of_the_fit() -> None:
    features = bilingual(0, False)
    # Each German pair of rows is a translation of the English pair after it: one group.
    groups = (np.arange(240) // 4).astype(str)
    rows = language_rows(dataclasses.replace(features, groups=groups), QUICK)
    assert {(r["train_language"], r["test_language"]) for r in rows} == {("de", "de"), ("en", "en")}


def test_tasks_without_languages_have_no_table(tasks: dict[str, TaskFindings]) -> None:
    assert language_rows(tasks["a"].features, QUICK) == []
    one = made_features("one", {}, rows=24, languages=("de", "en"))
    groups = np.where(np.arange(24) < 12, "x", "y")
    examples = tuple(dataclasses.replace(e, group=str(g)) for e, g in zip(one.task.examples, groups, strict=True))
    few = dataclasses.replace(one, groups=groups, task=dataclasses.replace(one.task, examples=examples))
    with pytest.raises(InputError, match="language 'de'"):
        language_rows(few, QUICK)
