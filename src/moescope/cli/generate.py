"""Commands made from verbs: a study's settings are its options, so that each is declared once.

An option is called after its field, without the ``n_`` of a number (``n_folds`` is ``--folds``); its help is the string under
the field; a message of the library that names a parameter is printed with the option's name.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from cyclopts import CoercionError, CycloptsError, Group, Parameter
from cyclopts import convert as cyclopts_convert

from moescope.cli.output import print_json, print_result
from moescope.errors import InputError
from moescope.study.run import Run
from moescope.study.settings import NAMES, Form, Settings, documentation, hints

if TYPE_CHECKING:
    from moescope.study.result import StudyResult

RUN = Group("Run", sort_key=2)
LEFT_OUT = ("progress", "work", "quiet")
_SHORT = {"out": ("--out", "-o")}


@dataclass(frozen=True)
class Input:
    """What a verb takes beside its settings: its parameter, and how it is said on the command line."""

    name: str
    type: Any
    help: str
    option: str | None = None
    """None: a positional argument"""
    default: Any = inspect.Parameter.empty

    def parameter(self) -> inspect.Parameter:
        kind = inspect.Parameter.POSITIONAL_ONLY if self.option is None else inspect.Parameter.KEYWORD_ONLY
        said = Parameter(name=self.option, help=self.help, negative="") if self.option else Parameter(help=self.help)
        return inspect.Parameter(self.name, kind, default=self.default, annotation=Annotated[self.type, said])


@dataclass(frozen=True)
class Verb:
    """A command that is one verb: where its function and settings stand, what it takes, what it prints beside its claims."""

    study: str
    """folder in ``moescope.studies``"""
    settings: str
    inputs: tuple[Input, ...]
    function: str = ""
    """default: the study's name"""
    module: str = "study"
    name: str = ""
    """of the command and of its default folder; default: the function's"""
    tables: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """settings that this command does not offer, with their values"""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """settings whose default differs here from the study's"""
    arguments: Callable[[dict[str, Any]], Iterable[Any]] = dict.values
    """the verb's positional arguments from what the command was given, where they are not the inputs one by one"""

    @property
    def command(self) -> str:
        return self.name or self.function or self.study

    def verb(self) -> Callable[..., StudyResult]:
        found: Callable[..., StudyResult] = getattr(
            import_module(f"moescope.studies.{self.study}.{self.module}"), self.function or self.study
        )
        return found

    def settings_class(self) -> type[Settings]:
        if not self.settings:
            return Settings
        found: type[Settings] = getattr(import_module(f"moescope.studies.{self.study}.settings"), self.settings)
        return found


def option_of(name: str) -> str:
    """The option that stands for a field of some settings."""
    return "--" + name.removeprefix("n_").replace("_", "-")


def command(verb: Verb, body: Callable[..., None] | None = None) -> Callable[..., None]:
    """The function that cyclopts calls for ``verb``; what it is for is said where it is registered.

    Args:
        body: called with (inputs by name, settings, run, json, quiet) instead, where a result is not what the verb returns.
    """
    settings = verb.settings_class()
    fixed = verb.fixed
    options = {i.name: i.option or i.name.upper() for i in verb.inputs}
    options |= {f: option_of(f) for cls in (settings, Run) for f in hints(cls) if f not in LEFT_OUT and f not in fixed}

    def run(*positional: Any, **given: Any) -> None:
        try:
            arguments, chosen, how, shown_as = told(verb, positional, given)
            (body or partial(execute, verb))(arguments, chosen, how, **shown_as)
        except InputError as error:
            raise translated(error, options) from error

    parameters = [i.parameter() for i in verb.inputs]
    parameters += [_parameter(settings, f, verb.defaults) for f in hints(settings) if f not in fixed]
    parameters += [_parameter(Run, f, {}, RUN) for f in hints(Run) if f not in LEFT_OUT]
    parameters += [
        _flag("json", "Print the result as JSON instead of a table."),
        _flag("quiet", "Show no progress."),
    ]
    parameters.sort(key=lambda p: (p.kind, p.default is not inspect.Parameter.empty if p.kind == p.POSITIONAL_ONLY else 0))
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    run.__name__ = verb.command
    return run


def execute(verb: Verb, inputs: dict[str, Any], settings: Settings, run: Run, *, json: bool, quiet: bool) -> None:
    """Run a verb on what it was given, and print its result.

    Raises:
        InputError: naming the parameter.
    """
    from moescope.cli.place import folder_for, interrupted, name_of
    from moescope.files.remote import shown
    from moescope.study.repeat import record_of
    from moescope.study.store import check_target

    if run.out is not None:
        check_target(run.out, overwrite=run.overwrite)  # before anything is loaded
    function, args, named = called(verb, inputs, settings)
    record = record_of(function, *args, **named, run=run)
    with folder_for(run, name_of(verb.command, inputs), record) as folder:
        try:
            result = function(*args, **named, run=replace(run, out=folder, quiet=quiet))
        except KeyboardInterrupt as error:
            raise type(error)(interrupted(folder)) from error
    if json:
        print_json({**result.json(), "folder": shown(folder)})
    else:
        print_result(result, folder, verb.tables)


