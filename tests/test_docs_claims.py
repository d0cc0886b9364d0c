"""The page of claims and the table of the README are what the saved results say."""

from __future__ import annotations

import tomllib

import pytest

from tools.claims import EVIDENCE, SAID, answering, pages, saved


def test_the_pages_are_what_the_results_say() -> None:
    for path, text in pages().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run python tools/claims.py"


def test_every_claim_of_the_studies_is_answered_or_says_why_not() -> None:
    said = tomllib.loads((EVIDENCE / "claims.toml").read_text(encoding="utf-8"))
    expected = [f"H{i}" for i in range(1, 25)] + [f"S{i}" for i in range(1, 12)] + [f"M{i}" for i in range(1, 9)]
    assert list(said) == expected
    results = saved()
    assert {claim.id for result in results for claim in result.claims if claim.id} <= set(expected)
    for name, entry in said.items():
        assert set(entry) <= {"claim", "where", "answers", *SAID}
        answered = bool(answering(name, entry, results)) or "shown" in entry
        assert answered != ("absent" in entry), f"{name}: answered, or said why not, and never both"


def test_what_answers_a_question_is_named_or_the_page_is_not_written() -> None:
    results = [r for r in saved() if r.name in ("circuits-vit-digits", "distill-dit-digits")]
    (found,) = answering("M8", {"answers": ["distill-dit-digits: error of dense 96"]}, results)
    assert (found[0].name, [c.outcome for c in found[1]]) == ("distill-dit-digits", ["contradicted"])
    assert answering("M8", {}, results) == []
    with pytest.raises(SystemExit, match="no claim of distill-dit-digits begins 'error of a cat'"):
        answering("M8", {"answers": ["distill-dit-digits: error of a cat"]}, results)
    with pytest.raises(SystemExit, match="no result 'circuits-cat' is kept"):
        answering("M8", {"answers": ["circuits-cat: purrs"]}, results)


def test_a_claim_without_a_real_model_says_why_and_no_other_does() -> None:
    said = tomllib.loads((EVIDENCE / "claims.toml").read_text(encoding="utf-8"))
    answered = {claim.id for result in saved() for claim in result.claims if claim.id}
    real = {claim.id for result in saved() if result.real for claim in result.claims if claim.id}
    assert {name for name, entry in said.items() if "toys" in entry} == answered - real


def test_every_result_names_its_command() -> None:
    for result in saved():
        assert result.meta["command"].startswith(("moescope ", "python benchmarks/")), result.name
