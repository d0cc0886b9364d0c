"""Likeness of tasks: matrices regressed on each other, and circuits that follow planted neurons or planted words."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from moescope.errors import InputError
from moescope.select.nested import fit_classifier
from moescope.stats import sign_free_auroc
from moescope.stats.matrices import members_needed, semi_partialled
from moescope.studies.circuits.pairs import Ranked, map_k
from moescope.studies.circuits.related.claims_similarity import similarity_claims
from moescope.studies.circuits.related.similarity import regression_table, similarity_tables
from moescope.studies.circuits.single import TaskFindings
from moescope.study.verdicts import verdicts
from moescope.tasks.likeness import text_likeness
from moescope.types import Claim, Example
from tests.made_features import QUICK, made_features, made_findings

MEMBERS = 9


def near(places: np.ndarray) -> np.ndarray:
    """Similarity (M, M) of points (M, D): rows of one member depend on each other, as those of tasks do."""
    return -np.linalg.norm(places[:, None] - places[None], axis=-1)


def by_hand(y: np.ndarray, x: np.ndarray, z: np.ndarray) -> float:
    upper = np.triu_indices(len(y), 1)
    given = np.column_stack([np.ones(len(upper[0])), z[upper]])
    left = [m[upper] - given @ np.linalg.lstsq(given, m[upper], rcond=None)[0] for m in (y, x)]
    return float(np.corrcoef(*left)[0, 1])


def test_the_partial_correlation_is_that_of_least_squares() -> None:
    rng = np.random.default_rng(0)
    y, x, z = (near(rng.normal(size=(MEMBERS, 2))) for _ in range(3))
    assert semi_partialled(y, x, [z]).partial == pytest.approx(by_hand(y, x, z))


def test_where_only_the_other_predictor_matters_p_keeps_its_level() -> None:
    """The response and the predictor both follow z, each with noise of its members: a test that left z out would find much."""
    p, bare = [], []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        z = near(rng.normal(size=(MEMBERS, 2)))
        y, x = (z + near(rng.normal(size=(MEMBERS, 2))) for _ in range(2))
        for found, others in ((p, [z]), (bare, [])):
            fit = semi_partialled(y, x, others, n=199, seed=seed)
            found.append((1 + (np.abs(fit.draws) >= abs(fit.partial)).sum()) / 200)
    assert 0.02 <= np.mean(np.array(p) <= 0.05) <= 0.1  # 0.05 ± 2.5 standard errors, and a little
    assert 0.38 < np.mean(p) < 0.62
    assert np.mean(np.array(bare) <= 0.05) > 0.5


def test_a_planted_relation_beyond_the_other_predictor_is_found() -> None:
    rng = np.random.default_rng(1)
    places, z = rng.normal(size=(2, MEMBERS, 2))
    y = near(places) + near(z)
    fit = semi_partialled(y, near(places), [near(z)])
    assert fit.partial > 0.9
    assert np.abs(fit.draws).max() < fit.partial


def test_few_members_are_permuted_in_every_order() -> None:
    rng = np.random.default_rng(2)
    y, x = (near(rng.normal(size=(5, 2))) for _ in range(2))
    assert len(semi_partialled(y, x).draws) == 119
    assert members_needed(79) == 5
    assert members_needed(19) == 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m[:3, :3], "one shape"),
        (lambda m: np.triu(m), "symmetric"),
        (lambda m: m * np.nan, "not finite"),
        (np.zeros_like, "does not vary"),
    ],
)
def test_matrices_that_cannot_be_regressed_are_refused(change: object, said: str) -> None:
    y, x = (near(np.random.default_rng(i).normal(size=(6, 2))) for i in range(2))
    with pytest.raises(InputError, match=said):
        semi_partialled(y, change(x))  # type: ignore[operator]
    with pytest.raises(InputError, match="too few for 3 predictors"):
        semi_partialled(y[:3, :3], x[:3, :3], [x[:3, :3]] * 2)


POOLS = [[f"{kind}{i}" for i in range(30)] for kind in ("apple", "boat", "cloud", "drum")]


def made_tasks(families: list[int], words: list[int]) -> list[TaskFindings]:
    """A task for each entry: its circuit is that of its family of neurons, its texts are of its pool of words.

    Every task has neurons and words of its own too, so that no two are the same.
    """
    found = []
    for i, (family, pool) in enumerate(zip(families, words, strict=True)):
        rng = np.random.default_rng(100 + i)
        own = {24 * family + int(j): 1.6 for j in rng.choice(24, 12, replace=False)}
        made = made_features(f"t{i}", own, layers=1, width=96, seed=i, kind="mlp_act")
        said = [*POOLS[pool], *(f"own{i}x{j}" for j in range(15))]
        texts = [" ".join(rng.choice(said, 8)) for _ in made.task.examples]
        rows = tuple(Example(t, e.label, e.group) for t, e in zip(texts, made.task.examples, strict=True))
        found.append(made_findings(replace(made, task=replace(made.task, examples=rows))))
    return found


def tables_of(found: list[TaskFindings]) -> dict[str, pd.DataFrame]:
    places = max(QUICK.k, map_k(found[0].features.columns.n))
    ranked = {t.features.task.name: Ranked.of(t, QUICK, places, turn=i) for i, t in enumerate(found)}
    cross = [
        {"source": a.features.task.name, "target": b.features.task.name, "method": "transfer_auroc", "value": carried(a, b)}
        for a in found for b in found if a is not b
    ]  # fmt: skip
    return similarity_tables(found, ranked, pd.DataFrame(cross))


def carried(a: TaskFindings, b: TaskFindings) -> float:
    """As in the table cross_task, without its random sets."""
    chosen = a.ranking[: QUICK.k]
    model = fit_classifier(a.features.x[:, chosen], a.features.y, "lda")
    return float(sign_free_auroc(model.predict_proba(b.features.x[:, chosen].astype(float))[:, 1], b.features.y))


def judged(tables: dict[str, pd.DataFrame]) -> tuple[Claim, ...]:
    cases = similarity_claims(tables["similarity"], tables["similarity_regression"], QUICK)
    return tuple(verdicts(cases))


APART = ([0, 0, 1, 1, 2, 2, 3, 3], [0, 1, 2, 3, 0, 1, 2, 3])


@pytest.fixture(scope="module")
def neurons() -> dict[str, pd.DataFrame]:
    """Eight tasks in four families of neurons, whose words are of other families."""
    return tables_of(made_tasks(*APART))


@pytest.fixture(scope="module")
def texts() -> dict[str, pd.DataFrame]:
    """Eight tasks whose neurons follow their words."""
    return tables_of(made_tasks(APART[0], APART[0]))


def test_likeness_follows_planted_neurons_and_not_words(neurons: dict[str, pd.DataFrame]) -> None:
    pairs = neurons["similarity"].set_index(["task_a", "task_b"])
    same = [("t0", "t1"), ("t2", "t3"), ("t4", "t5"), ("t6", "t7")]
    assert pairs.loc[same, "circuit"].min() > pairs.drop(same)["circuit"].max() + 0.15
    assert pairs.drop(same)["circuit"].max() < 0.1
    assert pairs.drop(same)["circuit"].mean() < -0.05  # what is full of its own neurons shares fewer than permuted labels do
    assert pairs.loc[[("t0", "t4"), ("t1", "t5")], "vocabulary"].min() > pairs.loc[same, "vocabulary"].max() + 0.2
    assert (pairs["same_texts"] == 0).all()
    like, worded, carried = judged(neurons)
    assert "holds" not in (like.outcome, worded.outcome)
    assert (carried.outcome, carried.explanation) == ("holds", None)
    assert carried.id == "H22"
    assert "28 pairs" in carried.words


def test_likeness_follows_planted_words_where_the_neurons_do(texts: dict[str, pd.DataFrame]) -> None:
    like, worded, _ = judged(texts)
    assert like.outcome == worded.outcome == "holds"


def test_a_task_is_as_alike_to_itself_as_it_repeats_itself(neurons: dict[str, pd.DataFrame]) -> None:
    """The same neurons on further texts: half of a circuit repeats, and the likeness is corrected to about one."""
    twice = made_tasks([0, 1, 2], [0, 1, 2])
    again = made_features(
        "again", {24 * 0 + int(j): 1.6 for j in np.random.default_rng(100).choice(24, 12, replace=False)},
        layers=1, width=96, seed=77, kind="mlp_act",
    )  # fmt: skip
    pairs = tables_of([*twice, made_findings(again)])["similarity"].set_index(["task_a", "task_b"])
    row = pairs.loc[("t0", "again")]
    assert row["circuit"] == pytest.approx(1, abs=0.35)
    assert row["circuit"] > (row["shared"] - row["chance"]) / row["k"]


def test_tasks_of_the_same_texts_are_not_compared() -> None:
    found = made_tasks([0, 0, 1], [0, 1, 2])
    twin = replace(found[0].features, task=replace(found[0].features.task, name="again"))
    tables = tables_of([*found, replace(found[1], features=twin)])
    pairs = tables["similarity"].set_index(["task_a", "task_b"])
    assert pairs["same_texts"].tolist() == [0, 0, 160, 0, 0, 0]
    assert pairs.loc[("t0", "again"), ["circuit", "transfer"]].isna().all()
    assert pairs["transfer"].notna().sum() == 5


def test_tasks_without_a_circuit_are_left_out_by_name() -> None:
    """What does not repeat itself has no likeness that could be corrected."""
    found = [*made_tasks([0, 0, 1], [0, 1, 2]), made_findings(made_features("noise", {}, layers=1, width=96, kind="mlp_act"))]
    tables = tables_of(found)
    noise = tables["similarity"].query("task_b == 'noise'")
    assert noise["circuit"].isna().all()
    rows = tables["similarity_regression"].set_index(["response", "term"])
    assert rows.loc[("circuit", "vocabulary"), ["tasks", "left_out"]].tolist() == [3, 1]
    assert rows.loc[("transfer", "vocabulary"), ["tasks", "left_out"]].tolist() == [4, 0]
    for claim in judged(tables):
        assert claim.outcome == "inconclusive"
        assert "at least 5 tasks are needed" in claim.words


def test_regression_at_random_is_not_found() -> None:
    """Likeness drawn at random, of circuits and of texts: p is at most 0.05 in about as many draws."""
    hits = []
    names = [f"t{i}" for i in range(8)]
    for seed in range(60):
        rng = np.random.default_rng(seed)
        values = {c: near(rng.normal(size=(8, 2))) for c in ("circuit", "transfer", "vocabulary", "class_words", "surface")}
        pairs = pd.DataFrame(
            [
                {"task_a": a, "task_b": b, **{c: m[i, j] for c, m in values.items()}}
                for i, a in enumerate(names) for j, b in enumerate(names) if i < j
            ]
        )  # fmt: skip
        hits += (regression_table(pairs, seed=seed)["p"] <= 0.05).tolist()
    assert 0.01 <= np.mean(hits) <= 0.09  # 420 of them


def test_texts_are_alike_by_words_classes_and_shape() -> None:
    def task(name: str, one: str, zero: str) -> object:
        made = made_features(name, {}, rows=40).task
        rows = tuple(replace(e, text=f"{one if e.label else zero} {i % 5}") for i, e in enumerate(made.examples))
        return replace(made, examples=rows)

    alike = text_likeness([task("a", "good film", "bad film"), task("b", "good meal", "bad meal"), task("c", "film.", "film")])  # type: ignore[list-item]
    assert alike["class_words"][0, 1] > 0.95
    assert alike["class_words"][0, 2] < 0.5
    assert alike["vocabulary"][0, 2] > alike["vocabulary"][1, 2]
    assert alike["surface"][0, 1] > alike["surface"][0, 2]
    for matrix in alike.values():
        assert np.array_equal(matrix, matrix.T)
