"""What files hash to, kept in the cache, so that gigabytes are read for it once for each state of a file."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from pathlib import Path

from moescope.errors import InputError
from moescope.files.atomic import write_atomic
from moescope.files.cache import cache
from moescope.files.parse import parse_object
from moescope.files.seal import seal_holds, sealed_json

_LARGE = 1 << 24  # bytes from which it is remembered
_SETTLED = 2.0  # seconds after a change in which another would not change the time


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex; of one that has not changed since, as it was found then.

    Raises:
        OSError: it cannot be read.
    """
    before = path.stat()
    # the second time is the system's, which no tool that copies or restores a file can set
    state = [before.st_size, before.st_mtime_ns, before.st_ctime_ns, before.st_ino]
    key, notes = str(path.resolve()), cache() / "hashes.json"
    known = _read(notes) if before.st_size >= _LARGE else {}
    if isinstance(kept := known.get(key), list) and kept[:-1] == state:
        return str(kept[-1])
    with path.open("rb") as source:
        found = hashlib.file_digest(source, "sha256").hexdigest()
    if before.st_size >= _LARGE and time.time() - max(before.st_mtime, before.st_ctime) > _SETTLED:
        known = {name: value for name, value in _read(notes).items() if os.path.exists(name)}
        with contextlib.suppress(InputError):  # then it is hashed again
            write_atomic(notes, sealed_json({**known, key: [*state, found]}))
    return found


def _read(notes: Path) -> dict[str, object]:
    try:
        known = parse_object(notes.read_bytes()) if seal_holds(notes) else {}
    except (OSError, ValueError):
        return {}
    known.pop("seal", None)
    return known
