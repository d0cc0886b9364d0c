"""Robustness: nothing moves where nothing changed, planted weaknesses are found, and the random baseline is a fair one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moescope.capture.encode import Encoded
from moescope.errors import InputError
from moescope.models import from_model
from moescope.studies.robustness.attack import find_suffixes, margin
from moescope.studies.robustness.monitor import Monitors, flat_signatures
from moescope.studies.robustness.perturb import PERTURBATIONS, perturbed, typo
from moescope.studies.robustness.settings import RobustnessSettings
from moescope.studies.robustness.study import robustness, suffix_vocabulary
from moescope.study.rows import FoldRows
from moescope.tasks.prompts import Prompt, load_prompts
from tests.architectures import PAD, build, tiny_model, tiny_tokenizer


def some_prompts(n: int = 24) -> list[Prompt]:
    return load_prompts("routing-480", limit=n)


def test_identity_moves_nothing_and_other_changes_do() -> None:
    model = tiny_model("olmoe")
    settings = RobustnessSettings(attacked=0, n_folds=3)
    result = robustness(model, some_prompts(), settings=settings)
    table = result.table("changes").set_index("change")
    assert result.meta["controls"][0]["evidence"].endswith("lower_case 22, upper_case 24; identity 0")
    assert result.rows[0]["judge"] == {"rows": 24, "groups": len({p.topic for p in some_prompts()})}
    for name in ("identity", "one by one"):
        row = table.loc[name]
        assert row["unmoved"] == 1
        assert row["flips"] == row["relative"] == row["corrected_relative"] == row["relative_high"] == 0
        assert row["accuracy_before"] == row["accuracy_after"]
    for name in ("paraphrase", "typo", "suffix", "lower_case", "upper_case"):
        assert table.loc[name, "unmoved"] < 1
        assert table.loc[name, "relative"] > 0
    assert table.loc["upper_case", "relative"] > table.loc["suffix", "relative"]
    # rounding moves some tokens across a close choice, and far less than another text does
    assert 0 < table.loc["precision bfloat16", "relative"] < 0.2 * table.loc["paraphrase", "relative"]


def test_perturbations_keep_what_is_not_theirs() -> None:
    prompts = some_prompts()
    for name in PERTURBATIONS:
        changed = perturbed(prompts, name, seed=3)
        assert [replace(p, text="") for p in changed] == [replace(p, text="") for p in prompts]
        assert perturbed(prompts, name, seed=3) == changed
        # leaving a prompt out changes no other: the seed goes by row, and rows before it stay
        assert perturbed(prompts[:5], name, seed=3) == changed[:5]
        same = sum(a.text == b.text for a, b in zip(prompts, changed, strict=True))
        assert same == len(prompts) if name == "identity" else same <= 2
    assert [p.text for p in perturbed(prompts, "lower_case")] == [p.text.lower() for p in prompts]
    assert all(q.text.startswith(p.text) for p, q in zip(prompts, perturbed(prompts, "suffix"), strict=True))
    with pytest.raises(InputError, match="perturbations: 'shout' is none of identity, paraphrase"):
        RobustnessSettings(perturbations=("shout",))  # type: ignore[arg-type]


def test_typos_are_as_many_as_asked_for() -> None:
    text = "the quick brown fox jumps over the lazy dog " * 10
    rng = np.random.default_rng(0)
    few, many = typo(text, rng, 0.02), typo(text, rng, 0.3)
    assert 0 < _distance(text, few) <= 2 * round(0.02 * 350) < _distance(text, many)
    assert typo("12 + 3", rng) == "12 + 3"


def _distance(a: str, b: str) -> int:
    """Edit distance (Levenshtein)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


# --- the search, on a model that is a table: token t goes to expert t % 4 ------------------------------------------------


class Table:
    """Counts experts by the token ids alone, and how many texts it was asked about."""

    def __init__(self) -> None:
        self.queries = 0

    def __call__(self, encoded: Encoded) -> np.ndarray:
        self.queries += len(encoded)
        return np.stack([np.bincount(encoded[i] % 4, minlength=4) for i in range(len(encoded))])[:, None].astype(float)


