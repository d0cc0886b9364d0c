"""What repeats a study: the verb, its inputs, its settings and how it was run, as YAML that goes with every result.

Whatever is called first is what is on record: a study that a study runs within itself is part of that one.

>>> print(study_yaml({"study": "exit", "model": "dense-tiny", "settings": {"alpha": 0.05}}), end="")
study: exit
model: dense-tiny
settings:
  alpha: 0.05
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import yaml

from moescope.errors import InputError
from moescope.study.encode import plain
from moescope.study.progress import progress
from moescope.study.run import Run
from moescope.study.settings import Settings

P = ParamSpec("P")
R = TypeVar("R")
STUDY = "study.yaml"
MEMORY = "in memory"
"""the key under which an input stands that no file can give back"""
_NOT_OF_THE_RESULT = ("out", "overwrite", "progress", "work", "quiet")
_CURRENT: ContextVar[dict[str, Any] | None] = ContextVar("study", default=None)


def verb(function: Callable[P, R], name: str | None = None) -> Callable[P, R]:
    """A study whose calls are put on record, and which shows its progress.

    Args:
        name: what it is called in the file; by default the function's.
    """
    signature = inspect.signature(function)

    called = name or function.__name__

    def whole(args: Any, given: Any) -> inspect.BoundArguments:
        bound = signature.bind(*args, **given)
        bound.apply_defaults()
        return bound

    def record(*args: Any, **given: Any) -> dict[str, Any]:
        return _record(called, dict(whole(args, given).arguments))

    @wraps(function)
    def recorded(*args: P.args, **given: P.kwargs) -> R:
        if _CURRENT.get() is not None:
            return function(*args, **given)
        try:
            bound = whole(args, given)
        except TypeError:
            bound = None
        if bound is None:  # Python itself says which argument does not belong, and where
            return function(*args, **given)
        token = _CURRENT.set(_record(called, dict(bound.arguments)))
        try:
            run = bound.arguments.get("run")
            if not isinstance(run, Run) or run.progress is not None:
                return function(*args, **given)
            with progress(quiet=run.quiet) as report:
                bound.arguments["run"] = replace(run, progress=report)
                return function(*bound.args, **bound.kwargs)
        finally:
            _CURRENT.reset(token)

    recorded.record = record  # type: ignore[attr-defined]
    return recorded


def verb_called(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """:func:`verb` for a function that is called ``name`` in the file."""
    return lambda function: verb(function, name)


def current() -> dict[str, Any] | None:
    """The record of the study that is running; None outside of a verb."""
    return _CURRENT.get()


def record_of(function: Callable[..., Any], *args: Any, **given: Any) -> dict[str, Any]:
    """What would be put on record if ``function``, a verb, were called so."""
    return cast(dict[str, Any], function.record(*args, **given))  # type: ignore[attr-defined]


def decisive(run: Run) -> dict[str, Any]:
    """What of a run decides its result."""
    return {name: getattr(run, name) for name in run.__dataclass_fields__ if name not in _NOT_OF_THE_RESULT}


def _record(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    settings, run = arguments.pop("settings", None), arguments.pop("run", None)
    how: dict[str, Any] = plain(decisive(run)) if isinstance(run, Run) else {}
    if (loaded := _loaded(arguments.get("model"))) is not None:
        how |= {key: loaded[key] for key in ("dtype", "device", "device_map")}
    inputs = {key: _said(value) for key, value in arguments.items() if value is not None}
    return {"study": name, **inputs, "settings": plain(settings) if isinstance(settings, Settings) else {}, "run": how}


def _said(value: Any) -> Any:
    """An input as the file names it."""
    if isinstance(value, str | Path):
        return str(value)
    if (loaded := _loaded(value)) is not None:
        named, revision = loaded["model"], loaded["revision"]
        return named if revision is None else {"id": named, "revision": revision}
    if isinstance(value, Mapping) and all(isinstance(v, str | Path) or _is_rows(v) for v in value.values()):
        return {str(name): _said(part) for name, part in value.items()}
    if isinstance(value, list | tuple) and value and all(isinstance(part, str | Path) for part in value):
        return [str(part) for part in value]
    if isinstance(value, list | tuple) and value:
        return {MEMORY: f"{len(value)} of {type(value[0]).__name__}"}
    return {MEMORY: f"{type(value).__name__} {getattr(value, 'name', '')}".strip()}


def _loaded(model: Any) -> Mapping[str, Any] | None:
    """What gives a model again that is in memory (:class:`moescope.models.LoadedModel`); None where nothing does."""
    return getattr(model, "loaded", None)


def _is_rows(value: Any) -> bool:
    """Whether it is a task of its own, not a column or a label's texts."""
    return hasattr(value, "columns") or hasattr(value, "column_names") or hasattr(value, "examples")


def study_yaml(record: Mapping[str, Any]) -> str:
    """The record as a file for ``moescope run``."""
    return str(yaml.safe_dump(dict(record), sort_keys=False, allow_unicode=True, width=120))


class _Loader(yaml.SafeLoader):
    """YAML 1.1 takes ``1e-3`` for text, since it has no dot. Anchors, by which few lines become a million, no study needs."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise yaml.MarkedYAMLError(problem="anchors and aliases are not read", problem_mark=event.start_mark)
        return super().compose_node(parent, index)


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789"))


def read_yaml(file: Path) -> dict[str, Any]:
    """What ``moescope run`` is given: a mapping that names a study.

    Raises:
        InputError: the file cannot be read, or is none.
    """
    try:
        found = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror or error})") from error
    except RecursionError as error:
        raise InputError(f"{file}: not a study: it is nested too deeply") from error
    except (ValueError, yaml.YAMLError) as error:  # of a text that is not UTF-8, of a date that is none
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        why = getattr(error, "problem", None) or ("it is not UTF-8" if isinstance(error, UnicodeDecodeError) else error)
        raise InputError(f"{file}: {where}not YAML ({' '.join(str(why).split())})") from error
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise InputError(f"{file}: not a study; it begins with 'study: circuits', and every result has one, study.yaml")
    return found
