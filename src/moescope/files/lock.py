"""One process at a time writes to an output."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from moescope.errors import InputError

try:
    import fcntl
except ImportError:  # Windows, where two runs on one output are not told apart
    fcntl = None  # type: ignore[assignment]


@dataclass
class _Held:
    file: int | None
    """descriptor"""
    path: Path
    times: int = 0
    """that this process holds it"""


_HELD: dict[Path, _Held] = {}


def standing(folder: Path) -> Path:
    """The nearest folder above ``folder`` that is there."""
    return next(p for p in folder.parents if p.exists())


def hidden(output: Path, above: Path) -> str:
    """How the names of what stands in ``above`` for ``output``, a path below it, begin."""
    return f".{'+'.join(output.relative_to(above).parts)}"


@contextlib.contextmanager
def locked(output: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold ``output`` (absolute) against other processes; gives whether this process did not hold it already.

    The lock is a file beside it, which the system lets go of when the process dies, however it dies. Where the file system
    knows no locks, there is none.

    Args:
        wait: for the process that holds it, instead of refusing.

    Raises:
        InputError: another process holds it.
    """
    held = _HELD.get(output)
    first = held is None
    if held is None:
        above = standing(output)
        path = above / f"{hidden(output, above)}.lock"
        held = _HELD[output] = _Held(_take(path, output, wait), path)
    held.times += 1
    try:
        yield first
    finally:
        held.times -= 1
        if held.times == 0:
            del _HELD[output]
            if held.file is not None:
                _drop(held.file, held.path)


def is_written(output: Path) -> bool:
    """Whether a process that lives holds ``output`` (absolute); False where that cannot be told."""
    above = standing(output)
    path = above / f"{hidden(output, above)}.lock"
    return fcntl is not None and path.exists() and not abandoned(path)


def _take(path: Path, output: Path, wait: bool) -> int | None:
    """A descriptor of the lock's file, or None where there is no lock to be had."""
    while fcntl is not None:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except OSError:  # what is wrong with the folder is said where it is written to
            return None
        except ValueError as error:
            raise InputError(f"{str(output)!r} cannot be a file's name ({error})") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), os.stat(path)):
                    os.ftruncate(file, 0)
                    os.write(file, str(os.getpid()).encode())
                    return file
            os.close(file)  # another's, who removed it while we waited
        except KeyboardInterrupt:
            _drop(file, path)
            raise
        except OSError as error:
            holder = os.read(file, 20).decode("ascii", "replace")
            os.close(file)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                return None
            who = f"another process ({holder})" if holder.isdigit() else "another process"
            raise InputError(f"{output} is being written by {who}; wait for it, or name another output") from error
    return None


def _drop(file: int, path: Path) -> None:
    """Take away the lock's file at ``path``, open as ``file``, unless another process holds it."""
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    os.close(file)


def hold(file: int) -> None:
    """Mark an open file, or folder, as being written by this process, until it is closed or the process dies."""
    if fcntl is not None:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def abandoned(path: Path) -> bool:
    """Whether what :func:`hold` marked is of a process that has died; False where that cannot be told."""
    if fcntl is None:
        return False
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(file)
    return True