def table_prompts(n: int = 40) -> tuple[list[np.ndarray], np.ndarray, Monitors]:
    """Category c is mostly tokens of expert c (two categories)."""
    rng = np.random.default_rng(0)
    y = np.arange(n) % 2
    ids = [np.where(rng.random(12) < 0.7, 4 * rng.integers(50, size=12) + c, rng.integers(200, size=12)) for c in y]
    signatures = flat_signatures(Table()(Encoded.from_ids(ids)))
    return ids, y, Monitors.fit(signatures, y, FoldRows("prompts", np.arange(n), (np.arange(n) // 2) % 5))


def attack(settings: RobustnessSettings, counter: Table) -> tuple[np.ndarray, np.ndarray, object]:
    ids, y, monitors = table_prompts()
    rows = np.arange(10)
    found = find_suffixes(counter, monitors, ids[:10], rows, y[:10], np.arange(200), settings=settings)
    return rows, y[:10], found


def test_the_search_finds_the_weak_spot_and_luck_finds_less() -> None:
    counter = Table()
    settings = RobustnessSettings(suffix_tokens=8, queries=160, start=32)
    _, y, found = attack(settings, counter)
    assert (found.search <= found.random + 1e-12).all()
    assert found.search.mean() < found.random.mean() - 0.1
    assert (found.random <= found.first).all()
    # the suffix leads to the other category's expert
    wanted = found.suffixes % 4 == (1 - y)[:, None]
    assert wanted.mean() > 0.7
    # both had the same number of tries: 32 shared, 128 each, and one clean text
    assert counter.queries == 10 * (1 + 32 + 2 * 128)


def test_what_the_search_reports_is_what_its_suffix_does() -> None:
    ids, _, monitors = table_prompts()
    rows, own, found = attack(RobustnessSettings(suffix_tokens=5, queries=48, start=16), Table())
    texts = [np.concatenate([ids[i], found.suffixes[i]]) for i in rows]
    scores = monitors.log_odds(flat_signatures(Table()(Encoded.from_ids(texts))), rows)
    assert np.allclose(margin(scores, own), found.search)
    assert np.array_equal(scores.argmax(1), found.becomes)
    assert found.suffixes.shape == (10, 5)
    again = attack(RobustnessSettings(suffix_tokens=5, queries=48, start=16), Table())[2]
    assert np.array_equal(found.suffixes, again.suffixes)


def test_a_monitor_has_not_seen_the_prompts_that_it_judges() -> None:
    """Random categories: monitors that saw a prompt would know its category by heart."""
    rng = np.random.default_rng(0)
    signatures, y = rng.normal(size=(60, 80)), rng.integers(2, size=60)
    monitors = Monitors.fit(signatures, y, FoldRows("prompts", np.arange(60), np.arange(60) % 5))
    assert (monitors.predict(signatures, np.arange(60)) == y).mean() < 0.75


def test_margin() -> None:
    scores = np.log(np.array([[0.7, 0.2, 0.1], [0.2, 0.5, 0.3]]))
    assert np.allclose(margin(scores, np.array([0, 2])), [np.log(0.7 / 0.2), np.log(0.3 / 0.5)])


def test_nothing_to_try_is_refused() -> None:
    nothing: dict[str, Any] = {"perturbations": (), "precision": False, "batches": False}
    assert RobustnessSettings(**nothing).attacked  # a search alone is something
    with pytest.raises(InputError, match="perturbations: nothing to try"):
        RobustnessSettings(**nothing, attacked=0)


def test_bad_search_settings_are_refused() -> None:
    with pytest.raises(InputError, match="suffix_tokens: must be at least 1, got 0"):
        RobustnessSettings(suffix_tokens=0)
    with pytest.raises(InputError, match=r"queries: must be above start=64, .* got 64"):
        RobustnessSettings(queries=64, start=64)
    assert RobustnessSettings(queries=12).begin == 3


def test_a_suffix_holds_text_alone() -> None:
    vocabulary = suffix_vocabulary(tiny_model("olmoe"))
    assert PAD not in vocabulary
    assert set(vocabulary.tolist()) < set(range(256))
    assert len(vocabulary) >= 120  # the ASCII bytes; half of a character is no text


def test_the_study_on_a_model_attacks_each_category_and_reports_both_ways() -> None:
    settings = RobustnessSettings(
        perturbations=("identity",),
        precision=False,
        batches=False,
        attacked=4,
        suffix_tokens=3,
        queries=12,
        start=4,
        children=4,
        n_folds=3,
    )
    result = robustness(tiny_model("olmoe"), some_prompts(), settings=settings)
    table = result.table("attack")
    assert len(table) == 4
    assert (table["margin"] > 0).all()  # only prompts that the monitor got right
    assert (table["search"] <= table["best_random"] + 1e-9).all() or (table["search"] > table["best_random"]).any()
    assert [c["control"] for c in result.meta["controls"]] == ["random suffixes"]  # identity alone controls nothing
    assert result.claims[0].outcome == "identity"
    flips, further = result.claims[-2:]
    assert flips.statement == "a searched suffix flips the monitor more often than random ones (3 tokens, 12 queries)"
    assert (flips.id, flips.outcome) == ("S9", "inconclusive")  # of four prompts nothing can be said
    assert flips.control is not None
    assert flips.control.name == "the best of 12 random suffixes"
    assert further.family == flips.family


def test_a_model_in_bf16_is_compared_with_fp32() -> None:
    half = from_model(build("olmoe").bfloat16(), tiny_tokenizer())
    settings = RobustnessSettings(perturbations=(), batches=False, attacked=0, n_folds=3)
    changes = robustness(half, some_prompts(), settings=settings).table("changes")
    assert changes["change"].tolist() == ["precision float32"]


def test_prompts_without_categories_are_refused() -> None:
    with pytest.raises(InputError, match="no categories"):
        robustness(tiny_model("olmoe"), [Prompt(str(i), "some text") for i in range(8)])
