"""Write a whole file or nothing."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from moescope.errors import InputError
from moescope.files.lock import abandoned, hold
from moescope.files.remote import refuse

_MEND = {
    errno.ENOSPC: "the disk is full; free some space or write to another folder",
    errno.EDQUOT: "the disk quota is used up; free some space or write to another folder",
    errno.EROFS: "the file system is read-only; write to another folder",
    errno.EACCES: "permission denied; write to another folder",
    errno.EFBIG: "the file system does not take a file of this size; use smaller shards",
    errno.ENOENT: "the folder does not exist and cannot be made",
    errno.ENOTDIR: "part of this path is a file, not a folder",
}


def cannot_write(path: Path, error: OSError) -> InputError:
    """The one-line :class:`InputError` for a failed write to ``path``."""
    reason = _MEND.get(error.errno or 0, error.strerror or str(error))
    return InputError(f"cannot write {path}: {reason}")


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to, which takes the place of ``path`` when the body ends, and is removed if it fails.

    The data are flushed to the disk before the name appears, so a kill or a full disk leaves the old file or none. What killed
    processes left of their attempts is removed.

    Raises:
        InputError: the disk is full or cannot be written to. The temporary file has been removed.
    """
    refuse(path, "name a file of this machine")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
            if left.name.removesuffix(".tmp").rpartition(".")[2].isdigit() and abandoned(left):
                left.unlink()
        with temporary.open("wb") as file:
            hold(file.fileno())
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # gone after a successful replace; never hide the first error
            temporary.unlink()


def write_atomic(path: Path, parts: Iterable[bytes | memoryview]) -> int:
    """Write the concatenated ``parts`` to ``path`` as :func:`whole_file` does; returns the bytes written.

    Raises:
        InputError: the disk is full or cannot be written to.
    """
    with whole_file(path) as file:
        return sum(file.write(part) for part in parts)


def sync(path: Path) -> None:
    """Put a file, or the names in a folder, on the disk."""
    if path.is_dir() and os.name == "nt":
        return
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that has no need of it
            raise
    finally:
        os.close(file)
