"""How much one request may ask for, how much all of them may hold, and how a request is refused that asks for more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from moescope.errors import InputError


class Refused(InputError):
    """A request that is not carried out; ``status`` is HTTP's code for the reason."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Raises InputError on a value out of range."""

    texts: int = 64
    """texts of one request"""
    characters: int = 20_000
    """of one text"""
    new_tokens: int = 256
    """of one generation"""
    edits: int = 64
    """of experts and neurons in one generation"""
    streams: int = 4
    """generations at the same time"""
    waiting: int = 256
    """requests that may wait for the same classifier, or for the router"""
    connections: int = 256
    """clients at the same time; more wait outside until one of them is gone"""
    bodies: int = 2
    """requests of the largest size that are held at the same time; smaller ones share their room, small ones need none"""
    header_seconds: float = 10
    """from the opening of a connection, or from the answer before, to the end of a request's headers"""
    body_seconds: float = 30
    """from there to the end of its body"""
    write_seconds: float = 30
    """that a client may leave unread what it has been sent"""
    grace_seconds: float = 10
    """that generations have to end when the server is told to stop"""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_seconds"):
                if not 0 < value <= 86_400:
                    raise InputError(f"{value} is not between 0 and 86400 seconds", field.name)
            elif value < 1:
                raise InputError(f"{value} is not a positive number", field.name)

    @property
    def body(self) -> int:
        """bytes of a request: JSON takes up to six for a UTF-16 unit, of which a character has up to two"""
        return 12 * self.texts * self.characters + 4096

    def check(self, texts: Sequence[str], what: str = "texts") -> None:
        """Raises Refused where there are too many, none, or one is too long."""
        if not texts:
            raise Refused(f"{what}: none was given")
        if len(texts) > self.texts:
            raise Refused(f"{what}: {len(texts)} in one request, but the limit is {self.texts}; send them in parts", 413)
        for number, text in enumerate(texts):
            where = what if len(texts) == 1 and what != "texts" else f"{what}, number {number}"
            try:
                text.encode()
            except UnicodeEncodeError:  # JSON can write half of a surrogate pair
                raise Refused(f"{where}: it holds half of a character (a lone surrogate); send whole ones", 422) from None
            if len(text) > self.characters:
                raise Refused(f"{where}: {len(text)} characters, but the limit is {self.characters}; shorten it", 413)
