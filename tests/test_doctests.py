"""The examples in docstrings run, but for those that say that they need minutes."""

from __future__ import annotations

import doctest
import pkgutil
from importlib import import_module

import pytest

import moescope

NAMES = sorted(m.name for m in pkgutil.walk_packages(moescope.__path__, "moescope.") if not m.name.endswith("__main__"))


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("moescope.kernels.triton")])
def test_examples(name: str) -> None:
    failed, _ = doctest.testmod(import_module(name), optionflags=doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL)
    assert not failed


def test_there_are_examples() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = [
        test for name in ("moescope", "moescope.study.settings") for test in finder.find(import_module(name)) if test.examples
    ]
    assert len(found) >= 2
