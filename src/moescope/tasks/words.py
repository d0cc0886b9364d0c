"""Texts whose words have labels: from lists of words, or from places in a text, to one row for each labelled word."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moescope.errors import InputError
from moescope.tasks.labels import missing
from moescope.tasks.sources import Rows
from moescope.tasks.spec import suggest
from moescope.tasks.templates import field_text

IGNORED = -100
"""What token classification of the Hub writes for a word that has no label."""
Span = tuple[int, int]


def word_rows(rows: Rows, options: Mapping[str, str], context: str) -> tuple[Rows, list[Span]]:
    """One record for each labelled word, with the columns of its text and ``label``, and where the word stands in the text.

    Lists in the columns ``tokens=`` and ``label=`` (default ``tokens`` and ``labels``) are words that a space parts; else
    ``text=`` and ``spans=`` (default ``text`` and ``spans``) are a text and a list of [start, end, label], in characters. A
    word whose label is missing or -100 is left out.

    Raises:
        InputError: a column is missing, lists differ in length, or a place lies outside its text; names the row.
    """
    tokens, label = options.get("tokens", "tokens"), options.get("label", "labels")
    text, spans = options.get("text", "text"), options.get("spans", "spans")
    listed = "spans" not in options and (tokens in rows.columns or "tokens" in options)
    for column, key in ((tokens, "tokens"), (label, "label")) if listed else ((text, "text"), (spans, "spans")):
        if column not in rows.columns:
            have = ", ".join(rows.columns)
            near = suggest(column, rows.columns)
            raise InputError(
                f"{context}: no column {column!r}{near} of {key}=; columns: {have}; labels for words need lists of tokens and "
                "labels, or a text and spans"
            )
    records: list[dict[str, Any]] = []
    numbers: list[Any] = []
    places: list[Span] = []
    for i, record in enumerate(rows.records):
        if listed:
            whole, found = _joined(record.get(tokens), record.get(label), rows.where(i), tokens, label)
        else:
            whole = field_text(record.get(text), text, rows.where(i))
            found = _spans(record.get(spans), whole, rows.where(i), spans)
        for place, value in found:
            if missing(value) or value == IGNORED:
                continue
            records.append({**record, "text": whole, "label": value})
            numbers.append(rows.numbers[i])
            places.append(place)
    if not records:
        raise InputError(f"{rows.origin}: no word has a label")
    columns = list(dict.fromkeys([*rows.columns, "text", "label"]))
    return Rows(records, columns, rows.origin, rows.place, numbers), places


def _joined(words: Any, labels: Any, where: str, tokens: str, label: str) -> tuple[str, list[tuple[Span, Any]]]:
    for column, values in ((tokens, words), (label, labels)):
        if not isinstance(values, list | tuple):
            raise InputError(f"{where}: column {column!r} holds a {type(values).__name__}, not a list; give one entry a word")
    if len(words) != len(labels) or not words:
        raise InputError(f"{where}: {len(words)} {tokens} and {len(labels)} {label}; give each word its label")
    found, at = [], 0
    for word, value in zip(words, labels, strict=True):
        if not isinstance(word, str) or not word.strip():
            raise InputError(f"{where}: column {tokens!r}: {word!r} is no word")
        found.append(((at, at + len(word)), value))
        at += len(word) + 1
    return " ".join(words), found


def _spans(spans: Any, text: str, where: str, column: str) -> list[tuple[Span, Any]]:
    found = []
    for span in spans if isinstance(spans, list | tuple) else [spans]:
        parts = list(span) if isinstance(span, list | tuple) else []
        if len(parts) != 3 or not all(isinstance(end, int) and not isinstance(end, bool) for end in parts[:2]):
            raise InputError(f"{where}: column {column!r}: {span!r} is not [start, end, label]")
        start, end, value = parts
        if not 0 <= start < end <= len(text) or not text[start:end].strip():
            raise InputError(f"{where}: column {column!r}: {start} to {end} is no word of a text of {len(text)} characters")
        found.append(((start, end), value))
    return found
