"""Names of files that are read from data: a manifest, an index, a trace. None of them is trusted."""

from __future__ import annotations

import re
from pathlib import Path

# One part of a path, of the characters that moescope and transformers write. No separator of any system, no drive letter,
# no "..", nothing hidden, nothing that a terminal would act on.
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=@-]{0,200}")


def plain_name(name: object) -> str:
    """``name``, if it is the plain name of a file inside a folder.

    Raises:
        ValueError: it has a separator, is hidden or "..", or is no text at all. The reader of the file adds which file said so.
    """
    if not isinstance(name, str) or not _PLAIN.fullmatch(name):
        raise ValueError(f"{str(name)[:80]!r} is not a plain file name")
    return name


def inside(name: str) -> Path:
    """``name`` as a path of plain parts.

    Raises:
        ValueError: it would lead elsewhere.
    """
    return Path(*(plain_name(part) for part in name.split("/")))
