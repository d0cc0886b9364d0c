"""What every study stands on: finished stages that are kept."""

from __future__ import annotations

from tests.mutants.fault import Fault

_STAGES = "study/stages.py"
_TESTS = "tests/test_study_stages.py::"


def _fault(name: str, breaks: str, old: str, new: str, test: str) -> Fault:
    return Fault(
        name=name, study="study", where="stages", breaks=breaks, file=_STAGES, old=old, new=new, tests=(_TESTS + test,)
    )


_OTHER, _ONCE = "test_what_is_of_another_run_is_removed", "test_a_stage_is_computed_once"
FAULTS = (
    _fault("stage-of-other-inputs", "a stage of other inputs is taken", "[name, *self._inputs]", "[name]", _OTHER),
    _fault("stage-of-other-settings", "a stage of another seed is taken", "[plain(run), versions()", "[versions()", _OTHER),
    _fault("stage-of-other-code", "a stage of other code is taken", "versions(), _code(), torch", "versions(), torch", _OTHER),
    _fault("stage-says-nothing", "controls and notes of a resumed stage are lost", "one += more", "one += more[:0]", _ONCE),
)
