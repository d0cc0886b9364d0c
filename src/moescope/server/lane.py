"""Requests that wait together for one function of the model share a pass."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from moescope.capture.encode import Encoded
from moescope.server.limits import Refused
from moescope.server.thread import SLICE, ModelThread, Turn

LARGE = 0.25
"""share of a busy model that requests which go in parts get at least, all together"""
_SMALLEST, _FIRST, _LARGEST = 4096, 8192, 2**20  # characters of a batch


@dataclass(frozen=True)
class Answered:
    """What a request gets back."""

    results: list[dict[str, Any]]
    """one for each text"""
    together: int
    """texts that shared the pass, those of other requests included; of a request in several passes the most"""
    notes: list[str]
    """what the reader of the texts had to say, such as that one was cut"""


@dataclass(eq=False)
class _Asked:
    texts: list[str]
    turn: Turn = field(default_factory=Turn)
    future: Future[Answered] = field(default_factory=Future)
    results: list[dict[str, Any]] = field(default_factory=list)
    together: int = 0
    notes: list[str] = field(default_factory=list)
    short: bool = False
    """what is left of it takes no more than a slice"""
    running: bool = False

    def part(self, texts: int, characters: int) -> list[str]:
        """The next texts, at least one and as many as fit."""
        start = stop = len(self.results)
        while stop < len(self.texts) and (stop == start or (stop - start < texts and len(self.texts[stop]) <= characters)):
            characters -= len(self.texts[stop])
            stop += 1
        return self.texts[start:stop]


class Lane:
    """Answers texts by one function of the model. There is no waiting for company: what has come while the model was busy
    goes in one batch, up to ``texts`` of them, and a request that comes to an idle model goes at once. A request that would
    keep the model for longer than a :data:`SLICE` goes in parts, between which others are answered.

    Args:
        read: texts, and the number of the first in its request, to token ids; what it refuses is refused to its own request
            only.
        run: token ids of N texts to N results.
        waiting: requests that may wait or be on their way.
        share: of a busy model, that requests in parts get at least, all together.
    """

    def __init__(
        self,
        thread: ModelThread,
        read: Callable[[list[str], int], Encoded],
        run: Callable[[Encoded], list[dict[str, Any]]],
        *,
        texts: int = 64,
        waiting: int = 256,
        share: float = LARGE,
    ) -> None:
        self._thread, self._read, self._run = thread, read, run
        self._most, self._room, self._share, self._characters = texts, waiting, share, _FIRST
        self._waiting: list[_Asked] = []

    def __len__(self) -> int:
        return len(self._waiting)

    async def ask(self, texts: list[str]) -> Answered:
        """Raises Refused (503) where too many wait already, and what ``read`` and ``run`` raise."""
        if len(self._waiting) >= self._room:
            raise Refused(f"{len(self._waiting)} requests wait already; try again in a moment", 503)
        asked = _Asked(texts)
        self._waiting.append(asked)
        self._submit(asked)
        return await asyncio.wrap_future(asked.future)

    def _submit(self, asked: _Asked) -> None:
        """One turn for each request that is not answered. Those are free that find nothing which is due by then."""
        part = asked.part(self._most, self._characters)
        asked.short = len(asked.results) + len(part) == len(asked.texts) and sum(map(len, part)) <= self._characters
        work = partial(self._turn, asked.turn.due, asked.short)
        self._thread.submit(work, asked.turn.due, None if asked.short else self._share)

    def _turn(self, due: float, short: bool) -> None:
        start = self._thread.clock()
        taken = self._take(due, short)
        ready = []
        for asked, _ in taken:
            asked.running = True
        for asked, texts in taken:
            try:
                ready.append((asked, self._encoded(asked, texts)))
            except Exception as error:
                self._end(asked, error)
        if ready:
            self._answer(ready)
        seconds = self._thread.clock() - start
        self._measure(sum(len(text) for _, texts in taken for text in texts), seconds)
        begun = sum(bool(asked.results) for asked in self._waiting)
        for asked, _ in ready:
            asked.running = False
            if asked in self._waiting:  # it goes in parts
                asked.turn.charge(seconds, self._share / max(1, begun))
                self._submit(asked)

    def _take(self, due: float, short: bool) -> list[tuple[_Asked, list[str]]]:
        """As many whole requests as fit, those first that are due first; where that is none, a part of the first. For a
        ``short`` turn, which may stand within a long one, only of those that are short.
        """
        taken: list[tuple[_Asked, list[str]]] = []
        texts, characters = self._most, self._characters
        for asked in sorted(self._waiting, key=lambda asked: asked.turn.due):
            if asked.future.cancelled() and not asked.running:  # its client has gone away
                self._waiting.remove(asked)
                continue
            if asked.running or (short and not asked.short):
                continue
            if not taken and asked.turn.due > due:  # it has a turn of its own
                break
            part = asked.part(texts, characters)
            size = sum(map(len, part))
            whole = len(asked.results) + len(part) == len(asked.texts) and len(part) <= texts and size <= characters
            if whole or not taken:
                taken.append((asked, part))
                texts, characters = texts - len(part), characters - size
            if texts < 1 or characters < 1:
                break
        return taken

    def _encoded(self, asked: _Asked, texts: list[str]) -> Encoded:
        first = len(asked.results)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            encoded = self._read(texts, first)
        part = "" if len(texts) == len(asked.texts) else f"texts {first} to {first + len(texts) - 1}: "
        asked.notes += [part + str(w.message) for w in said if issubclass(w.category, UserWarning)]
        return encoded

    def _answer(self, ready: list[tuple[_Asked, Encoded]]) -> None:
        together = joined([encoded for _, encoded in ready])
        try:
            results = self._run(together)
        except Exception as error:
            for asked, _ in ready:
                self._end(asked, error)
            return
        start = 0
        for asked, encoded in ready:
            asked.results += results[start : start + len(encoded)]
            start += len(encoded)
            asked.together = max(asked.together, len(together))
            if len(asked.results) == len(asked.texts):
                self._end(asked)

    def _end(self, asked: _Asked, error: Exception | None = None) -> None:
        self._waiting.remove(asked)
        if not asked.future.set_running_or_notify_cancel():
            return
        if error is not None:
            asked.future.set_exception(error)
        else:
            asked.future.set_result(Answered(asked.results, asked.together, asked.notes))

    def _measure(self, characters: int, seconds: float) -> None:
        """Batches grow and shrink to a slice's length."""
        if seconds > SLICE:
            self._characters = max(_SMALLEST, self._characters // 2)
        elif characters > self._characters / 2 and seconds < SLICE / 2:
            self._characters = min(_LARGEST, self._characters * 2)


def joined(parts: Sequence[Encoded]) -> Encoded:
    """The texts of all parts, in order."""
    if len(parts) == 1:
        return parts[0]
    lengths = np.concatenate([part.lengths for part in parts])
    return Encoded(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.special for part in parts]),
        np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
    )
