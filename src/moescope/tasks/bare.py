"""Labels of documents of which nothing else is known: neither texts nor images, so no cue can be read off them."""

from __future__ import annotations

from dataclasses import dataclass

from moescope.types import Task


@dataclass(frozen=True)
class BareTask(Task):
    """The text of each example is the number of its document."""
