"""Writes `docs/api.md` from the docstrings of what is public.

python tools/api.py
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from moescope.study.settings import Settings, documentation

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "api.md"
PARTS = {
    "moescope": "Verbs, their settings, and what they give.",
    "moescope.capture": "Activations alone: from texts and sites to arrays.",
    "moescope.select.ranking": "Ranking alone: from arrays to neurons, with the null of the largest.",
    "moescope.routing": "Routing alone: a recorded trace, and recording around your own forward.",
}
_SECTION = re.compile(r"^(Args|Returns|Raises|Attributes|Yields):$")
_ENTRY = re.compile(r"^([\w*, ]+):\s+(.*)$")
_SKIP = re.compile(r"\s*# doctest:.*")


def page() -> str:
    """The whole page."""
    lines = [
        "# The Python interface",
        "",
        "Written by `python tools/api.py` from the docstrings. A wrong call is an `InputError`,",
    ]
    lines.append("one line that names the parameter and the mend, before anything is computed.")
    for module, about in PARTS.items():
        found = import_module(module)
        lines += ["", f"## {module}", "", about]
        for name in found.__all__:
            value = getattr(found, name)
            if inspect.isclass(value) or inspect.isfunction(inspect.unwrap(value)):
                lines += ["", f"### {module}.{name}", "", *_described(value, name)]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)) + "\n"


def _described(value: Any, name: str) -> Iterator[str]:
    if inspect.isclass(value) and issubclass(value, Settings):
        yield from _text(value.__doc__ or "")
        yield from ("", "| setting | type | default | |", "|---|---|---|---|")
        words = documentation(value)
        for f in dataclasses.fields(value):
            if f.init:
                kind = f.type if isinstance(f.type, str) else str(f.type)
                if kind.startswith("Annotated"):
                    kind = ast.unparse(ast.parse(kind, mode="eval").body.slice.elts[0])  # type: ignore[attr-defined]
                cells = [f"`{f.name}`", f"`{kind}`", f"`{_default(f)}`", _plain(words.get(f.name, ""))]
                yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
        return
    yield from ("```text", *_wrapped(name, value), "```", "")
    yield from _text(inspect.getdoc(value) or "")
    if inspect.isclass(value):
        yield ""
        for member, found in vars(value).items():
            own = found.fget if isinstance(found, property) else found
            if not member.startswith("_") and inspect.isfunction(own) and own.__doc__:
                shown = f"{member}" if isinstance(found, property) else f"{member}{_signature(own, drop=True)}"
                first = inspect.cleandoc(own.__doc__).split("\n\n", 1)[0]
                yield f"- `{shown}`: {_plain(' '.join(first.split()))}"


def _default(f: Any) -> Any:
    if f.default is dataclasses.MISSING:
        return "" if f.default_factory is dataclasses.MISSING else f.default_factory()
    return repr(f.default)


def _signature(value: Any, *, drop: bool = False) -> str:
    try:
        found = inspect.signature(value)
    except (TypeError, ValueError):
        return "(…)"
    given = [p for p in found.parameters.values() if not (drop and p.name == "self")]
    given = [p.replace(default=_Default()) if isinstance(p.default, Settings) else p for p in given]
    given = [p.replace(annotation=_Bare(p.annotation)) if isinstance(p.annotation, str) else p for p in given]
    result = _Bare(found.return_annotation) if isinstance(found.return_annotation, str) else found.return_annotation
    text = str(found.replace(parameters=given, return_annotation=result))
    return re.sub(r"\b(?:\w+\.)+(?=[A-Z])", "", text)


class _Bare(str):
    """An annotation that is shown without quotes."""

    def __repr__(self) -> str:
        return str(self)


class _Default:
    """Settings as they are by default, which the signature need not spell out."""

    def __repr__(self) -> str:
        return "…"


def _wrapped(name: str, value: Any) -> list[str]:
    text = f"{name}{_signature(value)}".removesuffix(" -> None" if inspect.isclass(value) else "")
    if len(text) < 110:
        return [text]
    head, rest = text.split("(", 1)
    body, _, gives = rest.rpartition(")")
    return [f"{head}(", re.sub(r", (?=\*|\w+:)", ",\n    ", f"    {body}"), f"){gives}"]


def _text(docstring: str) -> Iterator[str]:
    """A docstring as Markdown: sections as lists, examples as code."""
    section, example, imported = False, False, False
    for line in inspect.cleandoc(docstring).splitlines():
        stripped = line.strip()
        if example and not stripped:
            example = False
            yield from ("```", "")
        elif stripped.startswith((">>>", "...")):
            if not example:
                yield "```python"
            code = _SKIP.sub("", stripped[4:])
            if imported and not code.startswith(("import ", "from ")):
                yield ""
            example, imported = True, code.startswith(("import ", "from "))
            yield code
        elif example:
            yield f"# {stripped}"
        elif _SECTION.match(stripped):
            section = True
            yield from ("", f"**{stripped[:-1]}**", "")
        elif set(stripped) == {"-"} and stripped:  # the rule under a heading of numpy's style
            continue
        elif section and line.startswith("    ") and not line.startswith("     "):
            found = _ENTRY.match(stripped)
            yield f"- `{found[1]}`: {_plain(found[2])}" if found else _plain(stripped)
        elif section and line.startswith("     "):
            yield f"  {_plain(stripped)}"
        else:
            section = section and not stripped
            yield _plain(stripped)
    if example:
        yield "```"


def _plain(text: str) -> str:
    """reStructuredText's marks as Markdown's."""
    text = re.sub(r":\w+:`~?(?:[^`<]*?\.)?(\w+)`", r"`\1`", text)
    return re.sub(r"``([^`]+)``", r"`\1`", text).replace("::", ":")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