def called(
    verb: Verb, inputs: dict[str, Any], settings: Settings
) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """The function of a verb, and how it is called."""
    function, inputs = verb.verb(), dict(inputs)
    taken = inspect.signature(function).parameters
    named = {n: inputs.pop(n) for n, p in taken.items() if n in inputs and p.kind == p.KEYWORD_ONLY}
    return function, (*verb.arguments(inputs), settings), named


def told(verb: Verb, positional: Sequence[Any], given: dict[str, Any]) -> tuple[dict[str, Any], Any, Run, dict[str, bool]]:
    """What a command was given: inputs by name, settings, how it is run, and ``json`` and ``quiet``.

    Raises:
        InputError: a setting is out of range.
    """
    shown_as = {name: given.pop(name, False) for name in ("json", "quiet")}
    arguments = dict(zip([i.name for i in verb.inputs if i.option is None], positional, strict=False))
    arguments |= {i.name: given.pop(i.name, i.default) for i in verb.inputs if i.name not in arguments}
    of_run = {f: given.pop(f) for f in hints(Run) if f in given}
    return arguments, verb.settings_class()(**{**verb.defaults, **given, **verb.fixed}), Run(**of_run), shown_as


def _parameter(cls: type[Settings], name: str, defaults: Mapping[str, Any], group: Group | None = None) -> inspect.Parameter:
    said_here = next(f for f in fields(cls) if f.name == name)
    default = said_here.default if said_here.default is not MISSING else inspect.Parameter.empty
    default = defaults.get(name, default)
    bare = _bare(hints(cls)[name])
    said: dict[str, Any] = {"name": _SHORT.get(name, (option_of(name),)), "help": documentation(cls).get(name, "")}
    if group is not None:
        said["group"] = group
    if _is_tuple(bare):
        form = next((m.text for m in getattr(hints(cls)[name], "__metadata__", ()) if isinstance(m, Form)), "")
        said["help"] = f"{said['help']} {form}".rstrip()
        said |= {
            "converter": partial(_listed, form=form),
            "n_tokens": 1,
            "negative": "",
            "help": f"{said['help']} Several with commas.",
        }
        said |= {} if default else {"show_default": False}
    elif bare is bool and default is False:
        said["negative"] = ""
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[bare, Parameter(**said)]
    )


def _flag(name: str, about: str) -> inspect.Parameter:
    said = Parameter(name=f"--{name}", help=about, negative="", group=RUN)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, said])


def _bare(hint: Any) -> Any:
    """The annotation without bounds, which the settings check themselves."""
    if get_origin(hint) is Annotated:
        return _bare(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        return Union[tuple(_bare(h) for h in get_args(hint))]  # noqa: UP007  (made at run time)
    if get_origin(hint) is tuple:
        return tuple[tuple(_bare(h) for h in get_args(hint))]  # type: ignore[misc]
    return hint


def _is_tuple(hint: Any) -> bool:
    return get_origin(hint) is tuple or any(get_origin(h) is tuple for h in get_args(hint))


def _listed(kind: Any, tokens: Any, form: str = "") -> tuple[Any, ...]:
    """``1,2,5`` and repeated options alike, ``none`` for no member; ``5:17`` is a member that is a tuple itself."""
    if get_origin(kind) is not tuple:
        kind = next(h for h in get_args(kind) if get_origin(h) is tuple)
    member = get_args(kind)[0]
    parts = [part for token in tokens for part in token.value.split(",") if part.strip()]
    if parts == ["none"]:
        return ()
    if get_origin(member) is tuple:
        return tuple(_pair(get_args(member), part, form) for part in parts)
    return tuple(_member(member, part) for part in parts)


def _member(kind: Any, text: str) -> Any:
    try:
        return _number(kind, text)
    except CoercionError:
        known = get_args(kind) if get_origin(kind) is Literal else ()
        wrong = f"none of {', '.join(map(str, known))}" if known else f"not {NAMES.get(kind, kind)}"
        raise ValueError(f"{text.strip()!r} is {wrong}") from None


def _pair(kinds: tuple[Any, ...], text: str, form: str) -> tuple[Any, ...]:
    try:
        return tuple(_number(kind, part) for kind, part in zip(kinds, text.split(":"), strict=True))
    except (ValueError, CycloptsError):
        raise ValueError(f"{text!r} is not {form or 'of ' + str(len(kinds)) + ' members, joined by colons'}") from None


def _number(kind: Any, text: str) -> Any:
    return cyclopts_convert(kind, [text.strip()])


def translated(error: InputError, options: Mapping[str, str]) -> InputError:
    """The same error in the words of the command line: ``n_folds: …`` is ``--folds: …``, ``twin=False`` is ``--no-twin``."""
    text = str(error)
    if error.parameter is not None:
        text = text.removeprefix(f"{error.parameter}: ")
        text = f"{options.get(error.parameter, option_of(error.parameter))}: {text}"

    def option(match: re.Match[str]) -> str:
        name = options[match[1]]
        value = match[2].strip("'\"")
        return f"{name} {value}" if value not in ("True", "False") else name if value == "True" else f"--no-{name[2:]}"

    known = "|".join(sorted(map(re.escape, options), key=len, reverse=True))
    return InputError(re.sub(rf"\b({known})=((?:'[^']*'|\"[^\"]*\"|[\w.:/-])+)", option, text))
