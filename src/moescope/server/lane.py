"""One thread for the model, and requests that wait together answered in one pass."""

from __future__ import annotations

import asyncio
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from moescope.capture.encode import Encoded
from moescope.server.limits import Refused

T = TypeVar("T")


class ModelThread:
    """All work on the model: one piece at a time, first come, first served. PyTorch uses the cores within a piece.

    Load the model on it too. OpenMP keeps workers for every thread that has ever computed with them, and once there are more
    of those than cores, GCC's lets them sleep between operations: a pass of a small model takes twice as long.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="moescope-model")

    def run(self, work: Callable[[], T]) -> T:
        """What ``work()`` returns or raises; for callers outside an event loop."""
        return self._pool.submit(work).result()

    async def do(self, work: Callable[[], T]) -> T:
        """The same, inside one."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def submit(self, work: Callable[[], Any]) -> None:
        self._pool.submit(work)

    def close(self) -> None:
        """Waits for the piece that runs; what waits is dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True)
class Answered:
    """What a request gets back."""

    results: list[dict[str, Any]]
    """one for each text"""
    together: int
    """texts that shared the pass, those of other requests included"""
    notes: list[str]
    """what the reader of the texts had to say, such as that one was cut"""


@dataclass(eq=False)
class _Asked:
    texts: list[str]
    future: Future[Answered] = field(default_factory=Future)
    encoded: Encoded | None = None
    notes: list[str] = field(default_factory=list)


class Lane:
    """Answers texts by one function of the model. There is no waiting for company: what has come while the model was busy
    goes in one batch, up to ``texts`` of them, and a request that comes to an idle model goes at once.

    Args:
        read: texts to token ids; what it refuses is refused to its own request only.
        run: token ids of N texts to N results.
    """

    def __init__(
        self,
        thread: ModelThread,
        read: Callable[[list[str]], Encoded],
        run: Callable[[Encoded], list[dict[str, Any]]],
        *,
        texts: int = 64,
        waiting: int = 256,
    ) -> None:
        self._thread, self._read, self._run = thread, read, run
        self._most, self._room = texts, waiting
        self._waiting: deque[_Asked] = deque()

    async def ask(self, texts: list[str]) -> Answered:
        """Raises Refused (503) where too many wait already, and what ``read`` and ``run`` raise."""
        if len(self._waiting) >= self._room:
            raise Refused(f"{len(self._waiting)} requests wait already; try again in a moment", 503)
        asked = _Asked(texts)
        self._waiting.append(asked)
        self._thread.submit(self._turn)  # one turn for each request; those that find nothing left are free
        return await asyncio.wrap_future(asked.future)

    def _turn(self) -> None:
        ready = []
        for asked in self._take():
            try:
                with warnings.catch_warnings(record=True) as said:
                    warnings.simplefilter("always")
                    asked.encoded = self._read(asked.texts)
                asked.notes = [str(w.message) for w in said if issubclass(w.category, UserWarning)]
            except Exception as error:
                asked.future.set_exception(error)
            else:
                ready.append(asked)
        if not ready:
            return
        together = joined([asked.encoded for asked in ready if asked.encoded is not None])
        try:
            results = self._run(together)
        except Exception as error:
            for asked in ready:
                asked.future.set_exception(error)
            return
        start = 0
        for asked in ready:
            mine = results[start : start + len(asked.texts)]
            start += len(asked.texts)
            asked.future.set_result(Answered(mine, len(together), asked.notes))

    def _take(self) -> list[_Asked]:
        """From the front, at least one and as many as fit; a client that has gone away is passed over."""
        taken: list[_Asked] = []
        total = 0
        while self._waiting and (not taken or total + len(self._waiting[0].texts) <= self._most):
            asked = self._waiting.popleft()
            if asked.future.set_running_or_notify_cancel():
                taken.append(asked)
                total += len(asked.texts)
        return taken


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
