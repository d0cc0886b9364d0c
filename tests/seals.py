"""Files with a checksum of their own, written by hand: what stands in them is what is tested, not the checksum."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moescope.files.seal import BLANK, sealed_json


def write_sealed(path: Path, data: dict[str, Any]) -> None:
    """``data`` as JSON with the right checksum."""
    path.write_bytes(b"".join(sealed_json({**data, "seal": BLANK})))


def flip(path: Path, at: float = 0.5, bit: int = 0) -> None:
    """Flip one bit of a file, at that share of its length."""
    data = bytearray(path.read_bytes())
    data[min(len(data) - 1, int(at * len(data)))] ^= 1 << bit
    path.write_bytes(bytes(data))
