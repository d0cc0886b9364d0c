"""What foreign bytes hold: JSON, and arrays in ``.npy``, ``.npz`` and safetensors.

Every fault of theirs is a ValueError of one line; the caller, who knows the file and the mend, says both.
"""

from __future__ import annotations

import io
import json
import lzma
import math
import struct
import zipfile
import zlib
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors

from moescope.files.memory import SHARE, available_memory, gib

PACKED_MOST = 100
"""What is packed may unpack to so many times its size, and always to 64 MiB: neither text nor recorded numbers get denser."""
_PACKED_FREE = 64 * 2**20


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text in UTF-8.

    Raises:
        ValueError: it is not JSON, a key stands twice in an object, or its nesting is too deep or a number too long to be read.
    """
    try:
        return json.loads(text.decode("utf-8") if isinstance(text, bytes) else text, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def parse_object(text: str | bytes) -> dict[str, Any]:
    """As :func:`parse_json`, of what has to be an object."""
    value = parse_json(text)
    if not isinstance(value, dict):
        raise ValueError(f"a {type(value).__name__}, not an object")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A key that stands twice would silently lose a value."""
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(k for k in keys if keys.count(k) > 1)!r} stands twice")
    return record


def packed_most(packed: int) -> int:
    """Bytes that ``packed`` bytes may unpack to."""
    return max(_PACKED_FREE, PACKED_MOST * packed)


def parse_npy(data: bytes) -> np.ndarray:
    """The array of an ``.npy`` file; nothing is allocated before the header is known to tell the truth.

    Raises:
        ValueError: the header is damaged or claims another size than the file has, or the array holds pickled objects.
    """
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_column, dtype = read(file)
    except Exception as error:  # numpy has Python read the header: SyntaxError, tokenize's own, RecursionError, TypeError …
        raise ValueError(f"not an .npy file, or its header is damaged ({type(error).__name__})") from error
    if dtype.hasobject:
        raise ValueError("holds pickled objects, which are never read")
    claimed, found = math.prod(shape) * dtype.itemsize, len(data) - file.tell()
    if min(shape, default=0) < 0 or claimed != found:
        raise ValueError(f"its header claims shape {shape} of {dtype}, but {found} bytes follow: cut short or damaged")
    flat = np.frombuffer(data, dtype, math.prod(shape), file.tell()) if claimed else np.zeros(shape, dtype)
    return flat.reshape(shape, order="F" if by_column else "C")


def parse_npz(data: bytes) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz`` file by name.

    Raises:
        ValueError: the archive or a member is damaged, no array, or unpacks to more than such data can or memory holds.
    """
    arrays = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            _check_sizes(archive.infolist(), len(data))
            for member in archive.infolist():
                try:
                    arrays[member.filename.removesuffix(".npy")] = parse_npy(archive.read(member))
                except ValueError as error:
                    raise ValueError(f"array {member.filename!r}: {error}") from error
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError, struct.error) as error:
        raise ValueError(f"damaged archive: {error}") from error
    return arrays


def _check_sizes(members: list[zipfile.ZipInfo], packed: int) -> None:
    size = sum(member.file_size for member in members)
    if size > packed_most(packed):
        raise ValueError(f"{gib(packed)} that unpack to {gib(size)} are no recorded arrays")
    if size > SHARE * available_memory():
        raise ValueError(f"unpacks to {gib(size)}, more than memory has room for")


def parse_safetensors(data: bytes) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file by name.

    Raises:
        ValueError: the file is damaged, or holds a type that numpy lacks.
    """
    try:
        return dict(load_safetensors(data))
    except (SafetensorError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(str(error).splitlines()[0] if str(error) else type(error).__name__) from error
