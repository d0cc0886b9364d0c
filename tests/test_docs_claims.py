"""The page of claims and the table of the README are what the saved results say."""

from __future__ import annotations

import tomllib

from tools.claims import EVIDENCE, pages, saved


def test_the_pages_are_what_the_results_say() -> None:
    for path, text in pages().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run python tools/claims.py"


def test_every_claim_of_the_studies_is_answered_or_says_why_not() -> None:
    said = tomllib.loads((EVIDENCE / "claims.toml").read_text(encoding="utf-8"))
    expected = [f"H{i}" for i in range(1, 25)] + [f"S{i}" for i in range(1, 12)] + [f"M{i}" for i in range(1, 9)]
    assert list(said) == expected
    answered = {claim.id for result in saved() for claim in result.claims if claim.id}
    assert answered <= set(expected)
    for name, entry in said.items():
        assert name in answered or entry.get("absent"), f"{name}: no result has it, and nothing says why"


def test_a_claim_without_a_real_model_says_why_and_no_other_does() -> None:
    said = tomllib.loads((EVIDENCE / "claims.toml").read_text(encoding="utf-8"))
    answered = {claim.id for result in saved() for claim in result.claims if claim.id}
    real = {claim.id for result in saved() if result.real for claim in result.claims if claim.id}
    assert {name for name, entry in said.items() if "toys" in entry} == answered - real


def test_every_result_names_its_command() -> None:
    for result in saved():
        assert result.meta["command"].startswith(("moescope ", "python benchmarks/")), result.name
