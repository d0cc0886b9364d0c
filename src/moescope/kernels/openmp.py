"""Compiled loops on the very threads that torch uses.

A process can hold several OpenMP runtimes (torch brings one, scikit-learn another, numba takes the system's), each with
threads of its own. Those of torch spin for a while after every operation, and a loop on other threads competes with them.
``GOMP_parallel`` is the entry point that compilers call for ``#pragma omp parallel``; looked up through torch's own library
it belongs to the runtime that torch runs on.
"""

from __future__ import annotations

import ctypes
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch
from llvmlite import ir
from numba import carray, cfunc, types
from numba.extending import intrinsic

from moescope.kernels.loops import cached


class Task:
    """What a compiled loop works on: addresses, and whole numbers, of which the first counts the parts that are taken.

    Args:
        numbers: seen by the loop as an int64 array behind ``address[0]``, with a nought put before them.
        tensors: memory that the loop reads or writes; None for what :meth:`give` will name.
    """

    def __init__(self, numbers: tuple[int, ...], tensors: tuple[torch.Tensor | None, ...]) -> None:
        self._numbers = (ctypes.c_int64 * (1 + len(numbers)))(0, *numbers)
        self._kept = tensors
        addresses = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
        self._addresses = (ctypes.c_void_p * (1 + len(tensors)))(ctypes.addressof(self._numbers), *addresses)
        self.address = ctypes.addressof(self._addresses)

    def give(self, *tensors: torch.Tensor) -> None:
        """The first tensors, for the calls that follow; the caller keeps them alive."""
        for place, tensor in enumerate(tensors, 1):
            self._addresses[place] = tensor.data_ptr()


def mark_of(file: str) -> str:
    """A few letters that change with what a source file says."""
    return f"{zlib.crc32(Path(file).read_bytes()):08x}"


def compiled(function: Callable[[Any], None], mark: str) -> Any:
    """A C function ``void (void **addresses)`` from Python code, kept on disk between processes; called without the GIL.

    Args:
        mark: :func:`mark_of` the file, asked while it is imported. Numba goes by the file's time when it stores, which can be
            that of a newer file; old machine code on new addresses would write anywhere.
    """
    function.__qualname__ += f"_{mark}"
    return cached(lambda keep: cfunc(types.void(types.CPointer(types.voidptr)), cache=keep)(function))


def call(function: Any, task: Task) -> None:
    """Once, on this thread."""
    _callable(function.address)(task.address)


def fork(function: Any, task: Task, threads: int) -> None:
    """On ``threads`` threads at once, each of which takes parts by :func:`take` until none is left.

    Where torch's runtime has no ``GOMP_parallel``, threads of Python's do it: correct, but they compete with torch's.
    """
    task._numbers[0] = 0
    start = _gomp_parallel()
    if start is not None:
        start(function.address, task.address, threads, 0)
        return
    jobs = [_pool().submit(_callable(function.address), task.address) for _ in range(threads - 1)]
    call(function, task)
    for job in jobs:
        job.result()


class PerThread(threading.local):
    """Things that are costly to make and must not be shared by threads: the last few, by a key."""

    _MOST = 16

    def __init__(self) -> None:
        self._made: dict[Any, Any] = {}

    def get(self, make: Callable[..., Any], *key: Any) -> Any:
        found = self._made.get(key)
        if found is None:
            if len(self._made) >= self._MOST:
                self._made.clear()
            found = self._made[key] = make(*key)
        return found


@cache
def _callable(address: int) -> Any:
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)


@cache
def _gomp_parallel() -> Any:
    for library in sorted((Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*")):
        try:
            start = ctypes.CDLL(str(library)).GOMP_parallel  # looks through what the library was linked with, too
        except (OSError, AttributeError):
            continue
        start.argtypes, start.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
        return start
    return None


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="moescope-kernel")


@intrinsic
def _take(typing: Any, numbers: Any) -> Any:
    """The next part that nobody has taken: ``numbers[0]++``, atomically."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        counter = _start(context, builder, signature.args[0], arguments[0])
        return builder.atomic_rmw("add", counter, ir.Constant(ir.IntType(64), 1), "acq_rel")

    return types.int64(numbers), generate


@intrinsic
def _prefetch(typing: Any, row: Any, place: Any) -> Any:
    """Begin to fetch the cache line of ``row[place]``; the place may lie outside."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = builder.gep(_start(context, builder, signature.args[0], arguments[0]), [arguments[1]])
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [address.type, number, number, number])
        fetch = builder.module.declare_intrinsic("llvm.prefetch.p0", (), kind)
        builder.call(fetch, [address, number(0), number(3), number(1)])  # for reading, into every level, data
        return context.get_dummy_value()

    return types.void(row, types.int64), generate


def _start(context: Any, builder: Any, kind: Any, array: Any) -> Any:
    return context.make_array(kind)(context, builder, array).data


# For compiled code, in which a type checker cannot follow numba's types.
take: Any = _take
prefetch: Any = _prefetch
array_at: Any = carray
