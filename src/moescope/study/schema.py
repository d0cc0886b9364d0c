"""The tables of a study by schema: name, columns, units, meaning; one declaration for claims, figures, documents and tests.

Each study folder holds a ``tables.toml``::

    [accuracy]
    about = "How well circuits of each size name the class."
    task = "text: the task"
    k = "count: neurons in the circuit"
    low = "share: lower end of the 95 % interval, over groups"
    effect = "number, nats per token: change of the loss"
    "note?" = "text: only where there is something to say"

A column is declared as ``kind[, unit]: meaning``; a name that ends with ``?`` may be absent. Kinds: ``text``, ``count`` (whole
numbers), ``share`` (0 to 1), ``number``, ``flag``, ``list``, ``any`` (numbers and text mixed).
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

import pandas as pd
from pandas.api import types as kinds

KINDS = ("text", "count", "share", "number", "flag", "list", "any")


class SchemaFault(AssertionError):
    """A table is not what its study declares: a fault of the study, not of its input."""


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    kind: str
    unit: str
    meaning: str
    optional: bool = False


@dataclass(frozen=True)
class Table:
    """One table of a study."""

    name: str
    about: str
    columns: Mapping[str, Column]


@lru_cache
def schema(study: str) -> dict[str, Table]:
    """The tables that ``study`` may have, by name; empty for a study without declarations."""
    try:
        text = resources.files(f"moescope.studies.{study}").joinpath("tables.toml").read_text(encoding="utf-8")
    except (FileNotFoundError, ModuleNotFoundError):
        return {}
    found = {}
    for name, entries in tomllib.loads(text).items():
        about = entries.pop("about")
        found[name] = Table(name, about, {column.removesuffix("?"): _column(column, said) for column, said in entries.items()})
    return found


def _column(name: str, said: str) -> Column:
    head, _, meaning = said.partition(": ")
    kind, _, unit = head.partition(", ")
    if kind not in KINDS or not meaning:
        raise SchemaFault(f"column {name!r}: {said!r} is not 'kind[, unit]: meaning'")
    return Column(kind, unit, meaning, name.endswith("?"))


def check_tables(study: str, tables: Mapping[str, pd.DataFrame]) -> None:
    """Compare every table with its declaration; a study that declares none is left alone.

    Raises:
        SchemaFault: a table or a column that is not declared, one that is missing, or a column of another kind.
    """
    declared = schema(study)
    if not declared:
        return
    for name, table in tables.items():
        if name not in declared:
            raise SchemaFault(f"{study}: table {name!r} is not declared in its tables.toml")
        columns = declared[name].columns
        if unknown := [str(c) for c in table if c not in columns]:
            raise SchemaFault(f"{study}: column {unknown[0]!r} of table {name!r} is not declared in its tables.toml")
        if missing := [c for c, column in columns.items() if c not in table and not column.optional]:
            raise SchemaFault(f"{study}: table {name!r} lacks the column {missing[0]!r} that its tables.toml declares")
        for column in table:
            if not _fits(table[column], columns[str(column)].kind):
                raise SchemaFault(f"{study}: column {column!r} of table {name!r} is no {columns[str(column)].kind}")


def _fits(values: pd.Series, kind: str) -> bool:
    known = values.dropna()
    if not len(known) or kind == "any":
        return True
    if kind == "text":
        return all(isinstance(v, str) for v in known)
    if kind == "flag":
        return all(isinstance(v, bool) or kinds.is_bool(v) for v in known)
    if kind == "list":
        return all(isinstance(v, list | tuple) or (hasattr(v, "__len__") and not isinstance(v, str)) for v in known)
    if not kinds.is_numeric_dtype(known.infer_objects()) or kinds.is_bool_dtype(known):
        return False
    if kind == "count":
        return bool((known.astype(float) % 1 == 0).all())
    return kind == "number" or bool(known.astype(float).between(-1e-9, 1 + 1e-9).all())
