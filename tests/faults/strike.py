"""Let a fault strike at the n-th file operation of some work, in a forked process."""

from __future__ import annotations

import builtins
import errno
import io
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, Literal

from moescope.errors import InputError

Fault = Literal["kill", "full disk", "read-only"]
KILLED, REFUSED, BROKEN, DONE = 137, 2, 3, 0
"""exit codes of the work: killed, one InputError, a traceback, finished"""
_CALLS = (
    *("rename", "replace", "unlink", "remove", "rmdir", "mkdir", "link", "symlink", "chmod"),
    *("fsync", "ftruncate", "write", "sendfile"),
)
_FREEING = ("unlink", "remove", "rmdir", "rename", "replace", "chmod", "ftruncate")  # what a full disk still does


class _Strikes:
    def __init__(self, fault: Fault, at: int | None) -> None:
        self.fault, self.at, self.done = fault, at, 0

    def before(self, call: str, half: Callable[[], object] = lambda: None) -> None:
        """One operation is about to be done."""
        self.done += 1
        if self.at is None or self.done < self.at:
            return
        if self.fault == "kill":
            half()
            os._exit(KILLED)
        if self.fault == "full disk" and call in _FREEING:
            return
        code = errno.ENOSPC if self.fault == "full disk" else errno.EROFS
        raise OSError(code, os.strerror(code))


class _Written:
    """A file open for writing; a kill in a write leaves half of it."""

    def __init__(self, file: Any, strikes: _Strikes) -> None:
        self._file, self._strikes = file, strikes

    def write(self, data: Any) -> Any:
        def half() -> None:
            self._file.write(data[: len(data) // 2])
            self._file.flush()

        self._strikes.before("write", half)
        return self._file.write(data)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __enter__(self) -> _Written:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def struck(work: Callable[[], object], fault: Fault = "kill", at: int | None = None) -> tuple[int, int]:
    """Do ``work`` in a forked process and let ``fault`` strike at file operation ``at``, counted from 1.

    Returns:
        The exit code, and how many operations were begun.
    """
    ends = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = BROKEN
        strikes = _Strikes(fault, at)
        try:
            _arm(strikes)
            work()
            code = DONE
        except InputError as error:
            code = REFUSED if len(str(error).splitlines()) == 1 else BROKEN
        except BaseException:
            traceback.print_exc()
        finally:
            strikes.at = None
            os.write(ends[1], str(strikes.done).encode())
            os._exit(code)
    os.close(ends[1])
    _, status = os.waitpid(child, 0)
    with os.fdopen(ends[0]) as said:
        return os.waitstatus_to_exitcode(status), int(said.read() or 0)


def _arm(strikes: _Strikes) -> None:
    for name in _CALLS:
        setattr(os, name, _counted(getattr(os, name), name, strikes))
    opened = io.open

    def opening(file: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
        if not set(mode) & set("wax+"):
            return opened(file, mode, *rest, **options)
        strikes.before("open")
        return _Written(opened(file, mode, *rest, **options), strikes)

    io.open = opening  # type: ignore[assignment]
    builtins.open = opening  # type: ignore[assignment]


def _counted(call: Callable[..., Any], name: str, strikes: _Strikes) -> Callable[..., Any]:
    def counted(*arguments: Any, **options: Any) -> Any:
        strikes.before(name)
        return call(*arguments, **options)

    return counted
