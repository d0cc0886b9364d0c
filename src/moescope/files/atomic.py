"""Write a whole file or nothing."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable
from pathlib import Path

from moescope.errors import InputError

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


def write_atomic(path: Path, parts: Iterable[bytes | memoryview]) -> int:
    """Write the concatenated ``parts`` to ``path`` through a temporary file beside it; returns the bytes written.

    The data are flushed to the disk before the name appears, so a kill or a full disk leaves the old file or none.

    Raises:
        InputError: the disk is full or cannot be written to. The temporary file has been removed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    size = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            for part in parts:
                size += file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # gone after a successful replace; never hide the first error
            temporary.unlink()
    return size
