"""Settings that check themselves when they are made: each field says its type and its bounds, once.

A study's settings are a frozen dataclass derived from :class:`Settings`. A field is annotated with its type and, where that
says too little, with bounds; the string under it is its help. The command line, its messages and the documents' tables of
options are made from these declarations (`moescope.cli.generate`).

>>> @dataclass(frozen=True, kw_only=True)
... class Example(Settings):
...     n_folds: Annotated[int, at_least(2)] = 5
...     mode: Literal["mean", "zero"] = "mean"
>>> Example(n_folds=1)
Traceback (most recent call last):
moescope.errors.InputError: n_folds: must be at least 2, got 1
>>> Example(mode="nonsense")
Traceback (most recent call last):
moescope.errors.InputError: mode: 'nonsense' is none of mean, zero
"""

from __future__ import annotations

import ast
import inspect
import math
import textwrap
import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from moescope.errors import InputError
from moescope.types import Site

R = TypeVar("R")

NAMES = {int: "a whole number", float: "a number", bool: "True or False", str: "a text", Path: "a path"}


@dataclass(frozen=True)
class Bounds:
    """What a number, or every member of a tuple, must keep to."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __str__(self) -> str:
        if math.isinf(self.high):
            return f"above {self.low:g}" if self.open_low else f"at least {self.low:g}"
        return f"{'above' if self.open_low else 'from'} {self.low:g} {'and below' if self.open_high else 'to'} {self.high:g}"

    def hold(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        return above and (value < self.high if self.open_high else value <= self.high)


@dataclass(frozen=True)
class NonEmpty:
    """A tuple must have a member."""


@dataclass(frozen=True)
class Sites:
    """A text that names sites; also a :class:`~moescope.types.Site`, or several of both, which are written as a text."""


@dataclass(frozen=True)
class Form:
    """How a member that is a tuple itself is written as text, such as ``LAYER:EXPERT``."""

    text: str


def at_least(low: float) -> Bounds:
    return Bounds(low=low)


def above(low: float) -> Bounds:
    return Bounds(low=low, open_low=True)


def between(low: float, high: float, *, open_low: bool = True, open_high: bool = True) -> Bounds:
    """Inside ``low`` and ``high``, the ends left out unless said."""
    return Bounds(low, high, open_low, open_high)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The base of all settings. Numbers from numpy and lists are taken and stored as Python's own and as tuples.

    Raises:
        InputError: a value of another type or out of bounds; names the parameter.
    """

    def __post_init__(self) -> None:
        for name, hint in hints(type(self)).items():
            object.__setattr__(self, name, checked(name, getattr(self, name), hint))
        self.check()

    def check(self) -> None:
        """What no field can say alone: overridden where fields must fit together."""


@dataclass(frozen=True, kw_only=True)
class Judged(Settings):
    """Settings of a study whose claims get a verdict."""

    alpha: Annotated[float, between(0, 0.5)] = 0.05
    """Level of every test."""


def hints(cls: Any) -> Mapping[str, Any]:
    """Annotation of each field, bounds included, in order."""
    found = get_type_hints(cls, include_extras=True)
    return {f.name: found[f.name] for f in fields(cls) if f.init}


def documentation(cls: Any) -> Mapping[str, str]:
    """The string that stands under each field, on one line; of the class and of those it derives from."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not issubclass(base, Settings) or base is Settings:
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            match field, text:
                case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(words))):
                    found[name] = " ".join(words.split())
    return found


def read_record(kind: type[R], data: object) -> R:
    """The dataclass ``kind`` from what JSON gave for it: every field there, known, of its declared type and within its bounds;
    members that are dataclasses likewise.

    Raises:
        ValueError: naming the field that does not fit.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"a {type(data).__name__}, where an object is needed")
    known = hints(kind)
    for name in data:
        if name not in known:
            raise ValueError(f"unknown entry {name}")
    lacking = [f.name for f in fields(kind) if f.init and f.name not in data and _required(f)]  # type: ignore[arg-type]
    if lacking:
        raise ValueError(f"{lacking[0]} is missing")
    return kind(**{name: checked(name, value, known[name]) for name, value in data.items()})


