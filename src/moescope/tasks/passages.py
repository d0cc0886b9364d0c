"""Text of each prompt category, for measuring a model's loss on the category rather than on a prompt."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moescope.errors import InputError
from moescope.tasks.given import given_rows
from moescope.tasks.sources import read_file, shipped_rows


@dataclass(frozen=True)
class Passage:
    """Running text of one category. Passages of one ``group`` come from one document and are not independent."""

    text: str
    category: str
    group: str


def load_passages(source: str | Path | Any = None, *, categories: Sequence[str] | None = None) -> list[Passage]:
    """The shipped passages (code, math, story, factual; no embedded model was trained on them), or those of a file or a
    table in memory (see :func:`moescope.tasks.load_task`).

    It needs the columns ``text`` and ``category``; ``group`` is read where it stands, and is
    otherwise the row.

    Raises:
        InputError: the file cannot be read, lacks a column or a value, or a category has no passage; the message names
            the row.
    """
    if source is None:
        rows = shipped_rows("category_passages")
    elif isinstance(source, str | Path):
        rows = read_file(Path(os.path.expanduser(source)))
    elif isinstance(source, Sequence) and source and all(isinstance(p, Passage) for p in source):
        return list(source)
    else:
        rows = given_rows(source, label="category", parameter="texts")
    passages = []
    for number, record in enumerate(rows.records):
        for column in ("text", "category"):
            if not _text(record.get(column)):
                raise InputError(f"{rows.where(number)}: no {column}; every passage needs a text and a category")
        passages.append(
            Passage(_text(record["text"]), _text(record["category"]), _text(record.get("group")) or str(rows.numbers[number]))
        )
    have = list(dict.fromkeys(p.category for p in passages))
    absent = next((c for c in categories or () if c not in have), None)
    if absent is not None:
        raise InputError(f"category {absent!r} has no passages in {rows.origin}; it has: {', '.join(have)}")
    return [p for p in passages if categories is None or p.category in categories]


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()
