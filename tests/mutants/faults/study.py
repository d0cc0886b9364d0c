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
