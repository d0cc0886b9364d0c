"""The command that does a study again, or one written by hand."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from moescope.cli.generate import LEFT_OUT, Verb, called, execute, option_of
from moescope.cli.output import print_json
from moescope.errors import InputError
from moescope.study.run import Run
from moescope.study.settings import Settings, checked, hints

_SERIES = ("checkpoints", "models")
"""inputs that name several models"""


def run(
    file: Path,
    /,
    *,
    out: Annotated[
        Path | None, Parameter(name=("--out", "-o"), help="Folder for the result (default: as the command's).")
    ] = None,
    overwrite: Annotated[bool, Parameter(negative="", help="Replace a moescope result that stands in the folder.")] = False,
    dry_run: Annotated[bool, Parameter(negative="", help="Check the file and say what would be run; nothing is.")] = False,
    json: Annotated[bool, Parameter(negative="", help="Print the result as JSON instead of a table.")] = False,
    quiet: Annotated[bool, Parameter(negative="", help="Show no progress.")] = False,
) -> None:
    """Run the study in FILE, YAML such as every result holds in study.yaml: the same claims, or those of a changed setting.

    Paths in it are of the folder that the command is given in.

    Example: moescope run moescope-out/circuits-dense-tiny/study.yaml --dry-run
    """
    from moescope.study.repeat import read_yaml

    verb, inputs, settings, how = _read(file, read_yaml(file), out=out, overwrite=overwrite)
    if dry_run:
        _dry(file, verb, inputs, settings, how, json=json)
        return
    try:
        execute(verb, inputs, settings, how, json=json, quiet=quiet)
    except InputError as error:
        raise _of_file(file, error) from error


def _read(file: Path, data: dict[str, Any], **place: Any) -> tuple[Verb, dict[str, Any], Settings, Run]:
    """What the file says, every key and type checked.

    Raises:
        InputError: naming the file and the key.
    """
    from moescope.cli.verbs import VERBS

    data = dict(data)
    name = data.pop("study", None)
    verb = VERBS.get(name) if isinstance(name, str) else None
    if verb is None:
        raise InputError(f"{file}: study: {name!r} is none of {', '.join(sorted(VERBS))}")
    given, told = (_mapping(file, key, data.pop(key, None)) for key in ("settings", "run"))
    known = {i.name: i for i in verb.inputs}
    for key in data:
        if key not in known:
            raise InputError(f"{file}: {key}: unknown; a study {name!r} takes {', '.join([*known, 'settings', 'run'])}")
    inputs = {key: _input(file, key, data.get(key), i.type, i.default) for key, i in known.items()}
    if isinstance(inputs.get("model"), str) and "trace" in known:
        inputs = _model_or_trace(inputs)
    settings = _made(file, "settings", verb.settings_class(), {**verb.defaults, **given, **verb.fixed})
    how = _made(file, "run", Run, {**told, **{key: value for key, value in place.items() if value}})
    if isinstance(inputs.get("model"), dict):
        from moescope.models.load import load_whole

        named = inputs["model"]
        inputs["model"] = load_whole(named["id"], revision=named["revision"], **how.load_options())
    return verb, inputs, settings, how


def _made(file: Path, part: str, cls: Any, values: dict[str, Any]) -> Any:
    known = [name for name in hints(cls) if name not in LEFT_OUT]
    for key in values:
        if key not in known:
            raise InputError(f"{file}: {part}.{key}: unknown; there is {', '.join(known)}")
    try:
        return cls(**values)
    except InputError as error:
        raise InputError(f"{file}: {part}.{error}") from error


def _mapping(file: Path, key: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise InputError(f"{file}: {key}: {value!r} is not a mapping of names to values")
    return value


def _input(file: Path, key: str, value: Any, kind: Any, default: Any) -> Any:
    if value is None:
        if default is inspect.Parameter.empty:
            raise InputError(f"{file}: {key}: is missing")
        return default
    _refuse_memory(file, key, value)
    if key == "model" and isinstance(value, dict):
        if set(value) != {"id", "revision"} or not all(isinstance(part, str) for part in value.values()):
            raise InputError(f"{file}: {key}: {value!r} is not a name, nor id and revision")
        return value
    if key == "tasks" and isinstance(value, dict):
        for name, source in value.items():
            if not isinstance(source, str):
                raise InputError(f"{file}: {key}.{name}: {source!r} is not a source (`moescope tasks`)")
        return {str(name): source for name, source in value.items()}
    if key in ("tasks", *_SERIES) and isinstance(value, str):
        return [value]
    if isinstance(value, list):
        texts = [part for part in value if not isinstance(part, str)]
        if texts or key not in ("tasks", "revisions", *_SERIES):
            raise InputError(f"{file}: {key}: {(texts or value)[0]!r} is not {'a text' if texts else 'to be a list'}")
        return value
    try:
        return checked(key, value, kind)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error


def _refuse_memory(file: Path, key: str, value: Any) -> None:
    from moescope.study.repeat import MEMORY

    if isinstance(value, dict):
        if MEMORY in value:
            raise InputError(f"{file}: {key}: was in memory, {value[MEMORY]}; put the name of a file of it there")
        for name, part in value.items():
            _refuse_memory(file, f"{key}.{name}", part)


def _model_or_trace(inputs: dict[str, Any]) -> dict[str, Any]:
    """A trace's folder is not a model's name."""
    from moescope.routing.traced import is_trace

    path = Path(inputs["model"])
    return {**inputs, "model": None, "trace": path} if path.is_dir() and is_trace(path) else inputs


def _of_file(file: Path, error: InputError) -> InputError:
    return error if str(error).startswith(f"{file}: ") else InputError(f"{file}: {error}")


def _dry(file: Path, verb: Verb, inputs: dict[str, Any], settings: Settings, how: Run, *, json: bool) -> None:
    from moescope.cli.place import folder_for, name_of
    from moescope.study.repeat import record_of

    function, args, named = called(verb, inputs, settings)
    record = record_of(function, *args, **named, run=how)
    with folder_for(how, name_of(verb.command, inputs), record) as folder:
        where = str(folder)
    plain = verb.settings_class()(**{**verb.defaults, **verb.fixed}) if verb.settings else Settings()
    changed = {f: getattr(settings, f) for f in hints(type(settings)) if getattr(settings, f) != getattr(plain, f, None)}
    if json:
        print_json({**record, "folder": where})
        return
    print(f"{file} is in order; it would run `moescope {verb.command}`, and write {where}")
    for name, value in {k: v for k, v in record.items() if k not in ("study", "settings", "run")}.items():
        print(f"  {name}: {value}")
    print("  settings other than the command's: " + (", ".join(f"{option_of(f)} {v}" for f, v in changed.items()) or "none"))
