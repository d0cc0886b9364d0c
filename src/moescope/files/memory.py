"""How much memory there is, and arrays that go to the disk where it does not suffice."""

from __future__ import annotations

import contextlib
import os
import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import psutil

from moescope.errors import InputError

SHARE = 0.5
"""Of the memory that is free, what one array may take: what is computed from it needs room as well."""

# files there would lie in memory
_MEMORY_DISKS = ("tmpfs", "ramfs", "devtmpfs")


def available_memory() -> int:
    """Bytes that this process can still take without swapping: what the machine has free, or less where a container, a
    batch system or ``ulimit -v`` allows less."""
    free = [int(psutil.virtual_memory().available), *_container()]
    with contextlib.suppress(ImportError, OSError):
        import resource  # not on Windows

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            free.append(limit - psutil.Process().memory_info().vms)
    return max(0, min(free))


def _container(root: Path = Path("/sys/fs/cgroup")) -> Iterable[int]:
    """What the control group leaves, in its second or first version. Pages of files count as free: they are given back."""
    for limit, used, cache in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        with contextlib.suppress(OSError, ValueError):
            most, now = int((root / limit).read_text()), int((root / used).read_text())  # "max" where there is no limit
            stat = dict(line.split() for line in (root / limit).with_name("memory.stat").read_text().splitlines())
            yield most - now + int(stat.get(cache, 0))


def gib(nbytes: float) -> str:
    """Bytes in words: ``3.2 GiB``, ``12 MiB``."""
    if nbytes >= 2**30:
        return f"{nbytes / 2**30:.1f} GiB"
    return f"{nbytes / 2**20:.1f} MiB"


def empty_array(rows: int, columns: int, what: str) -> np.ndarray:
    """A float32 array (rows, columns) of any content: in memory where it takes at most :data:`SHARE` of what is free, else in
    a temporary file, which is gone when the array or the process is; a warning then says so.

    The file goes to the folder for temporary files (``TMPDIR``), or to ``/var/tmp`` or the working folder where files in
    that would lie in memory themselves.

    Args:
        what: of what these are, for the messages.

    Raises:
        InputError: neither memory nor disk has room for it.
    """
    size = 4 * rows * columns
    free = available_memory()
    if size <= SHARE * free:
        return np.empty((rows, columns), np.float32)
    folder = _folder()
    try:
        with tempfile.TemporaryFile(prefix="moescope-", dir=folder) as file:
            if hasattr(os, "posix_fallocate"):  # a full disk is told now, and not by a signal in the middle of the work
                os.posix_fallocate(file.fileno(), 0, size)
            array = np.memmap(file, np.float32, "w+", shape=(rows, columns))
    except OSError as error:
        raise InputError(
            f"{what}: {rows} x {columns} values take {gib(size)}, memory has {gib(free)} free and {folder} has no room "
            f"({error.strerror}): name a larger folder in TMPDIR, or read fewer examples (limit) or sites (site)"
        ) from error
    warnings.warn(f"{what}: {gib(size)}, more than memory has room for; kept in a temporary file in {folder}", stacklevel=3)
    return array


def _folder() -> Path:
    disks = sorted(psutil.disk_partitions(all=True), key=lambda disk: len(disk.mountpoint))
    for folder in map(Path, (tempfile.gettempdir(), "/var/tmp", os.getcwd())):
        if not os.access(folder, os.W_OK):
            continue
        holding = [disk.fstype for disk in disks if folder.resolve().is_relative_to(disk.mountpoint)]
        if not holding or holding[-1] not in _MEMORY_DISKS:
            return folder
    return Path(tempfile.gettempdir())
