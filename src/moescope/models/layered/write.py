"""Write a checkpoint's tensors again, some of their rows left out, one tensor at a time."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from moescope.models.layered.files import Piece

_KINDS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_AT_ONCE = 1 << 26
"""bytes that are read at once"""


@dataclass(frozen=True)
class Written:
    """A tensor as it is to be written: under which name, and which rows of it (None: all)."""

    piece: Piece
    key: str
    rows: tuple[int, ...] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.piece.shape if self.rows is None else (len(self.rows), *self.piece.shape[1:])


def write_weights(folder: Path, tensors: Sequence[Written]) -> int:
    """Write each of the source's files again under its name, with these of its tensors, and an index where there are several.

    Gives the bytes of all tensors. A file that none of them is in is left out.
    """
    by_file: dict[Path, list[Written]] = {}
    for tensor in tensors:
        by_file.setdefault(tensor.piece.file, []).append(tensor)
    sizes = {file: _write(folder / file.name, file, held) for file, held in by_file.items()}
    if len(by_file) > 1 or next(iter(by_file)).name != "model.safetensors":
        weight_map = {tensor.key: file.name for file, held in by_file.items() for tensor in held}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return sum(sizes.values())


def _write(target: Path, source: Path, tensors: Sequence[Written]) -> int:
    with safe_open(source, framework="pt", device="cpu", backend="pread") as handle, target.open("wb") as out:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for tensor in tensors:
            kind = str(handle.get_slice(tensor.piece.key).get_dtype())
            begin, end = end, end + math.prod(tensor.shape) * _KINDS[kind]
            header[tensor.key] = {"dtype": kind, "shape": tensor.shape, "data_offsets": [begin, end]}
        head = json.dumps(header).encode()
        head += b" " * (-len(head) % 8)
        out.write(struct.pack("<Q", len(head)) + head)
        for tensor in tensors:
            for part in _parts(handle, tensor):
                out.write(part.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return end


def _parts(handle: Any, tensor: Written) -> Iterator[torch.Tensor]:
    """The tensor's rows that stay, in pieces."""
    piece = tensor.piece
    if not piece.shape or math.prod(piece.shape) == 0:
        yield handle.get_tensor(piece.key)
        return
    rows = range(piece.shape[0]) if tensor.rows is None else tensor.rows
    stored = handle.get_slice(piece.key)
    step = max(1, _AT_ONCE // max(1, 8 * math.prod(piece.shape[1:])))
    for start in range(0, len(rows), step):
        some = rows[start : start + step]
        if some[-1] - some[0] + 1 == len(some):
            yield stored[some[0] : some[-1] + 1]
        else:
            yield torch.cat([stored[row : row + 1] for row in some])
