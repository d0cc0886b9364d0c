"""The answer of a result: sentences put together from claims, in the order in which a study makes them."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace

import pytest

from moescope.report.answer import SAID, answer
from moescope.study.result import StudyResult
from moescope.study.verdicts import Case, Effect, verdicts
from moescope.types import Claim, Control


def case(statement: str, value: float, half: float, *rivals: Effect, **options: object) -> Case:
    effect = Effect(value - 0.5, value - 0.5 - half, value - 0.5 + half, "chance", 0.03)
    return Case(statement, value, effect, rivals=rivals, **options)  # type: ignore[arg-type]


def cue(value: float, half: float = 0.01) -> Effect:
    return Effect(value, value - half, value + half, "the full stop", 0.03, kind="trivial cue")


CLAIMS = verdicts(
    [
        case("a: ten neurons do it", 0.9, 0.02, cue(0.0), control=Control("best cue", 0.9)),
        case("a: they beat random ones", 0.9, 0.02, control=Control("random", 0.7)),
        case("b: ten neurons do it", 0.6, 0.2, control=Control("best cue", 0.55)),
        case("b: they beat random ones", 0.8, 0.02, control=Control("random", 0.6)),
        replace(case("b: nothing is there", 0.5, 0.01), effect=Effect(0.0, -0.01, 0.01, "with labels dealt out anew", 0.03)),
        Claim("a: share of neurons", 0.1),
        Claim("a: recommendation, that it pays", "do not use it", outcome="contradicted"),
    ]
)


def test_every_claim_that_was_tested_stands_where_its_verdict_belongs() -> None:
    assert answer(CLAIMS, ["a", "b"]).lines() == [
        "Recommended: a: do not use it.",
        "Believe: They beat random ones: a 0.900 beside 0.700; b 0.800 beside 0.600 (random).",
        "Do not believe: Ten neurons do it: a 0.900 beside 0.900 (explained by the full stop).",
        "Do not believe: Nothing is there: b 0.500 (explained by labels dealt out anew).",
        "Not settled: Ten neurons do it: b 0.600 beside 0.550 (best cue).",
        "Next: test texts in which the full stop tells nothing, before anything is built on what it explains.",
        "Next: about 91 times as much text would settle an open claim.",
    ]


def test_what_explains_a_figure_is_the_rival_that_does() -> None:
    (claim,) = verdicts([case("x", 0.9, 0.02, cue(0.2), Effect(0.0, -0.01, 0.01, "length", 0.03, kind="trivial cue"))])
    assert claim.details["by"] == "length"
    (claim,) = verdicts([case("x", 0.9, 0.02, cue(0.2))])
    assert "by" not in claim.details


@pytest.mark.parametrize(("half", "wide"), [(0.2, 0.2), (0.1, 0.1)])
def test_how_much_more_text_follows_from_the_width(half: float, wide: float) -> None:
    (claim,) = verdicts([case("x", 0.55, half)])
    assert claim.outcome == "inconclusive"
    assert claim.details["more"] == pytest.approx((wide * (1.959964 + 0.841621) / 1.959964 / 0.03) ** 2, rel=1e-5)
    settled = verdicts([case("x", 0.5, 0.005)])[0]
    assert "more" not in settled.details


def test_a_claim_open_because_of_a_rival_needs_the_text_that_the_rival_needs() -> None:
    (claim,) = verdicts([case("x", 0.9, 0.01, cue(0.03, 0.3))])
    assert claim.outcome == "inconclusive"
    assert claim.details.get("more", 0) == pytest.approx((0.3 * (1.959964 + 0.841621) / 1.959964 / 0.03) ** 2, rel=1e-5)


def test_what_is_said_is_bounded_and_the_rest_counted() -> None:
    claims = verdicts([case(f"claim {i}", 0.9, 0.01) for i in range(SAID + 4)])
    (part,) = answer(claims).parts
    assert [s.statement for s in part.sentences] == [f"Claim {i}" for i in range(SAID)]
    assert part.more == 4


def test_page_and_notebook_begin_with_the_answer() -> None:
    hostile = "<img src=x onerror=alert(1)>"
    claims = (*CLAIMS, *verdicts([case(hostile, 0.9, 0.01)]))
    result = StudyResult("exit", {"tasks": ["a", "b"], "title": hostile}, claims)
    for page in (result.report(), result._repr_html_()):
        assert hostile not in page
        text = re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", page))
        assert text.index("They beat random ones") < text.index("share of neurons")
    assert len(repr(result)) < 200


def test_the_page_runs_its_own_script_alone() -> None:
    page = StudyResult("exit", {}, tuple(CLAIMS)).report()
    (script,) = re.findall("<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page
    assert page.count("<script") == 1


def test_every_claim_has_an_address_of_its_own() -> None:
    claims = (*CLAIMS, *CLAIMS[:1])
    page = StudyResult("exit", {}, claims).report()
    found = re.findall(r'<tbody class="\w+" id="(claim-[^"]+)"', page)
    assert len(found) == len(set(found)) == len(claims)
    assert all(f'href="#{name}"' in page for name in found)
