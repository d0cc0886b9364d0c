"""The readers that are given hostile input, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from moescope.models import LoadedModel
from tests.architectures import tiny_model

TEXTS = ("abc", "defgh", "ij klm")


@dataclass(frozen=True)
class Reader:
    """``make`` writes a valid input into an empty folder; ``read`` takes the folder, reads the input and uses it."""

    name: str
    make: Callable[[Path], object]
    read: Callable[[Path], object]
    valid: bool = True
    """False where even the sound input is one that has to be refused"""
    files: bool = True
    """whether the input is a file of the user's, which messages have to name"""
    slow: bool = False
    """gets a tenth of the inputs"""


READERS: dict[str, Reader] = {}


def register(name: str, make: Callable[[Path], object], read: Callable[[Path], object], **options: bool) -> None:
    READERS[name] = Reader(name, make, read, **options)


@cache
def tiny() -> LoadedModel:
    """A llama of four layers, with its head."""
    return tiny_model("llama", head=True)


@cache
def tiny_moe() -> LoadedModel:
    """An olmoe of a few layers."""
    return tiny_model("olmoe")
