"""A file that carries its own checksum: the SHA-256 of all its bytes, with noughts where the checksum itself stands."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLANK = "sha256-" + 64 * "0"
"""What a writer puts in the checksum's place, near the start of the file and before any text that is not its own."""
_SEAL = re.compile(rb"sha256-([0-9a-f]{64})")
_HEAD = 1 << 12
_CHUNK = 1 << 20


def sealed(data: bytes, *more: memoryview) -> Iterator[bytes | memoryview]:
    """``data`` and what follows it in parts, with their checksum in the place of the first :data:`BLANK`."""
    place = data.index(BLANK.encode()) + len("sha256-")
    digest = hashlib.sha256(data)
    for part in more:
        digest.update(part)
    yield data[:place]
    yield digest.hexdigest().encode()
    yield memoryview(data)[place + 64 :]
    yield from more


def sealed_json(values: dict[str, Any]) -> Iterator[bytes | memoryview]:
    """``values`` as a JSON object that holds its checksum as ``seal``."""
    return sealed(json.dumps({"seal": BLANK, **values}, indent=1).encode())


def seal_holds(path: Path) -> bool:
    """Whether the file is, byte for byte, what :func:`sealed` made.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
        found = _SEAL.search(head)
        if found is None:
            return False
        digest = hashlib.sha256(head[: found.start(1)] + b"0" * 64 + head[found.end(1) :])
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest() == found[1].decode()
