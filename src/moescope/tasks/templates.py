"""Templates: how a row's fields become the text that a model reads."""

from __future__ import annotations

import math
import string
from dataclasses import dataclass
from typing import Any

from moescope.errors import InputError
from moescope.tasks.spec import suggest


@dataclass(frozen=True)
class Template:
    """A format string over a row's fields, and, for each class in order, how a model would answer it.

    ``answers`` is empty unless the text ends in a question; each answer carries its own leading space.
    """

    format: str
    answers: tuple[str, ...] = ()

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that the template names, in order of first use."""
        found = (name for _, name, _, _ in string.Formatter().parse(self.format) if name is not None)
        return tuple(dict.fromkeys(found))

    @property
    def asks(self) -> bool:
        """Whether the text ends in a question, that is, leaves the model an answer to give."""
        return not self.format.rstrip().endswith("}") and self.format.rstrip().endswith(("?", ":"))


def parse_template(text: str, named: dict[str, Template], context: str) -> Template:
    """A named template, or a format string checked for syntax.

    Raises
    ------
    InputError
        When ``text`` is neither a known name nor a format string with at least one plain ``{field}``.
    """
    if text in named:
        return named[text]
    names = f"; named templates: {', '.join(named)}" if named else ""
    try:
        parts = list(string.Formatter().parse(text))
    except ValueError as error:
        raise InputError(f"{context}: template {text!r}: {error}; write {{{{ and }}}} for literal braces") from error
    slots = [(name, spec, conversion) for _, name, spec, conversion in parts if name is not None]
    if not slots:
        hint = suggest(text, named)
        raise InputError(f"{context}: template {text!r} has no {{field}}{hint}{names}")
    for name, spec, conversion in slots:
        # Attribute and index access are refused: a template only ever places a row's own values.
        if not name or name.isdecimal() or spec or conversion or any(c in name for c in ".[]"):
            raise InputError(f"{context}: template {text!r}: use plain field names such as {{text}}, not {{{name}}}")
    return Template(text)


def check_fields(template: Template, known: list[str], context: str) -> None:
    """Raise InputError when the template names a field that the rows do not have."""
    for name in template.fields:
        if name not in known:
            fields = ", ".join(known)
            raise InputError(f"{context}: template has unknown field {name!r}{suggest(name, known)}; known fields: {fields}")


def field_text(value: Any, field: str, where: str) -> str:
    """A field's value as text: strings and finite numbers; anything else is refused with its place."""
    if isinstance(value, str):
        if value.strip():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise InputError(f"{where}: column {field!r} holds half a character (a lone surrogate); mend it") from error
            return value
        raise InputError(f"{where}: column {field!r} is empty; fill it in or drop the row")
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise InputError(f"{where}: column {field!r} is missing (NaN); fill it in or drop the row")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise InputError(f"{where}: column {field!r} holds a {type(value).__name__}, not text; convert it to a string")


def with_answers(template: Template, text: str | None, n_classes: int, context: str) -> Template:
    """``template`` with the comma-separated answers of ``text``, one for each class in class order.

    An answer gets a leading space, as the first word after a question has in running text, unless it brings white space
    or the template already ends in some.

    Raises
    ------
    InputError
        When the number differs from the number of classes, two are equal, or the template does not end in a question.
    """
    if text is None:
        return template if template.asks else Template(template.format)
    if not template.asks:
        raise InputError(f"{context}: answers= needs a template that ends in a question (':' or '?'); add template=…")
    words = text.split(",")
    spaced = template.format[-1:].isspace()
    answers = tuple(w if spaced or w[:1].isspace() else " " + w for w in words)
    if len(answers) != n_classes:
        raise InputError(f"{context}: answers= has {len(answers)} words for {n_classes} classes; give one for each class")
    if any(not a.strip() for a in answers) or len({a.strip() for a in answers}) < n_classes:
        raise InputError(f"{context}: answers={text!r}: each class needs its own word")
    return Template(template.format, answers)
