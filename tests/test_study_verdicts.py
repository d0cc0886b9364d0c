"""The rulebook: what evidence leads to which outcome, explanation and words."""

from __future__ import annotations

import numpy as np
import pytest

from moescope.errors import InputError
from moescope.stats import holm
from moescope.study.verdicts import Case, Effect, beyond_draws, check_draws, reading, verdict, verdicts
from moescope.types import Published


def effect(value: float, half: float, *, margin: float = 0.03, **options: object) -> Effect:
    return Effect(value, value - half, value + half, options.pop("against", "chance"), margin, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("found", "word"),
    [
        (effect(0.2, 0.05), "shown"),
        (effect(0.05, 0.01), "shown"),
        (effect(0.0, 0.02), "absent"),
        (effect(0.01, 0.005), "absent"),  # there, but too small to matter
        (effect(0.02, 0.05), "unclear"),
        (effect(-0.02, 0.05), "absent"),
        (effect(-0.02, 0.08), "unclear"),
        (effect(-0.2, 0.05), "opposite"),
        (effect(float("nan"), 0.1), "unclear"),
        (effect(0.0, 0.02, no_worse=True), "shown"),
        (effect(-0.1, 0.02, no_worse=True), "absent"),
        (effect(-0.02, 0.03, no_worse=True), "unclear"),
    ],
)
def test_a_reading(found: Effect, word: str) -> None:
    assert reading(found) == word


def test_what_an_effect_is_beside_its_numbers_is_said_by_name() -> None:
    with pytest.raises(TypeError, match="positional"):
        Effect(0.1, 0.0, 0.2, "chance", 0.03, 0.01, "trivial cue")  # type: ignore[misc]


def test_a_p_that_the_family_took_back_shows_nothing() -> None:
    assert reading(effect(0.2, 0.05), p=0.06) == "unclear"
    cases = [Case(str(i), 0.7, effect(0.2, 0.05, p=0.02), family="task") for i in range(3)]
    claims = verdicts(cases)
    assert [c.p_adjusted for c in claims] == pytest.approx([0.06, 0.06, 0.06])
    assert {c.outcome for c in claims} == {"inconclusive"}
    assert verdicts([cases[0]])[0].outcome == "holds"


def test_outcome_and_explanation() -> None:
    sure = effect(0.2, 0.05)

    def said(*rivals: Effect, **options: object) -> tuple[str, str | None, str]:
        claim = verdict(Case("s", 0.7, sure, rivals=rivals, **options), None)  # type: ignore[arg-type]
        return claim.outcome, claim.explanation, claim.words

    cue = {"against": "the best cue", "kind": "trivial cue"}
    assert said()[:2] == ("holds", None)
    assert said(effect(0.1, 0.03, **cue))[:2] == ("holds", "none found")
    assert said(effect(0.0, 0.02, **cue))[:2] == ("holds", "trivial cue")
    outcome, explanation, words = said(effect(0.02, 0.05, **cue))
    assert (outcome, explanation) == ("inconclusive", None)
    assert "7.1 points could have been shown" in words
    assert words.startswith(
        "the effect itself is shown (+20.0 points (+15.0 to +25.0) more than chance); whether it goes beyond "
    )
    assert "; whether it goes beyond the best cue is undecided: +2.0 points" in words
    both = said(effect(0.02, 0.05, **cue), effect(0.01, 0.05, against="the twin"), effect(0.1, 0.03, against="a direction"))[2]
    assert "whether it goes beyond the best cue and the twin is undecided: +2.0 points" in both
    assert said(gate="loses to a linear map") == ("undertrained", None, "loses to a linear map")
    words = said(effect(0.1, 0.03, **cue), not_run=("token identity (the trace holds no tokens)",))[2]
    assert words.endswith("not run: token identity (the trace holds no tokens)")
    assert "beyond the best cue" in words
    absent = verdict(Case("s", 0.5, effect(0.0, 0.02)), None)
    assert (absent.outcome, absent.explanation) == ("contradicted", "chance")
    opposite = verdict(Case("s", 0.5, effect(-0.2, 0.02)), None)
    assert (opposite.outcome, opposite.explanation) == ("contradicted", None)


@pytest.mark.parametrize(
    ("measured", "same", "word"),
    [(0.84, True, "reproduced"), (0.7, True, "weaker"), (0.99, True, "holds"), (0.84, False, "holds")],
)
def test_reproduced_is_for_the_same_model_data_and_protocol(measured: float, same: bool, word: str) -> None:
    case = Case(
        "s",
        measured,
        effect(measured - 0.5, 0.05),
        published=Published(0.86, "a table"),
        interval=(measured - 0.05, measured + 0.05),
        same=same,
    )
    assert verdict(case, None).outcome == word


def test_draws_that_cannot_decide_are_refused() -> None:
    check_draws(19, 1, "n_permutations")
    check_draws(99, 5, "n_permutations")
    with pytest.raises(InputError, match=r"n_permutations.*at least 99|at least 99") as error:
        check_draws(98, 5, "n_permutations")
    assert error.value.parameter == "n_permutations"


def test_an_effect_over_draws_is_two_sided() -> None:
    null = np.linspace(-1, 1, 999)
    assert beyond_draws(2.0, null, "chance", 0.1).p == pytest.approx(0.002)
    draws = np.random.default_rng(1).gamma(4, size=(8000, 40))  # skew: the interval asks for no distribution
    within = [effect.low <= 0 <= effect.high for effect in (beyond_draws(row[0], row[1:], "chance", 0.1) for row in draws)]
    assert 0.94 <= np.mean(within) <= 0.96
    below = beyond_draws(-2.0, null, "chance", 0.1)
    assert below.p == pytest.approx(0.002)
    assert reading(below, below.p) == "opposite"
    assert reading(beyond_draws(-2.0, null, "chance", 0.1, alternative=-1)) == "shown"


def test_holm_is_never_below_p_and_keeps_order() -> None:
    p = np.random.default_rng(0).random(50)
    adjusted = holm(p)
    assert (adjusted >= p).all()
    assert (np.diff(adjusted[np.argsort(p)]) >= 0).all()
    assert adjusted.min() == min(1, 50 * p.min())
