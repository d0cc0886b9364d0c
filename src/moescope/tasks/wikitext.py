"""Text that belongs to no task: the shipped excerpt of WikiText-2 (test), for loss off the task."""

from __future__ import annotations

import lzma
import re
from importlib import resources

from moescope.errors import InputError

_FILES = {"wikitext": "wikitext2_test.txt.xz"}


def plain_text(name: str = "wikitext") -> list[str]:
    """The paragraphs of a shipped text, in order, without headings (at least 80 characters each).

    ``wikitext`` is whole articles from the start of WikiText-2's test set (Merity et al. 2016, CC BY-SA 3.0) with the
    word tokenisation undone; no embedded model was trained on it.

    Raises
    ------
    InputError
        For an unknown name.
    """
    if name not in _FILES:
        raise InputError(f"unknown text {name!r}; shipped: {', '.join(_FILES)}")
    data = resources.files("moescope.tasks").joinpath("data", _FILES[name]).read_bytes()
    paragraphs = (p.strip() for p in lzma.decompress(data).decode().split("\n"))
    return [p for p in paragraphs if len(p) >= 80 and not p.startswith("=")]


def articles(text: str) -> list[str]:
    """The articles of raw WikiText, which has a line `` = Title = `` before each and no blank line between; none for other
    text."""
    starts = [found.start() for found in re.finditer(r"^ ?= [^=\n]+ = ?$", text, re.MULTILINE)]
    if len(starts) < 2:
        return []
    ends = [*starts[1:], len(text)]
    return [text[start:end].strip() for start, end in zip(starts, ends, strict=True)]
