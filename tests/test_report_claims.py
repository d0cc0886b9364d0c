"""How claims and numbers are written: in the terminal at any width, and as a frame."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from typing import get_args

import pytest
from rich.console import Console

from moescope.report.claims import ClaimsTable
from moescope.report.format import STYLES, beside, headline, interval, number, numbers, p_value, verdict_style
from moescope.study.claims import COLUMNS, claims_frame
from moescope.types import Claim, Explanation, Outcome, Published
from tests.synthetic_result import synthetic_result

LONG = "a claim whose name is far too long to stand beside its numbers on any terminal that people use"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (float("nan"), "–"),
        ("", "–"),
        ("layers 2–4", "layers 2–4"),
        (True, "yes"),
        (0, "0"),
        (0.0, "0"),
        (-0.043, "−0.043"),
        (0.5, "0.500"),
        (1.0, "1.000"),
        (10, "10"),
        (1536, "1,536"),
        (12.345, "12.35"),
        (1234.56, "1,234.6"),
        (0.00004, "4.0e-05"),
        (-0.00004, "−4.0e-05"),
        (float("-inf"), "−∞"),
        (2.5e9, "2,500,000,000"),
        (2.55e9 + 0.5, "2.55e+09"),
    ],
)
def test_numbers(value: object, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("p", "text"),
    [(None, "–"), (math.nan, "–"), (0.0004, "<0.001"), (0.001, "0.001"), (0.0494, "0.049"), (0.5, "0.50"), (1, "1.00")],
)
def test_p_values(p: float | None, text: str) -> None:
    assert p_value(p) == text


def test_intervals() -> None:
    assert interval((0.1, 0.25)) == "0.100 to 0.250"
    assert interval((-0.06, float("nan"))) == interval(None) == "–"


def claims_text(claims: Iterable[Claim], *, width: int = 100, title: str | None = None, words: bool = True) -> str:
    """The table as it stands in a terminal of ``width`` columns without colour."""
    out = io.StringIO()
    console = Console(file=out, width=width, color_system=None, force_terminal=False, emoji=False, highlight=False)
    console.print(ClaimsTable(tuple(claims), title, words))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
def test_the_table_fits_and_loses_nothing(width: int) -> None:
    claims = (
        *synthetic_result().claims,
        Claim(
            LONG,
            0.5,
            published=Published("a published text of some length", "a source"),
            interval=(0.1, 0.9),
            p=0.03,
            p_adjusted=0.09,
            words=LONG,
        ),
    )
    text = claims_text(claims, width=width)
    assert max(map(len, text.splitlines())) <= width
    squeezed = "".join(text.split())
    for claim in claims:
        for part in (claim.words, claim.verdict, beside(claim)):
            assert "".join(part.split()) in squeezed
    if width >= 80:
        for claim in claims[:-1]:
            assert number(claim.measured) in text, "numbers are not broken over lines"
            assert claim.interval is None or interval(claim.interval) in text
            assert claim.p is None or p_value(claim.p) in text
            assert all(word in text for word in claim.statement.split())


def test_names_stand_beside_their_numbers_where_there_is_room() -> None:
    claims = synthetic_result().claims
    wide = claims_text(claims, width=120).splitlines()
    line = next(row for row in wide if row.startswith("Two neurons suffice"))
    assert line.split()[3:] == ["0.977", "0.710", "0.690", "to", "0.730", "0.550", "0.001"]
    narrow = claims_text(claims, width=80).splitlines()
    at = narrow.index("Two neurons suffice")
    assert narrow[at + 1].split() == ["0.977", "0.710", "0.690", "to", "0.730", "0.550", "0.001"]


def test_text_is_not_markup() -> None:
    text = claims_text([Claim("[red]a[/red] :smile:", 1.0, words="[b]x[/b]")], width=80)
    assert "[red]a[/red] :smile:" in text
    assert "[b]x[/b]" in text


def test_no_colour_codes_in_plain_text() -> None:
    assert "\x1b" not in claims_text(synthetic_result().claims)


def test_title_and_words_as_asked() -> None:
    claims = synthetic_result().claims
    assert claims_text(claims, title="Head").startswith("Head\n")
    assert claims[0].words not in " ".join(claims_text(claims, words=False).split())


def test_headline_counts_in_words() -> None:
    assert headline(()) == "No claims were made."
    one = (Claim("a", 1, outcome="reproduced"),)
    assert headline(one) == "Of 1 claim, 1 reproduced."
    chance = Claim("c", 1, outcome="contradicted", explanation="chance")
    several = (*one, *one, Claim("b", 1, outcome="identity"), chance, Claim("d", 1, outcome="holds", explanation="none found"))
    said = "2 reproduced, 1 holds, 1 is no more than chance and 1 is true by construction."
    assert headline(several) == f"Of 5 claims, {said}"


def test_every_verdict_has_a_mark_of_its_own() -> None:
    for outcome in get_args(Outcome):
        for explanation in (None, *get_args(Explanation)):
            assert verdict_style(Claim("a", 1, outcome=outcome, explanation=explanation)).meaning
    assert len({style.mark for style in STYLES.values()}) == len(STYLES)


def test_p_stands_with_its_adjusted_value() -> None:
    assert numbers(Claim("a", 1, p=0.01, p_adjusted=0.04))[-1] == "0.010 (0.040)"
    assert numbers(Claim("a", 1, p=0.01, p_adjusted=0.01))[-1] == "0.010"


def test_the_frame_keeps_types() -> None:
    frame = claims_frame(synthetic_result().claims)
    assert tuple(frame.columns) == COLUMNS
    assert frame.loc[1, "measured"] == 0
    assert frame.loc[3, "measured"] == "layers 2–4"
    assert frame["p"].dtype == frame["low"].dtype == "float64"
    assert claims_frame(()).empty
