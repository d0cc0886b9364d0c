"""One thread for the model, shared out by how much each request has had of it."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")

SLICE = 0.25
"""seconds of the model after which a large request lets others go first"""


@dataclass(eq=False)
class Turn:
    """When a request is due: when it came, and later the more of the model it has had. The next piece of work is that of the
    request which is due first, so a short one that comes late goes before the rest of a long one, which still gets its share.
    """

    due: float = field(default_factory=time.monotonic)

    def charge(self, seconds: float, share: float) -> None:
        """``seconds`` of the model were used by a request that gets ``share`` of it at least."""
        self.due += seconds / share

    def timed(self, work: Callable[[], T], share: float, clock: Callable[[], float]) -> T:
        """``work()``, charged by the ``clock`` of its thread."""
        start = clock()
        try:
            return work()
        finally:
            self.charge(clock() - start, share)


class ModelThread:
    """All work on the model: one piece at a time, the one first that is due first. PyTorch uses the cores within a piece.

    A long piece makes room between two modules (:meth:`between`) for short ones that are due before the rest of it.

    Load the model on it too. OpenMP keeps workers for every thread that has ever computed with them, and once there are more
    of those than cores, GCC's lets them sleep between operations: a pass of a small model takes twice as long.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="moescope-model")
        self._short: list[_Piece] = []
        self._long: list[_Piece] = []
        self._lock, self._number = threading.Lock(), itertools.count()
        self._running: tuple[_Piece, float] | None = None
        self._lent = self._paused = 0.0
        self.pausing: Callable[[], AbstractContextManager[None]] = nullcontext
        """entered around a long piece, so that :meth:`between` is called in it"""

    def run(self, work: Callable[[], T]) -> T:
        """What ``work()`` returns or raises; for callers outside an event loop."""
        return self.submit(work).result()

    async def do(self, work: Callable[[], T], due: float | None = None, share: float | None = None) -> T:
        """The same, inside one; see :meth:`submit`."""
        return await asyncio.wrap_future(self.submit(work, due, share))

    def submit(self, work: Callable[[], T], due: float | None = None, share: float | None = None) -> Future[T]:
        """``due`` is of :class:`Turn`; None: now. ``share``: what a long piece gets of a busy model; None: a short one."""
        piece = _Piece(time.monotonic() if due is None else due, next(self._number), work, share)
        with self._lock:
            heapq.heappush(self._short if share is None else self._long, piece)
        self._pool.submit(self._next)
        return piece.asked

    def clock(self) -> float:
        """Seconds, without those that the running piece has lent to others."""
        return time.monotonic() - self._lent

    def between(self, aside: Callable[[], AbstractContextManager[None]]) -> None:
        """Called by the model between two modules: short pieces go first that are due before the rest of a long one.

        Args:
            aside: inside of it the model runs as if the long piece were not there.
        """
        if self._running is None or self._running[0].share is None or not self._short:
            return
        long, began = self._running
        assert long.share is not None
        if self.clock() - self._paused < SLICE:  # so that those who wait share a pass
            return
        limit, start, lent = long.due + (self.clock() - began) / long.share, time.monotonic(), self._lent
        with self._lock:
            if not self._short or self._short[0].due >= limit:
                return
        with aside():
            while (piece := self._first(limit)) is not None:
                self._run(piece)
        self._lent = lent + time.monotonic() - start
        self._paused = self.clock()

    def _next(self) -> None:
        """One for each piece; those find nothing whose piece was let in."""
        piece = self._first()
        if piece is not None:
            self._run(piece)

    def _first(self, limit: float | None = None) -> _Piece | None:
        """The piece that is due first; with a ``limit`` a short one that is due before it."""
        with self._lock:
            heaps = [heap for heap in (self._short, *([self._long] if limit is None else [])) if heap]
            first = min(heaps, key=lambda heap: heap[0], default=None)
            return None if first is None or (limit is not None and first[0].due >= limit) else heapq.heappop(first)

    def _run(self, piece: _Piece) -> None:
        if not piece.asked.set_running_or_notify_cancel():
            return
        above, self._running = self._running, (piece, self.clock())
        if piece.share is not None:
            self._paused = self.clock()
        try:
            with nullcontext() if piece.share is None else self.pausing():
                result = piece.work()
        except BaseException as error:
            piece.asked.set_exception(error)
        else:
            piece.asked.set_result(result)
        finally:
            self._running = above

    def close(self) -> None:
        """Waits for the piece that runs; what waits is dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        for piece in (*self._short, *self._long):
            piece.asked.cancel()
        self._short.clear()
        self._long.clear()


@dataclass(order=True)
class _Piece:
    due: float
    number: int
    work: Callable[[], Any] = field(compare=False)
    share: float | None = field(compare=False)
    asked: Future[Any] = field(default_factory=Future, compare=False)
