"""What is printed reaches its reader, whatever the terminal can show."""

from __future__ import annotations

import codecs
import contextlib
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from moescope.errors import Note

# Typography of the tables and messages, for a terminal without it; names are escaped, never changed.
_PLAIN = {
    "·": "-", "…": "...", "–": "-", "−": "-", "×": "x", "±": "+/-", "≤": "<=", "≥": ">=", "≈": "~", "→": "->", "²": "^2",
    "½": "1/2", "¼": "1/4", "Δ": "delta ", "σ": "sigma", "μ": "mu", "✓": "+", "✗": "x", "★": "*", "○": "o", "⊘": "/", "’": "'",
    "─": "-", "━": "-", "╸": "-", "╺": "-", "│": "|", "•": "*",
}  # fmt: skip


def _shown(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    parts = (_PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in error.object[error.start : error.end])
    return "".join(parts), error.end


@contextlib.contextmanager
def any_terminal() -> Iterator[None]:
    """Print to stdout and stderr in any encoding, and a :class:`~moescope.errors.Note` as one line on stderr."""
    codecs.register_error("moescope", _shown)
    for stream in (sys.stdout, sys.stderr):
        # another object may stand in a stream's place, as in a notebook
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="moescope")
    with warnings.catch_warnings():
        warnings.simplefilter("always", Note)
        ordinary = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any) -> None:
            if issubclass(category, Note):
                print(f"note: {message}", file=sys.stderr)
            else:
                ordinary(message, category, *place)

        warnings.showwarning = show  # type: ignore[assignment]
        yield


def unicode_output() -> bool:
    """Whether stdout takes every character."""
    return (getattr(sys.stdout, "encoding", None) or "utf-8").lower().startswith("utf")
