"""Hostile input: every reader refuses it in one line or reads it right, within time and memory."""

from __future__ import annotations

import pytest

from tests.fuzz.run import READERS, fuzz


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("inputs", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_hostile_input_is_refused_in_one_line_or_read_right(name: str, inputs: int) -> None:
    reader = READERS[name]
    tally = fuzz(reader, inputs // (10 if reader.slow else 1))
    assert not tally.faults, f"python -m tests.fuzz '{name}' --inputs 1 --first {tally.first}"
    assert tally.refused or reader.slow  # of few inputs none may be wrong
