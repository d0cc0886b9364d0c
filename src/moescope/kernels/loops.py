"""Compiled loops over arrays, and the threads that run them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVar, cast

import numba

from moescope.errors import Note

F = TypeVar("F", bound=Callable[..., Any])


def compiled(**options: Any) -> Callable[[F], F]:
    """numba.njit without the GIL, cached on disk where a folder can be written, else compiled anew with a warning.

    Args:
        options: further ones of numba.njit.

    Kernels are run on threads by :func:`for_each`, not by numba's own pool, which must not be entered from two Python
    threads at once nor after a fork.
    """

    def compile(function: F) -> F:
        return cast(F, cached(lambda cache: numba.njit(nogil=True, cache=cache, **options)(function)))

    return compile


def cached(build: Callable[[bool], Any]) -> Any:
    """``build(True)``, or where numba finds no folder for its cache, which it looks for when it builds, ``build(False)``."""
    try:
        return build(True)
    except RuntimeError:
        warn_once()
        return build(False)


@cache
def warn_once() -> None:
    warnings.warn(
        "no writable folder for numba's cache, so kernels are compiled anew in each process: set NUMBA_CACHE_DIR to a "
        "writable folder to avoid that",
        Note,
        stacklevel=4,
    )


def n_threads() -> int:
    """Cores that this process may use; OMP_NUM_THREADS lowers it."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(available, int(limit))) if limit.isdigit() else available


def for_each(work: Callable[[int], None], items: range) -> None:
    """Run ``work`` on each item, on all cores; for kernels that release the GIL and write to disjoint places."""
    threads = min(n_threads(), len(items))
    if threads <= 1:
        for item in items:
            work(item)
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, items):
            pass
