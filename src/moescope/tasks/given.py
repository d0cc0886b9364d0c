"""What Python callers give in a file's place: tables in memory, pairs, columns or classes of texts, as rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from moescope.errors import InputError
from moescope.tasks.sources import Rows

KINDS = "a DataFrame, a Dataset, a list of rows or of (text, {label}), a dict of columns or of {label}: texts"


def is_table(given: Any, *, text: str = "text", label: str = "label") -> bool:
    """Whether ``given`` is one table, rather than several tasks or the name of one: see :func:`given_rows` for what is."""
    if isinstance(given, str | Path | bytes):
        return False
    if _frame(given):
        return True
    if isinstance(given, Mapping):  # a DatasetDict is refused as a table, rather than taken for tasks called train and test
        return _wide(given) or _by_column(given, text, label) or _by_class(given)
    first = given[0] if isinstance(given, Sequence) and given else None
    return _columns(given) or _pair(first) or (isinstance(first, Mapping) and not is_table(first))


def given_rows(given: Any, *, text: str = "text", label: str = "label", parameter: str | None = None) -> Rows:
    """A table in memory as rows with the columns ``text`` and ``label``, or its own.

    Taken are what pandas, polars, pyarrow and `datasets` call a table; a list of mappings or of (text, label); two lists
    (texts, labels); a mapping with columns; and one from a label to its texts. Texts alone are a table without labels.

    Raises:
        InputError: it is none of these, or its columns are not equally long; one line that says what is taken.
    """
    origin = type(given).__name__
    if _frame(given):
        return _of_frame(given, label, origin)
    if isinstance(given, Mapping) and _by_column(given, text, label):
        return _of_columns(given, origin, parameter)
    if isinstance(given, Mapping) and _by_class(given):
        return _of_records([{text: t, label: name} for name, texts in given.items() for t in texts], origin)
    if _columns(given):
        return _of_columns({text: given[0], label: given[1]}, origin, parameter)
    if isinstance(given, Iterable) and not isinstance(given, str | bytes | Mapping):
        records = [_as_record(item, text, label) for item in given]
        if records and all(record is not None for record in records):
            return _of_records([record for record in records if record is not None], origin)
        odd = next((i for i, record in enumerate(records) if record is None), None)
        wrong = "is empty" if odd is None else f"row {odd}: {type(list(given)[odd]).__name__} is no row"
        raise InputError(f"{origin}: {wrong}; give {KINDS.format(label=label)}", parameter)
    splits = list(given) if isinstance(given, Mapping) and any(_frame(v) for v in given.values()) else []
    if splits:
        raise InputError(f"{origin}: holds several tables; choose one, such as [{str(splits[0])!r}]", parameter)
    raise InputError(f"{origin}: cannot be read as a table; give {KINDS.format(label=label)}", parameter)


def given_texts(given: Any, parameter: str = "texts") -> list[str]:
    """Texts in memory, each a text that is not empty.

    Raises:
        InputError: none is given, or a member is none; names its place.
    """
    found = list(given) if isinstance(given, Iterable) and not isinstance(given, Mapping | bytes) and not _wide(given) else None
    if not found:
        raise InputError(
            f"{'none' if found == [] else f'a {type(given).__name__}'} given; give a list of texts or a file", parameter
        )
    for i, text in enumerate(found):
        if not isinstance(text, str) or not text.strip():
            raise InputError(
                f"text {i} is {'empty' if isinstance(text, str) else f'a {type(text).__name__}'}; give a text", parameter
            )
    return found


def _frame(given: Any) -> bool:
    """A table of pandas, `datasets`, polars or pyarrow, by what it can do."""
    if isinstance(given, Mapping):
        return False
    return any(hasattr(given, name) for name in ("iloc", "to_dicts", "to_pylist", "column_names")) and _wide(given)


def _wide(given: Any) -> bool:
    return hasattr(given, "columns") or hasattr(given, "column_names")


def _of_frame(given: Any, label: str, origin: str) -> Rows:
    if hasattr(given, "iloc"):
        names = [str(c) for c in given.columns]
        twice = next((n for n in names if names.count(n) > 1), None)
        if twice is not None:
            raise InputError(f"{origin}: column {twice!r} appears twice; rename one")
        plain = given.astype(object).where(given.notna(), None)
        records = [dict(zip(names, values, strict=True)) for values in plain.itertuples(index=False, name=None)]
        return _of_records(records, origin, names, "index", list(given.index))
    if not hasattr(given, "__len__"):
        raise InputError(f"{origin}: is a stream; take its first rows, such as list(it.take(1000))")
    export = next(getattr(given, name) for name in ("to_list", "to_dicts", "to_pylist") if hasattr(given, name))
    classes = tuple(getattr((getattr(given, "features", None) or {}).get(label), "names", None) or ())
    names = list(getattr(given, "column_names", None) or given.columns)
    return dataclasses.replace(_of_records(export(), origin, names), class_names=classes)


def _of_columns(given: Mapping[Any, Any], origin: str, parameter: str | None) -> Rows:
    columns = {str(name): list(values) for name, values in given.items() if _listed(values)}
    if len(columns) < len(given):
        odd = next(name for name, values in given.items() if not _listed(values))
        raise InputError(f"{origin}: column {odd!r} is a {type(given[odd]).__name__}, not a list", parameter)
    if len({len(values) for values in columns.values()}) > 1:
        told = ", ".join(f"{name!r} {len(values)}" for name, values in columns.items())
        raise InputError(f"{origin}: its columns are not equally long ({told}); give each a value for every row", parameter)
    return _of_records(
        [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)], origin, list(columns)
    )


def _of_records(
    records: Sequence[Mapping[Any, Any]],
    origin: str,
    names: Sequence[str] = (),
    place: str = "row",
    numbers: Sequence[Any] = (),
) -> Rows:
    """Rows counted from 0, as Python does; numbers of numpy and torch as Python's own."""
    if not records:
        raise InputError(f"{origin}: has no rows; it needs one for each example")
    plain = [{str(k): v.item() if getattr(v, "ndim", None) == 0 else v for k, v in record.items()} for record in records]
    columns = list(names or dict.fromkeys(name for record in plain for name in record))
    return Rows(plain, columns, f"{origin} of {len(plain)} rows", place, list(numbers or range(len(plain))))


def _as_record(item: Any, text: str, label: str) -> Mapping[Any, Any] | None:
    if isinstance(item, str):
        return {text: item}
    return {text: item[0], label: item[1]} if _pair(item) else item if isinstance(item, Mapping) else None


def _pair(item: Any) -> bool:
    """(text, label)."""
    return isinstance(item, tuple | list) and len(item) == 2 and isinstance(item[0], str) and not _listed(item[1])


def _columns(given: Any) -> bool:
    """(texts, labels)."""
    two = isinstance(given, tuple) and len(given) == 2 and _texts(given[0]) and _listed(given[1])
    return two and not (_pair(given[0]) and _pair(given[1]))


def _by_column(given: Mapping[Any, Any], text: str, label: str) -> bool:
    return text in given and _listed(given[text]) and (label in given or len(given) == 1)


def _by_class(given: Mapping[Any, Any]) -> bool:
    return bool(given) and all(_texts(texts) for texts in given.values())


def _texts(values: Any) -> bool:
    return _listed(values) and len(values) > 0 and all(isinstance(v, str) for v in values)


def _listed(values: Any) -> bool:
    """Values in order; a table is none, whose members may be the names of its columns."""
    ordered = hasattr(values, "__len__") and hasattr(values, "__iter__") and not isinstance(values, str | bytes | Mapping)
    return ordered and not _wide(values)
