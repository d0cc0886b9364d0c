"""Task specifications: ``[NAME=]SOURCE[?key=value&key=value…]``."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from numbers import Integral
from urllib.parse import unquote

from moescope.errors import InputError

_SPOKEN = ("template", "answers")  # options that are texts a model reads
_NAME = re.compile(r"([A-Za-z0-9_.\-]+)=(.+)", re.S)


@dataclass(frozen=True)
class TaskSpec:
    """A parsed task specification. ``text`` is it as the user wrote it; ``name`` is None if not given."""

    text: str
    source: str
    name: str | None = None
    options: dict[str, str] = field(default_factory=dict)


def parse_spec(text: str) -> TaskSpec:
    r"""Parse ``[NAME=]SOURCE[?key=value&…]``.

    Values are percent-decoded (``%26`` for ``&``). ``\n`` and ``\t`` become a newline and a tab in ``template`` and
    ``answers``, so that they can be written on a command line, and in no other: ``path=C:\new`` is a path. A ``+`` stays one.

    Raises
    ------
    InputError
        On an empty source or name, an option without ``=``, or an option given twice.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"task {text!r}: is not text in UTF-8; rename the file or set a UTF-8 locale") from error
    head, _, query = text.partition("?")
    head = head.strip()
    name: str | None = None
    match = _NAME.fullmatch(head)
    # A path may itself contain "=" (run=3.jsonl): an existing file wins over the NAME= reading.
    if match and not os.path.exists(head):
        name, head = match[1], match[2].strip()
    elif head.startswith("="):
        raise InputError(f"task {text!r}: the name before '=' is empty; write NAME=SOURCE or only SOURCE")
    if not head or (head.endswith("=") and not os.path.exists(head)):
        raise InputError(f"task {text!r}: no source; write a preset, a file or hf:org/name after '='")
    options: dict[str, str] = {}
    for part in query.split("&") if query else []:
        key, equals, value = part.partition("=")
        key = key.strip()
        if not equals or not key:
            raise InputError(f"task {text!r}: option {part!r} is not key=value; join options with '&', write %26 for '&'")
        if key in options:
            raise InputError(f"task {text!r}: option {key!r} is given twice; keep one")
        options[key] = unquote(value)
        if key in _SPOKEN:
            options[key] = options[key].replace("\\n", "\n").replace("\\t", "\t")
    return TaskSpec(text, head, name, options)


def check_options(spec: TaskSpec, known: Iterable[str]) -> None:
    """Raise InputError, naming the nearest known option, when ``spec`` has an option outside ``known``."""
    names = sorted(known)
    for key in spec.options:
        if key not in names:
            raise InputError(f"task {spec.text!r}: unknown option {key!r}{suggest(key, names)}; known: {', '.join(names)}")


def suggest(word: str, known: Iterable[str]) -> str:
    """``" (did you mean 'x'?)"`` for the nearest of ``known``, or an empty string."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""


def choice(spec: TaskSpec, key: str, default: str, allowed: Iterable[str]) -> str:
    """The value of option ``key``, which must be one of ``allowed``."""
    value = spec.options.get(key, default)
    names = list(allowed)
    if value not in names:
        raise InputError(f"task {spec.text!r}: {key}={value!r} is not one of {', '.join(names)}{suggest(value, names)}")
    return value


def parse_limit(spec: TaskSpec, limit: int | None) -> int | None:
    """The row limit: the one written in the specification, otherwise ``limit``."""
    text = spec.options.get("limit")
    if text is not None:
        if not text.isdecimal() or len(text) > 12:
            raise InputError(f"task {spec.text!r}: limit={text!r} is not a whole number; write for example limit=500")
        limit = int(text)
    if limit is not None and not isinstance(limit, Integral):
        raise InputError(f"{limit!r} is not a whole number", "limit")
    if limit is not None and limit < 2:
        raise InputError(f"task {spec.text!r}: limit={limit} is too small; a task needs at least a row for each class")
    return limit
