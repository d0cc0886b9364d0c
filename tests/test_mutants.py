"""The faults that are put into the sources still fit them; that each is caught is shown by ``python tests/mutants``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.mutants.fault import Fault
from tests.mutants.faults import FAULTS

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_fits_the_sources_and_names_tests(fault: Fault) -> None:
    text = (ROOT / "src" / "moescope" / fault.file).read_text()
    compile(fault.applied(text), fault.file, "exec")
    assert fault.tests
    for test in fault.tests:
        file, _, name = test.partition("::")
        assert f"def {name.partition('[')[0]}(" in (ROOT / file).read_text()


def test_a_fault_that_no_longer_fits_is_refused() -> None:
    with pytest.raises(ValueError, match="stands 0 times in"):
        replace(FAULTS[0], old="what is not there").applied("text")
    with pytest.raises(ValueError, match="stands 2 times in"):
        replace(FAULTS[0], old="text").applied("text text")


def test_names_are_distinct() -> None:
    names = [fault.name for fault in FAULTS]
    assert len(set(names)) == len(names)
