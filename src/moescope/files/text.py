"""From a file's bytes to its text, one way for every reader: unpacked, recognised for what it is, decoded."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import re
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moescope.errors import InputError, Note
from moescope.files.memory import gib
from moescope.files.parse import packed_most
from moescope.files.remote import address, local

PACKED = (".gz", ".bz2", ".xz")
"""Suffixes of files that are unpacked when read; what they are is told by their first bytes, not by these."""
_UNPACK: dict[bytes, Callable[[io.BytesIO], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"\xfd7zXZ\x00": lzma.LZMAFile,
    **{b"BZh%d1AY&SY" % level: bz2.BZ2File for level in range(1, 10)},
}
_POINTER = b"version https://git-lfs.github.com/spec/"
_MARKS = {
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe\x00\x00": "utf-32",  # before UTF-16, whose mark it begins with
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
# How files begin that are no text: what they are, and the mend.
_NO_TEXT = {
    b"\xd0\xcf\x11\xe0": "is an old Office file (.xls); save the sheet as CSV",
    b"PAR1": "is a Parquet file; name it .parquet",
    b"ARROW1": "is an Arrow file; write it as Parquet",
    b"\x28\xb5\x2f\xfd": "is packed with zstd; unpack it (zstd -d)",
    b"7z\xbc\xaf\x27\x1c": "is a 7z archive; unpack it",
    b"%PDF-": "is a PDF; save its text",
    b"SQLite format 3": "is an SQLite database; export the table as CSV",
    **{bytes([0x80, n]): "is a pickle and is never read; write it as JSON lines or CSV" for n in (2, 3, 4, 5)},
    b"<!doctype html": "is an HTML page, such as a site shows in a file's place; download the file itself",
    b"<html": "is an HTML page, such as a site shows in a file's place; download the file itself",
}
_FOREIGN = 0.2  # of all letters: text in a Latin script has fewer letters beyond ASCII, other scripts far more
_LETTERS = re.compile(r"[^\W\d_]")


def read_text(path: str | Path, encoding: str | None = None) -> str:
    """The text of a file, whose line ends are left as they are (see :func:`lines`).

    UTF-8, UTF-16 and UTF-32 with or without a byte-order mark are told apart; what is none of them and looks like Western
    text is read as Windows-1252, which holds Latin-1, with a :class:`~moescope.errors.Note`. ``.gz``, ``.bz2`` and ``.xz``
    are unpacked.

    Args:
        encoding: read as this and nothing else.

    Raises:
        InputError: the file cannot be read, is no text, or is in an encoding that cannot be told; names it and the line.
    """
    data = read_bytes(path)
    start = data[:64].lstrip().lower()
    for beginning, words in _NO_TEXT.items():
        if data.startswith(beginning) or start.startswith(beginning):
            raise InputError(f"{path}: {words}")
    if data.startswith(b"PK\x03\x04"):
        sheet = b"xl/" in data or b"[Content_Types].xml" in data or b"opendocument" in data
        raise InputError(f"{path}: is {'an Office file; save its sheet as CSV' if sheet else 'a zip archive; unpack it'}")
    text = _decoded(data, str(path), encoding or _encoding(data))
    if "\0" in text:
        line = len(lines(text[: text.index("\0")]))
        raise InputError(f"{path}: line {line}: holds a NUL byte, so the file is damaged or no text; write it again")
    return text


def read_bytes(path: str | Path) -> bytes:
    """The bytes of a file, unpacked where it is packed.

    Raises:
        InputError: there is no such file, it is a folder, cannot be read, is cut short, or is a Git-LFS pointer.
    """
    named, path = address(path) or path, local(path)
    if not os.path.exists(path):  # False too for a name that no system takes
        raise InputError(f"{named}: no such file; check the path")
    if os.path.isdir(path):
        raise InputError(f"{named}: is a folder, not a file")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{named}: cannot be read ({error.strerror or error}); check its permissions") from error
    for beginning, unpack in _UNPACK.items():
        if data.startswith(beginning):
            try:
                most = packed_most(len(data))
                with unpack(io.BytesIO(data)) as file:
                    data = file.read(most + 1)
                if len(data) > most:
                    raise ValueError(f"more than {gib(most)} from so few bytes is no text")
            except (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
                raise InputError(f"{named}: cannot be unpacked ({error}); it is cut short or damaged: copy it again") from error
            break
    if data.startswith(_POINTER):
        raise pointer_error(named)
    return data


def check_pointers(folder: Path) -> None:
    """Raise InputError where a file in ``folder`` is a Git-LFS pointer, which a reader might take for data."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.stat().st_size < 1024:
            with path.open("rb") as file:
                if file.read(len(_POINTER)) == _POINTER:
                    raise pointer_error(path)


def pointer_error(path: str | Path) -> InputError:
    return InputError(f"{path}: is a Git-LFS pointer, not the file itself; fetch that with git lfs pull")


def lines(text: str) -> list[str]:
    r"""The lines, ended by ``\n``, ``\r\n`` or ``\r`` and by nothing else: JSON strings may hold Unicode's line separators."""
    return re.split(r"\r\n|\r|\n", text)


def _encoding(data: bytes) -> str:
    for mark, name in _MARKS.items():
        if data.startswith(mark):
            return name
    # UTF-16 without a mark: every other byte of ASCII is NUL
    even, odd = data[:4096:2].count(0), data[1:4096:2].count(0)
    if max(even, odd) > len(data[:4096]) / 8 and min(even, odd) == 0:
        return "utf-16-be" if even else "utf-16-le"
    return "utf-8"


def _decoded(data: bytes, path: str, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except LookupError as error:
        raise InputError(f"{path}: encoding {encoding!r} is unknown; write for example utf-8, latin-1 or gbk") from error
    except UnicodeDecodeError as error:
        line = len(lines(data[: error.start].decode("latin-1")))
        place = f"line {line}: byte {error.start} is not {'UTF-8' if encoding.startswith('utf-8') else encoding}"
        text = _western(data) if encoding == "utf-8" else None
        if text is None:
            raise InputError(f"{path}: {place}; save the file as UTF-8, or say which encoding it is in") from error
    warnings.warn(f"{path}: {place}; read as Windows-1252 (Latin-1): check its accented letters", Note, stacklevel=3)
    return text


def _western(data: bytes) -> str | None:
    """``data`` as Windows-1252 if that is what it looks like: no UTF-8 in it, and few letters beyond ASCII."""
    try:
        text = data.decode("cp1252")
    except UnicodeDecodeError:
        return None
    letters = _LETTERS.findall(text)
    foreign = sum(not c.isascii() for c in letters)
    return text if data.decode("utf-8", "ignore").isascii() and foreign <= max(1, _FOREIGN * len(letters)) else None
