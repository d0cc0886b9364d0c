"""The exceptions that a user may see, and the warning."""

from __future__ import annotations

from numbers import Integral

_LONGEST = 1500  # characters of a message


class InputError(ValueError):
    """The input cannot be used. The message is one line that names the file, row, layer or parameter, and the mend.

    ``parameter`` is the parameter at fault by its name in Python, where it is one; the message then begins with it
    (``"n_folds: must be at least 2, got 1"``). The command line prints the message after ``error:``, the parameter as the
    option it stands for, and exits with code 2.
    """

    def __init__(self, message: str, parameter: str | None = None) -> None:
        self.parameter = parameter
        text = " ".join(message.split())
        if len(text) > _LONGEST:  # what it quotes is a stranger's; the place stands first and the mend last
            text = f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}"
        # nor may what it quotes move a terminal's cursor, or be half a character
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
        super().__init__(text if parameter is None else f"{parameter}: {text}")


class StudyFault(AssertionError):
    """A study finds itself unsound, so that its verdict would be worth nothing: nothing is written."""


def check_count(name: str, value: object, least: int = 1) -> None:
    """That the parameter ``name`` is a whole number of at least ``least``.

    Raises:
        InputError: it is not.
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise InputError(f"{value!r} is not a whole number", name)
    if value < least:
        raise InputError(f"must be at least {least}, got {value}", name)


class Note(UserWarning):
    """What the user should know and can go on without: one line, as a warning. A study keeps it in its result's notes."""
