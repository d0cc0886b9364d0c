"""The public face: what `dir(moescope)` shows is all there, and changes of it are seen.

After a change that is meant, write the snapshot anew: `python -m tests.test_api`.
"""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path

import pytest

import moescope
from moescope.cli import verbs
from moescope.study.run import Run
from moescope.study.settings import Settings, documentation

SNAPSHOT = Path(__file__).with_name("api.txt")
VERBS = sorted({verb.function or verb.study for verb in verbs.VERBS.values() if not (verb.name or "").startswith("reproduce")})


def face() -> str:
    """One line for each name, functions with their parameters, settings with their fields and defaults."""
    lines = []
    for name in dir(moescope):
        value = getattr(moescope, name)
        if inspect.isclass(value) and issubclass(value, Settings):
            lines.append(name)
            lines += [f"    {f.name}: {f.type} = {f.default!r}" for f in dataclasses.fields(value)]
        elif inspect.isfunction(value):
            shown = [_shown(parameter) for parameter in inspect.signature(value).parameters.values()]
            lines.append(f"{name}({', '.join(shown)})")
        else:
            lines.append(name)
    return "\n".join(lines) + "\n"


def _shown(parameter: inspect.Parameter) -> str:
    star = "*" if parameter.kind == parameter.KEYWORD_ONLY else ""
    if isinstance(parameter.default, Settings):
        return f"{star}{parameter.name}={type(parameter.default).__name__}()"
    return star + str(parameter.replace(annotation=inspect.Parameter.empty))


def test_the_public_face_is_the_one_on_record() -> None:
    assert face() == SNAPSHOT.read_text(encoding="utf-8")


def test_every_name_is_there_and_nothing_else() -> None:
    assert sorted(moescope.__all__) == [name for name in dir(moescope) if name != "__version__"]
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        moescope.nothing  # noqa: B018


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_is_a_plain_function_with_settings_and_run(name: str) -> None:
    verb = getattr(moescope, name)
    assert inspect.isfunction(verb)
    parameters = inspect.signature(verb).parameters
    assert not any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters.values())
    assert isinstance(parameters["settings"].default, Settings)
    assert parameters["run"].kind is inspect.Parameter.KEYWORD_ONLY
    assert parameters["run"].default == Run()
    assert type(parameters["settings"].default).__name__ in moescope.__all__
    for part in ("Args:", "Returns:", ">>>"):
        assert part in (verb.__doc__ or ""), f"{name} does not say {part}"


@pytest.mark.parametrize("name", [*sorted(n for n in moescope.__all__ if n.endswith("Settings")), "Run"])
def test_every_field_of_settings_says_what_it_is(name: str) -> None:
    cls = getattr(moescope, name)
    silent = [f.name for f in dataclasses.fields(cls) if not documentation(cls).get(f.name)]
    assert not silent


if __name__ == "__main__":
    SNAPSHOT.write_text(face(), encoding="utf-8")
