"""From a label column to class numbers and names."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from moescope.errors import InputError
from moescope.tasks.sources import Rows
from moescope.tasks.spec import suggest

MAX_CLASSES = 50
_WHOLE = re.compile(r"-?\d+(\.0+)?")


def missing(value: Any) -> bool:
    """Whether a label or a key is not there; tables of text hold "nan" where pandas wrote one that was missing."""
    if isinstance(value, str):
        return value.strip() in ("", "nan", "NaN")
    return value is None or (isinstance(value, float) and math.isnan(value))


def _label(value: Any, column: str, where: str) -> int | str | bool:
    """A label as int, bool or stripped string. A whole float is an int: pandas writes ints so beside a gap."""
    if missing(value):
        raise InputError(f"{where}: column {column!r}: the label is missing; fill it in or drop the row")
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool | int):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, float):
        raise InputError(
            f"{where}: column {column!r}: label {value!r} looks continuous; say kind=graded, or bin it into classes"
        )
    raise InputError(f"{where}: column {column!r}: a {type(value).__name__} is not a label; use an integer, string or bool")


def _sorted_names(values: set[int | str | bool]) -> list[int | str | bool]:
    """Numbers (also those written as text) by value, everything else by spelling."""
    texts = [str(v) for v in values]
    if all(t.removeprefix("-").isdecimal() for t in texts):
        return sorted(values, key=lambda v: (int(v), str(v)))
    return sorted(values, key=str)


def _name(value: int | str | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def encode_labels(rows: Rows, column: str, positive: str | None) -> tuple[list[int], tuple[str, ...]]:
    """Class numbers of all rows and the class names.

    Classes are sorted, unless the rows carry their own names (a Hub ClassLabel). ``positive`` makes the task binary:
    the class of that name is 1 and everything else 0.

    Raises
    ------
    InputError
        For a missing, continuous or oddly typed label (with its row), a single class, more than 50 classes, or an
        unknown ``positive``.
    """
    values = [_label(record.get(column), column, rows.where(i)) for i, record in enumerate(rows.records)]
    if all(isinstance(v, str) and _WHOLE.fullmatch(v) for v in values):
        values = [str(v).partition(".")[0] for v in values]  # 1.0 is how pandas writes 1 beside a gap
    kinds = {type(v) for v in values}
    if len(kinds) > 1:
        odd = next(i for i, v in enumerate(values) if type(v) is not type(values[0]))
        a, b = type(values[0]).__name__, type(values[odd]).__name__
        raise InputError(f"{rows.where(odd)}: column {column!r}: a {b} among labels of kind {a}; use one kind throughout")
    if rows.class_names:
        return _named(rows, column, values, positive)
    ordered = _sorted_names(set(values))
    return _finish(rows, column, [ordered.index(v) for v in values] if len(ordered) <= MAX_CLASSES else None,
                   [_name(v) for v in ordered], [_name(v) for v in values], positive)  # fmt: skip


def _named(rows: Rows, column: str, values: list[Any], positive: str | None) -> tuple[list[int], tuple[str, ...]]:
    names = rows.class_names
    for i, value in enumerate(values):
        if not isinstance(value, int) or not 0 <= value < len(names):
            raise InputError(f"{rows.where(i)}: column {column!r}: label {value!r} has no name (unlabelled split?)")
    present = [n for c, n in enumerate(names) if c in set(values)]
    texts = [names[v] for v in values]
    codes = {n: c for c, n in enumerate(present)}
    return _finish(rows, column, [codes[t] for t in texts], present, texts, positive)


def _finish(
    rows: Rows, column: str, codes: list[int] | None, names: list[str], texts: list[str], positive: str | None
) -> tuple[list[int], tuple[str, ...]]:
    where = f"{rows.origin}: column {column!r}"
    if len(names) < 2:
        raise InputError(f"{where}: all rows have the label {names[0]!r}; a task needs at least two classes")
    if positive is not None:
        match = [n for n in names if n == positive] or [n for n in names if n.casefold() == positive.casefold()]
        if len(match) != 1:
            some = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
            raise InputError(f"{where}: positive={positive!r} is no label{suggest(positive, names)}; labels: {some}")
        others = [n for n in names if n != match[0]]
        rest = others[0] if len(others) == 1 else f"not {match[0]}"
        return [int(t == match[0]) for t in texts], (rest, match[0])
    if codes is None:
        raise InputError(
            f"{where}: {len(names)} different labels look continuous (at most {MAX_CLASSES} classes); "
            "say kind=graded, bin them, choose another label= or add positive="
        )
    return codes, tuple(names)


def graded_values(rows: Rows, column: str, options: Mapping[str, str]) -> list[float]:
    """The numbers of a graded label, in row order.

    Raises
    ------
    InputError
        For a value that is missing or no finite number (with its row), for values that are all the same, and for options that
        name classes.
    """
    if odd := next((key for key in ("positive", "answers") if key in options), None):
        raise InputError(f"{rows.origin}: {odd}= is of classes, and the label is graded; leave it or kind=graded out")
    values = []
    for i, record in enumerate(rows.records):
        value = record.get(column)
        if missing(value):
            raise InputError(f"{rows.where(i)}: column {column!r}: the label is missing; fill it in or drop the row")
        try:
            number = float("nan") if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise InputError(f"{rows.where(i)}: column {column!r}: {value!r} is no finite number; a graded label is one")
        values.append(number)
    if min(values) == max(values):
        raise InputError(f"{rows.origin}: column {column!r}: all rows have the value {values[0]:g}; a graded label must differ")
    return values