def _required(field: Any) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def checked(name: str, value: Any, hint: Any) -> Any:
    """``value`` in the form that ``hint`` asks for.

    Raises:
        InputError: it does not fit.
    """
    bounds: tuple[Any, ...] = ()
    if get_origin(hint) is Annotated:
        hint, *rest = get_args(hint)
        bounds = tuple(rest)
    if get_origin(hint) in (Union, types.UnionType):
        choices = get_args(hint)
        if value is None and type(None) in choices:
            return None
        choices = tuple(c for c in choices if c is not type(None))
        if len(choices) > 1:
            return _one_of(name, value, choices, bounds)
        return checked(name, value, Annotated[choices[0], *bounds] if bounds else choices[0])
    if get_origin(hint) is Literal:
        if value not in get_args(hint) or isinstance(value, bool) != isinstance(get_args(hint)[0], bool):
            raise InputError(f"{value!r} is none of {', '.join(map(str, get_args(hint)))}", name)
        return value
    if get_origin(hint) is tuple:
        return _members(name, value, get_args(hint), bounds)
    if get_origin(hint) is dict:
        hint = dict
    if is_dataclass(hint) and isinstance(hint, type) and isinstance(value, Mapping):
        return read_record(hint, value)
    if hint is int and isinstance(value, Integral) and not isinstance(value, bool):
        return _bounded(name, int(value), bounds)
    if hint is float and isinstance(value, Real) and not isinstance(value, bool):
        if isinstance(value, int) and abs(value) > 10**300:
            raise InputError("is too large", name)
        if math.isnan(float(value)):
            raise InputError("is not a number (NaN)", name)
        return _bounded(name, float(value) if not isinstance(value, int) else value, bounds)
    if hint is Path and isinstance(value, str | Path):
        return Path(value)
    if any(isinstance(b, Sites) for b in bounds) and not isinstance(value, str):
        members = [value] if isinstance(value, Site) or not hasattr(value, "__iter__") else list(value)
        if not members or not all(isinstance(m, str | Site) for m in members):
            raise InputError(f"{value!r} names no site; write 'resid:3', Site('resid', 3) or a list of these", name)
        return ";".join(map(str, members))
    if isinstance(hint, type) and hint not in (int, float) and isinstance(value, hint):
        return value
    if not isinstance(hint, type):  # a callable, Any
        return value
    raise InputError(f"{value!r} is not {NAMES.get(hint, f'a {hint.__name__}')}", name)


def _one_of(name: str, value: Any, choices: tuple[Any, ...], bounds: tuple[Any, ...]) -> Any:
    for choice in choices:
        try:
            return checked(name, value, Annotated[choice, *bounds] if bounds else choice)
        except InputError:
            continue
    words = [", ".join(map(str, get_args(c))) if get_origin(c) is Literal else NAMES.get(c, str(c)) for c in choices]
    raise InputError(f"{value!r} is none of {' or '.join(words)}", name)


def _members(name: str, value: Any, inner: tuple[Any, ...], bounds: tuple[Any, ...]) -> tuple[Any, ...]:
    if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__iter__"):
        raise InputError(f"{value!r} is not a list", name)
    values = tuple(value)
    if any(isinstance(b, NonEmpty) for b in bounds) and not values:
        raise InputError("give at least one", name)
    if len(inner) == 2 and inner[1] is Ellipsis:
        return tuple(checked(name, v, Annotated[inner[0], *bounds] if bounds else inner[0]) for v in values)
    if len(values) != len(inner):
        raise InputError(f"{value!r} has not {len(inner)} members", name)
    return tuple(checked(name, v, i) for v, i in zip(values, inner, strict=True))


def _bounded(name: str, value: Any, bounds: tuple[Any, ...]) -> Any:
    for bound in bounds:
        if isinstance(bound, Bounds) and not bound.hold(value):
            raise InputError(f"must be {bound}, got {value if isinstance(value, int) else format(value, 'g')}", name)
    return value
