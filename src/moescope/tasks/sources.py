"""Readers: JSON, CSV, Parquet and the shipped files, as rows that know where they came from."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import lzma
import os
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from moescope.errors import InputError
from moescope.files.parse import parse_json
from moescope.files.text import PACKED, lines, read_bytes, read_text

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_QUOTED = re.compile(r'"(?:[^"]|"")*"')


@dataclass(frozen=True)
class Rows:
    """Records with their columns and, for messages, the place of each: ``origin: place number``."""

    records: list[dict[str, Any]]
    columns: list[str]
    origin: str
    place: str
    numbers: list[Any]
    class_names: tuple[str, ...] = ()

    def where(self, index: int) -> str:
        return f"{self.origin}: {self.place} {self.numbers[index]}"


def shipped_rows(name: str) -> Rows:
    """The rows of a file that the package ships (``data/NAME.jsonl.xz``)."""
    data = resources.files("moescope.tasks").joinpath("data", f"{name}.jsonl.xz").read_bytes()
    records = [json.loads(line) for line in lzma.decompress(data).decode().split("\n") if line]
    return Rows(records, list(records[0]), f"shipped {name}", "row", list(range(1, len(records) + 1)))


def names_file(source: str) -> bool:
    """Whether ``source`` means a file, be it there or not: by its suffix, a separator of any system, or because it exists."""
    return Path(source).suffix.lower() in (*SUFFIXES, *PACKED) or "/" in source or "\\" in source or os.path.exists(source)


def read_file(path: Path, encoding: str | None = None) -> Rows:
    """Read a JSON, JSON-lines, CSV, TSV or Parquet file, packed or not (see :func:`moescope.files.text.read_text`).

    Raises
    ------
    InputError
        When the file is missing, unreadable, of another kind, undecodable, malformed (with its line) or without rows.
    """
    kind = next((s.lower() for s in reversed(path.suffixes) if s.lower() not in PACKED), "")
    if kind not in SUFFIXES:
        raise InputError(f"{path}: unknown kind {kind or 'without suffix'!r}; moescope reads {', '.join(SUFFIXES)}")
    if os.path.isdir(path):
        raise InputError(f"{path}: is a folder, not a file; for a folder in the Hub's layout write hf:{path}")
    if kind == ".parquet":
        rows = _parquet(path, read_bytes(path))
    else:
        text = read_text(path, encoding)
        if not text.strip():
            raise InputError(f"{path}: is empty; it needs a row for each example")
        rows = read_csv(str(path), text, _DELIMITERS[kind]) if kind in _DELIMITERS else unfolded(read_json(str(path), text))
    if not rows.records:
        raise InputError(f"{path}: has a header but no rows; it needs a row for each example")
    return rows


def read_json(origin: str, text: str) -> Rows:
    """The rows of JSON lines, or of one JSON document, whatever the file is called; ``origin`` names it in messages.

    A document is a list of objects, or one object over several lines, which is one row.

    Raises
    ------
    InputError
        On a line, or a member of the list, that is not one JSON object.
    """
    parts = [(number, line) for number, line in enumerate(lines(text), start=1) if line.strip()]
    place, values = "line", []
    for number, line in parts:
        try:
            values.append((number, parse_json(line)))
        except ValueError as error:
            document = _document(text) if number == parts[0][0] else None
            if document is not None:
                place, values = "row", list(enumerate(document, start=1))
                break
            reason = getattr(error, "msg", None) or first_line(error)
            raise InputError(f"{origin}: line {number}: invalid JSON ({reason}); write one JSON object a line") from error
    if len(values) == 1 and isinstance(values[0][1], list):
        place, values = "row", list(enumerate(values[0][1], start=1))
    for number, value in values:
        if not isinstance(value, dict):
            raise InputError(
                f"{origin}: {place} {number}: a {type(value).__name__}, not an object; write one JSON object a {place}"
            )
    columns = dict.fromkeys(column for _, value in values for column in value)
    return Rows([value for _, value in values], list(columns), origin, place, [number for number, _ in values])


def _document(text: str) -> list[Any] | None:
    try:
        value = parse_json(text)
    except ValueError:
        return None
    return value if isinstance(value, list) else [value]


def unfolded(rows: Rows) -> Rows:
    """Rows whose one record is a table by column (lists, or objects by row as pandas writes them), or holds a list of rows."""
    record = rows.records[0] if len(rows.records) == 1 else {}
    columns = {k: list(v.values()) if isinstance(v, dict) else v for k, v in record.items()}
    if not columns or not all(isinstance(v, list) for v in columns.values()):
        return rows
    records: list[Any] = next(iter(columns.values()))
    if len(columns) > 1:
        lengths = {k: len(v) for k, v in columns.items()}
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{k!r} {n}" for k, n in lengths.items())
            raise InputError(f"{rows.origin}: its columns are not equally long ({told}); give each a value for every row")
        records = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    if not all(isinstance(r, dict) for r in records):
        return rows
    names = dict.fromkeys(name for r in records for name in r)
    return Rows(records, list(names), rows.origin, "row", list(range(1, len(records) + 1)))


def read_csv(origin: str, text: str, delimiter: str) -> Rows:
    """The rows of a table with a header. Another delimiter is taken where the header lacks ``delimiter`` and has that.

    Between tabs a quotation mark is text (as GLUE writes), unless all of them quote as CSV does.

    Raises
    ------
    InputError
        On a row that has not the header's number of fields, on wrong quoting, and on a quoted field that looks like rows.
    """
    head = next(line for line in lines(text) if line.strip())
    if delimiter not in head:
        delimiter = next((d for d in "\t;,|" if d in head), delimiter)
    if delimiter != "\t" or _quotes(text):
        return _csv(origin, text, delimiter, csv.QUOTE_MINIMAL)
    try:
        return _csv(origin, text, delimiter, csv.QUOTE_NONE)
    except InputError:
        # quoted fields may hold the line ends that made it ragged
        with contextlib.suppress(InputError):
            return _csv(origin, text, delimiter, csv.QUOTE_MINIMAL)
        raise


def _quotes(text: str) -> bool:
    """Whether the quotation marks of a table between tabs, whose lines are its rows, quote fields as a writer of CSV does."""
    rows = [line.split("\t") for line in lines(text) if line.strip()]
    marked = [field for row in rows for field in row if '"' in field]
    if any(len(row) != len(rows[0]) for row in rows) or not all(map(_QUOTED.fullmatch, marked)):
        return False
    # quoted without need, or doubled inside: else a quoted sentence is one that is written so
    return any('""' in field[1:-1] for field in marked) or any(
        all(map(_QUOTED.fullmatch, c)) for c in zip(*rows[1:], strict=True)
    )


def _csv(origin: str, text: str, delimiter: str, quoting: Literal[0, 3]) -> Rows:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, quoting=quoting)
    found: list[tuple[int, int, list[str]]] = []  # first line, last line, fields
    start = 1
    limit = csv.field_size_limit(2**31 - 1)  # a long text is no error
    try:
        for values in reader:
            if values and (len(values) > 1 or values[0].strip()):
                found.append((start, reader.line_num, values))
            start = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{origin}: line {start}: invalid CSV ({error}); mend the quoting or use JSONL") from error
    finally:
        csv.field_size_limit(limit)
    if not found:
        raise InputError(f"{origin}: holds empty fields and nothing else; it needs a header and a row for each example")
    header = [name.strip() for name in found.pop(0)[2]]
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise InputError(f"{origin}: line 1: column {twice[0]!r} appears twice; rename one")
    while found and not any(v.strip() for v in found[-1][2]):
        found.pop()  # empty rows at the end, as spreadsheets write them
    for start, _, values in found:
        if len(values) != len(header):
            have = f"{len(values)} fields where the header has {len(header)}"
            raise InputError(f"{origin}: line {start}: {have}; quote fields that hold {delimiter!r}")
    _check_swallowed(origin, lines(text), found, delimiter)
    records = [{k: None if v == "" else v for k, v in zip(header, values, strict=True)} for *_, values in found]
    return Rows(records, header, origin, "line", [start for start, *_ in found])


def _check_swallowed(origin: str, physical: list[str], found: list[tuple[int, int, list[str]]], delimiter: str) -> None:
    """A stray quotation mark makes one field of all lines up to the next one: a field whose lines look like rows is refused."""
    single = [values for start, end, values in found if start == end]
    if not single or len(single) == len(found):
        return
    width = len(single[0])
    known = [{values[i] for values in single} for i in (0, -1)]
    for start, end, _ in found:
        parts = [line.split(delimiter) for line in physical[start - 1 : end]]
        if start == end or any(len(part) != width for part in parts):
            continue
        for i, keys in zip((0, -1), known, strict=True):
            if len(keys) <= len(single) / 2 and all(part[i] in keys for part in parts):
                raise InputError(
                    f"{origin}: line {start}: a quotation mark opened here is closed on line {end}, and the lines between look "
                    f"like rows; write a stray mark twice and its field in quotes, or use JSONL"
                )


def _parquet(path: Path, data: bytes) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(io.BytesIO(data))
        records, names = table.to_pylist(), table.column_names  # which decode what was not looked at before
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable Parquet file ({first_line(error)}); write it again") from error
    return Rows(records, names, str(path), "row", list(range(1, table.num_rows + 1)))


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, at most 160 characters, or its class name."""
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
