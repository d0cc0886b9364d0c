"""What every study stands on: finished stages that are kept."""

from __future__ import annotations

from tests.mutants.fault import faults

_STAGES = "study/stages.py"
_OTHER, _ONCE = ("test_what_is_of_another_run_is_removed",), ("test_a_stage_is_computed_once",)
FAULTS = faults(
    "stage",
    "../study_stages",
    ("of-other-inputs", "stages", "one of other inputs is taken", _STAGES, "[name, *self._inputs]", "[name]", _OTHER),
    ("of-another-seed", "stages", "one of another seed is taken", _STAGES, "[plain(run), versions()", "[versions()", _OTHER),
    ("of-other-code", "stages", "one of other code is taken", _STAGES, "versions(), _code(),", "versions(),", _OTHER),
    (
        "says-nothing",
        "stages",
        "what a resumed one said is lost",
        _STAGES,
        "one += more",
        "one += more[:0]",
        _ONCE,
    ),
)
FAULTS += faults(
    "answer",
    "../report_answer",
    (
        "first-rival-explains",
        "explanations",
        "the first rival is named as what explains a figure",
        "study/verdicts.py",
        'told = {"by": rival.against} if rival.kind != "none found" else {}',
        'told = {"by": readings[0][0].against} if rival.kind != "none found" else {}',
        ("test_what_explains_a_figure_is_the_rival_that_does",),
    ),
    (
        "explained-is-believed",
        "answer",
        "what something explains is to be believed",
        "report/answer.py",
        'return _HEADINGS[claim.explanation not in (None, "none found")]',
        "return _HEADINGS[0]",
        ("test_every_claim_that_was_tested_stands_where_its_verdict_belongs",),
    ),
    (
        "settled-by-the-effect",
        "more text",
        "a rival that is open asks for the text that the effect needs",
        "study/verdicts.py",
        "else undecided or [effect]",
        "else [effect]",
        ("test_a_claim_open_because_of_a_rival_needs_the_text_that_the_rival_needs",),
    ),
)
