"""The one exception that a user may see."""

from __future__ import annotations


class InputError(ValueError):
    """The input cannot be used. The message is one line that names the file, row, layer or option, and the mend.

    The command line prints it after ``error:`` and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
