"""What every engine offers, and the one that is a single process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

S = TypeVar("S")
R = TypeVar("R")

Collect = Callable[[Iterable[S]], Iterator[R]]
"""Yields one result for each shard, in their order; of the shard alone, whatever came before."""


class ProcessLost(RuntimeError):
    """A process of the job ended before its work did; one line that names it and says what to do."""


class Engine(Protocol):
    """Runs a ``collect`` on shards, each in one of its processes."""

    @property
    def name(self) -> str:
        """As provenance names it."""

    @property
    def processes(self) -> int:
        """How many work at a time."""

    @property
    def elsewhere(self) -> int:
        """Shards that other processes have done so far."""

    def map(
        self, collect: Collect[S, R], shards: Sequence[S], costs: Sequence[float], *, here: Collect[S, R]
    ) -> Iterator[tuple[int, R]]:
        """Each shard's number and result, every shard once, in an order that ``costs`` and the number of processes settle.

        Args:
            collect: for another process: it, the shards and the results can be pickled.
            costs: of each shard, in any unit.
            here: the same as ``collect``, for this process.

        Raises:
            ProcessLost: a process died, and its work could not be done by another.
            Exception: what ``collect`` raised, whichever process it was in.
        """


class Local:
    """This process alone."""

    name = "local"
    processes = 1
    elsewhere = 0

    def map(
        self, collect: Collect[S, R], shards: Sequence[S], costs: Sequence[float], *, here: Collect[S, R]
    ) -> Iterator[tuple[int, R]]:
        yield from enumerate(here(shards))


LOCAL: Engine = Local()


def plain_error(error: BaseException, who: str) -> Exception:
    """``error`` of another process in a form that is told apart as before, and can be pickled for sure."""
    if type(error).__module__.startswith("moescope.") and isinstance(error, Exception):
        return error
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return MemoryError(f"{who}: {error}")
    return RuntimeError(f"{who}: {type(error).__name__}: {error}")
