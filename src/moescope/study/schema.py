"""The tables of a study by schema: name, columns, units, meaning; one declaration for claims, figures, documents and tests.

Each study folder holds a ``tables.toml``::

    [accuracy]
    about = "How well circuits of each size name the class."
    task = "text: the task"
    k = "count: neurons in the circuit"
    low = "share: lower end of the 95 % interval, over groups"
    effect = "number, nats per token: change of the loss"
    "note?" = "text: only where there is something to say"
    "share_*" = "share: of the class in whose name it ends"

A column is declared as ``kind[, unit]: meaning``; a name that ends with ``?`` may be absent, and one with ``*`` stands for any
number of columns of that shape that are not declared by their own name. Kinds: ``text``, ``count`` (whole numbers), ``share``
(0 to 1), ``number``, ``flag``, ``list``, ``any`` (numbers and text mixed).
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
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
    """by name or pattern"""

    def column(self, name: str) -> Column | None:
        """How a column is declared; None if it is not."""
        pattern = next((shape for shape in self.columns if "*" in shape and fnmatchcase(name, shape)), name)
        return self.columns.get(name, self.columns.get(pattern))


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
    return Column(kind, unit, meaning, name.endswith("?") or "*" in name)


def check_tables(study: str, tables: Mapping[str, pd.DataFrame]) -> None:
    """Compare every table with its declaration.

    Raises:
        SchemaFault: a table or a column that is not declared, one that is missing, or a column of another kind.
    """
    declared = schema(study)
    for name, table in tables.items():
        if name not in declared:
            raise SchemaFault(f"{study}: table {name!r} is not declared in its tables.toml")
        found = {str(column): declared[name].column(str(column)) for column in table}
        if missing := [c for c, column in declared[name].columns.items() if c not in table and not column.optional]:
            raise SchemaFault(f"{study}: table {name!r} lacks the column {missing[0]!r} that its tables.toml declares")
        for column, said in found.items():
            if said is None:
                raise SchemaFault(f"{study}: column {column!r} of table {name!r} is not declared in its tables.toml")
            if not _fits(table[column], said.kind):
                raise SchemaFault(f"{study}: column {column!r} of table {name!r} is no {said.kind}")


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
