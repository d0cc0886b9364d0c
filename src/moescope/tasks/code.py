"""Python's own standard library as tasks that every machine has: what each word of a line is, and how long a function will be.

What a name *is* does not follow from how it is spelt: ``value`` may be an attribute, an argument's name or a variable, and what
it is depends on what stands before it in the line.
"""

from __future__ import annotations

import ast
import io
import keyword
import math
import tokenize
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from moescope.errors import InputError
from moescope.tasks.sources import Rows

MODULES = (
    "argparse", "ast", "bisect", "calendar", "cmd", "codeop", "configparser", "copy", "csv", "dataclasses", "difflib", "dis",
    "fnmatch", "fractions", "functools", "getopt", "glob", "gzip", "heapq", "inspect", "mailbox", "numbers", "optparse",
    "pprint", "queue", "random", "reprlib", "sched", "shelve", "shlex", "smtplib", "statistics", "string", "tarfile",
    "textwrap", "threading", "timeit", "tokenize", "traceback", "uuid", "weakref", "zipfile",
)  # fmt: skip
"""Pure Python, read and not run."""
_LENGTHS = range(20, 101)  # characters of a line that is taken
_LEAST = 4  # labelled words in it


def code_rows() -> Rows:
    """Lines of code: ``text``, and ``spans`` of [start, end, kind].

    The kinds: ``keyword``, ``attribute`` (a name after a dot), ``function`` (a name before an opening bracket), ``name`` (any
    other), ``number`` and ``string``.

    Raises:
        InputError: this Python has no sources of its library.
    """
    records = [record for _, source in _sources() for record in _lines(source)]
    return Rows(records, ["text", "spans"], "standard library", "line", list(range(1, len(records) + 1)))


def function_rows() -> Rows:
    """Heads of functions, from ``def`` to the colon: ``text``, ``label``, the binary logarithm of the lines of code that follow
    (without the docstring), and ``group``, the module. Each head stands once.

    Raises:
        InputError: as :func:`code_rows`.
    """
    found: dict[str, dict[str, object]] = {}
    for module, source in _sources():
        lines = source.splitlines()
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            told = isinstance(node.body[0], ast.Expr) and isinstance(node.body[0].value, ast.Constant)
            body = node.body[1:] if told else node.body
            head = " ".join(" ".join(lines[node.lineno - 1 : node.body[0].lineno - 1]).split())
            if body and head.endswith(":"):
                length = (body[-1].end_lineno or body[-1].lineno) - body[0].lineno + 1
                found.setdefault(head, {"text": head, "label": math.log2(length), "group": module})
    return Rows([*found.values()], ["text", "label", "group"], "standard library", "function", list(range(1, len(found) + 1)))


def _sources() -> list[tuple[str, str]]:
    """Module and source of each of :data:`MODULES` that this Python has."""
    found = []
    for module in MODULES:
        spec = find_spec(module)
        path = Path(spec.origin) if spec is not None and spec.origin else None
        if path is not None and path.suffix == ".py" and path.is_file():
            found.append((module, path.read_text(encoding="utf-8")))
    if not found:
        raise InputError("this Python has no sources of its standard library; give a file instead (kind=tokens, kind=graded)")
    return found


def _lines(source: str) -> Iterator[dict[str, object]]:
    found: dict[str, list[tuple[int, int, str]]] = {}
    words = [t for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.string.strip()]
    for place, word in enumerate(words):
        if word.start[0] != word.end[0] or word.type == tokenize.COMMENT:
            continue
        before, after = (words[i].string if 0 <= i < len(words) else "" for i in (place - 1, place + 1))
        if (kind := _kind(word, before, after)) is not None:
            found.setdefault(word.line, []).append((word.start[1], word.end[1], kind))
    for line, spans in found.items():
        text = line.rstrip()
        indent = len(text) - len(text.lstrip())
        inside = [[start - indent, end - indent, kind] for start, end, kind in spans if end <= len(text)]
        # the same line twice, or one over several lines, would be read as if it were one
        apart = len({start for start, *_ in inside}) == len(inside) and "\n" not in text
        if apart and len(text) - indent in _LENGTHS and len(inside) >= _LEAST:
            yield {"text": text[indent:], "spans": inside}


def _kind(word: tokenize.TokenInfo, before: str, after: str) -> str | None:
    if word.type == tokenize.NUMBER:
        return "number"
    if word.type == tokenize.STRING:
        return "string"
    if word.type != tokenize.NAME:
        return None
    if keyword.iskeyword(word.string):
        return "keyword"
    return "attribute" if before == "." else "function" if after == "(" else "name"
