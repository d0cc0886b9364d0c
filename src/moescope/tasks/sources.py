"""Readers: JSONL, CSV, Parquet and the shipped files, as rows that know where they came from."""

from __future__ import annotations

import csv
import io
import json
import lzma
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from moescope.errors import InputError

SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")


@dataclass(frozen=True)
class Rows:
    """Records with their columns and, for messages, the place of each: ``origin: place number``."""

    records: list[dict[str, Any]]
    columns: list[str]
    origin: str
    place: str
    numbers: list[int]
    class_names: tuple[str, ...] = ()

    def where(self, index: int) -> str:
        return f"{self.origin}: {self.place} {self.numbers[index]}"


def shipped_rows(name: str) -> Rows:
    """The rows of a file that the package ships (``data/NAME.jsonl.xz``)."""
    data = resources.files("moescope.tasks").joinpath("data", f"{name}.jsonl.xz").read_bytes()
    records = [json.loads(line) for line in lzma.decompress(data).decode().split("\n") if line]
    return Rows(records, list(records[0]), f"shipped {name}", "row", list(range(1, len(records) + 1)))


def read_file(path: Path) -> Rows:
    """Read a JSONL, CSV, TSV or Parquet file.

    Raises
    ------
    InputError
        When the file is missing, unreadable, of another kind, undecodable, malformed (with its line) or without rows.
    """
    kind = path.suffix.lower()
    if kind not in SUFFIXES:
        raise InputError(f"{path}: unknown kind {kind or 'without suffix'!r}; moescope reads {', '.join(SUFFIXES)}")
    if not path.exists():
        raise InputError(f"{path}: no such file; check the path")
    if path.is_dir():
        raise InputError(f"{path}: is a folder, not a file; for a folder in the Hub's layout write hf:{path}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); check its permissions") from error
    if not data.strip():
        raise InputError(f"{path}: is empty; it needs a row for each example")
    if kind == ".parquet":
        rows = _parquet(path, data)
    elif kind == ".jsonl":
        rows = read_jsonl(str(path), _decode(path, data))
    else:
        rows = _csv(path, _decode(path, data), "\t" if kind == ".tsv" else ",")
    if not rows.records:
        raise InputError(f"{path}: has a header but no rows; it needs a row for each example")
    return rows


def _decode(path: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(f"{path}: line {line}: byte {error.start} is not UTF-8; save the file as UTF-8") from error


def read_jsonl(origin: str, text: str) -> Rows:
    """The rows of JSON lines; ``origin`` names their source in messages.

    Raises
    ------
    InputError
        On a line that is not one JSON object.
    """
    records: list[dict[str, Any]] = []
    numbers: list[int] = []
    columns: dict[str, None] = {}
    # Only "\n" ends a line: str.splitlines would also cut at the Unicode line separators that JSON strings may hold.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line, object_pairs_hook=_object)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", None) or first_line(error)
            raise InputError(f"{origin}: line {number}: invalid JSON ({reason}); write one JSON object a line") from error
        if not isinstance(record, dict):
            raise InputError(f"{origin}: line {number}: a {type(record).__name__}, not an object; write one JSON object a line")
        records.append(record)
        numbers.append(number)
        columns.update(dict.fromkeys(record))
    return Rows(records, list(columns), origin, "line", numbers)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; a key that stands twice would silently lose a value, so it is refused."""
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(k for k in keys if keys.count(k) > 1)!r} stands twice")
    return record


def _csv(path: Path, text: str, delimiter: str) -> Rows:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    records: list[dict[str, Any]] = []
    numbers: list[int] = []
    header: list[str] = []
    try:
        header = [name.strip() for name in next(reader)]
        twice = sorted({name for name in header if header.count(name) > 1})
        if twice:
            raise InputError(f"{path}: line 1: column {twice[0]!r} appears twice; rename one")
        start = reader.line_num + 1
        for values in reader:
            if values:
                if len(values) != len(header):
                    have = f"{len(values)} fields where the header has {len(header)}"
                    raise InputError(f"{path}: line {start}: {have}; quote fields that hold {delimiter!r}")
                # pandas and spreadsheets write a missing value as nothing or as NaN.
                records.append({k: None if v in ("", "NaN", "nan") else v for k, v in zip(header, values, strict=True)})
                numbers.append(start)
            start = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}: line {reader.line_num}: invalid CSV ({error}); mend the quoting or use JSONL") from error
    return Rows(records, header, str(path), "line", numbers)


def _parquet(path: Path, data: bytes) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(io.BytesIO(data))
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable Parquet file ({first_line(error)}); write it again") from error
    return Rows(table.to_pylist(), table.column_names, str(path), "row", list(range(1, table.num_rows + 1)))


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, at most 160 characters, or its class name."""
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
