"""Seeded damage to a folder of valid files, its checksums made to fit again."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import re
import zlib
from functools import cache
from pathlib import PurePosixPath

from tests.fuzz.contents import MEANING
from tests.fuzz.mutators import Rng, damaged_bytes, pick

Files = dict[str, bytes]
_PACKED = {
    ".gz": (gzip.compress, gzip.decompress),
    ".bz2": (bz2.compress, bz2.decompress),
    ".xz": (lzma.compress, lzma.decompress),
}


@cache
def _bomb(suffix: str) -> bytes:
    """A few kilobytes that unpack to many megabytes."""
    return _PACKED[suffix][0](bytes(300_000_000 if suffix == ".gz" else 50_000_000))


def damaged(name: str, data: bytes, rng: Rng) -> bytes:
    """``data`` of a file of that name: in two of three cases damaged in meaning, else in its bytes."""
    suffix = PurePosixPath(name).suffix
    if suffix in _PACKED and rng.random() < 0.7:
        pack, unpack = _PACKED[suffix]
        try:
            inner = unpack(data)
            if len(inner) > 10**7:  # a bomb already
                return damaged_bytes(data, rng)
        except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError):
            return damaged_bytes(data, rng)
        bomb = rng.random() < 0.02
        return _bomb(suffix) if bomb else pack(damaged(name.removesuffix(suffix), inner, rng))
    if suffix in MEANING and rng.random() < 0.67:
        try:
            return MEANING[suffix](data, rng)
        except Exception:  # damaged once already: its meaning is lost
            return damaged_bytes(data, rng)
    return damaged_bytes(data, rng)


def damaged_files(files: Files, rng: Rng) -> Files:
    """A folder with one to three faults; where a manifest holds checksums and sizes, mostly those of the new contents."""
    out = dict(files)
    for _ in range(pick(rng, (1, 1, 1, 2, 3))):
        name = pick(rng, list(out))
        if rng.random() < 0.02 and len(out) > 1:
            del out[name]
            continue
        out[name] = damaged(name, out[name], rng)
    return sealed(files, out) if rng.random() < 0.8 else out


def sealed(before: Files, after: Files) -> Files:
    """``after`` with the checksums and sizes of ``before`` replaced by its own wherever they stand in JSON."""
    out = dict(after)
    for name, data in after.items():
        old = before.get(name)
        if old is None or old == data:
            continue
        swaps = (
            (hashlib.sha256(old).hexdigest().encode(), hashlib.sha256(data).hexdigest().encode()),
            (b'"size": %d' % len(old), b'"size": %d' % len(data)),
        )
        for other, text in out.items():
            if other != name and other.endswith(".json"):
                for a, b in swaps:
                    text = text.replace(a, b)
                out[other] = text
    return {name: _resealed(data) if data != before.get(name) else data for name, data in out.items()}


def _resealed(data: bytes) -> bytes:
    """A file that holds its own checksum (see :mod:`moescope.files.seal`) with that of what it holds now."""
    found = re.search(rb"sha256-([0-9a-f]{64})", data[:4096])
    if found is None:
        return data
    start, end = found.span(1)
    blank = data[:start] + b"0" * 64 + data[end:]
    return blank[:start] + hashlib.sha256(blank).hexdigest().encode() + blank[end:]
