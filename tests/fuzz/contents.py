"""Damage to arrays and tables: their values and types, and what the headers of their files say of them."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.fuzz.mutators import NASTY_TEXTS, Rng, as_json, damaged_bytes, damaged_json, damaged_value, pick

_DTYPES = ("i1", "u1", "i2", ">i4", "i8", "u8", "f2", "f4", "f8", "c16", "?", "S3", "U2", "M8[s]")


def damaged_array(array: np.ndarray, rng: Rng) -> np.ndarray:
    """Another type, shape or values."""
    with np.errstate(all="ignore"):
        match int(rng.integers(8)):
            case 0:
                try:
                    return array.astype(pick(rng, _DTYPES))
                except (ValueError, TypeError):
                    return array.astype("f8") if array.dtype.kind in "iufb" else array
            case 1:
                return array[: int(rng.integers(len(array) + 1))] if array.ndim else array[None]
            case 2:
                return array.T
            case 3:
                return pick(rng, (array[None], array.reshape(-1), array[..., None], array.reshape(-1)[:1].reshape(())))
            case 4:
                return np.concatenate([array, array]) if array.ndim else array
            case 5:
                return array[..., :0] if array.ndim else array
            case _:
                out = array.copy()
                if out.size and out.dtype.kind in "iufb":
                    info = np.iinfo(out.dtype) if out.dtype.kind in "iu" else None
                    extremes = (info.min, info.max, 0, 1, 7, 8, 255) if info else (np.nan, np.inf, -np.inf, -1, 0, 1e30)
                    with np.errstate(all="ignore"):
                        value = np.array(pick(rng, extremes)).astype(out.dtype)
                    out.reshape(-1)[rng.integers(out.size, size=int(rng.integers(1, out.size + 1)))] = value
                return out


_SHAPES = ((30_000_000, 24, 8), (2**62, 4), (-1,), (0,), (), (2**31,), (1, 1, 1), (3, 2**40), (10**30,))
_DESCRS = ("|O", "<f8", "<U9", "|V4", "<i9", "nonsense", "<M8[s]", "|S0", [("a", "<i4")], 7, None)


def damaged_npy(data: bytes, rng: Rng) -> bytes:
    """An .npy whose header lies, or whose array is another, or pickled."""
    array = np.load(io.BytesIO(data))
    out = io.BytesIO()
    kind = int(rng.integers(5))
    if kind < 2:
        np.save(out, damaged_array(array, rng))
    elif kind == 2:
        np.save(out, np.array([{"a": 1}, None], dtype=object), allow_pickle=True)
    else:
        head = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape}
        key = pick(rng, ("descr", "fortran_order", "shape", "gone", "more"))
        if key == "gone":
            del head[pick(rng, list(head))]
        elif key == "more":
            head["x"] = 1
        else:
            head[key] = pick(
                rng, {"descr": _DESCRS, "fortran_order": (True, 1, None, "yes"), "shape": (*_SHAPES, array.shape[::-1])}[key]
            )
        text = (
            pick(rng, (repr(head), repr(head), repr(head), "(" * 5000, repr(head)[:-1], "__import__('os').getcwd()")).encode()
            + b"\n"
        )
        version = bytes([pick(rng, (1, 1, 1, 2, 9)), 0])
        length = pick(rng, (len(text), len(text), len(text), 0, 2**31 - 1)).to_bytes(4, "little")[: 2 if version[0] == 1 else 4]
        out.write(b"\x93NUMPY" + version + length + text + array.tobytes())
    return out.getvalue()


def damaged_npz(data: bytes, rng: Rng) -> bytes:
    """An .npz with a damaged, missing, renamed, doubled or foreign member, or one that says it is encrypted."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = pick(rng, list(members))
    match int(rng.integers(10)):
        case 0:
            del members[name]
        case 1:
            members[pick(rng, ("../x.npy", "x", "a.npy", "<script>.npy", "\x1b[2J.npy"))] = members.pop(name)
        case 2:
            members[name] = damaged_bytes(members[name], rng)
        case 3:
            members[pick(rng, ("note.txt", "more.npy"))] = pick(rng, (b"hello", members[name], bytes(2_000_000)))
        case 4:
            members[name] = members[pick(rng, list(members))]
        case _:
            members[name] = damaged_npy(members[name], rng)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", pick(rng, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    packed = bytearray(out.getvalue())
    if rng.random() < 0.1 and (at := bytes(packed).find(b"PK\x01\x02")) >= 0:
        packed[at + int(rng.integers(4, 46))] ^= 1 << int(rng.integers(8))
    return bytes(packed)


def damaged_safetensors(data: bytes, rng: Rng) -> bytes:
    """Another header (names, types, shapes, offsets, note), another length of it, or other arrays."""
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    kind = int(rng.integers(6))
    if kind == 0:
        length = pick(rng, (0, 1, size - 1, size + 8, 2**40, 2**64 - 1))
        return length.to_bytes(8, "little") + data[8:]
    if kind <= 2:
        from safetensors import SafetensorError
        from safetensors.numpy import load, save

        try:
            arrays = load(data)
        except (SafetensorError, KeyError, ValueError, TypeError):
            return damaged_bytes(data, rng)
        name = pick(rng, list(arrays)) if arrays else None
        if name is not None and rng.random() < 0.2:
            arrays[pick(rng, ("x", name + ".0"))] = arrays.pop(name)
        elif name is not None:
            arrays[name] = np.ascontiguousarray(damaged_array(arrays[name], rng))
        try:
            return save(arrays, header.get("__metadata__"))
        except (SafetensorError, KeyError, ValueError, TypeError):
            return damaged_bytes(data, rng)
    note = header.get("__metadata__", {})
    inner = [key for key, text in note.items() if isinstance(text, str) and text[:1] in "{["]
    if kind <= 4 and inner:
        key = pick(rng, inner)
        note[key] = damaged_json(note[key].encode(), rng).decode("utf-8", "replace")
    else:
        header = damaged_value(header, rng)
    text = as_json(header)
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + body


def damaged_parquet(data: bytes, rng: Rng) -> bytes:
    """A column of another kind, or with holes, or gone, or named otherwise."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(data))
    rows, at = table.num_rows, int(rng.integers(table.num_columns))
    name = table.column_names[at]
    kinds: tuple[Callable[[], Any], ...] = (
        lambda: [None] * rows,
        lambda: [float(pick(rng, (np.nan, np.inf, 1e300, 0.5))) for _ in range(rows)],
        lambda: [{"a": i} for i in range(rows)],
        lambda: [[i] for i in range(rows)],
        lambda: [bytes([255, i % 256]) for i in range(rows)],
        lambda: [pick(rng, (2**62, -1, 0)) for _ in range(rows)],
        lambda: [pick(rng, [t for t in NASTY_TEXTS if "\ud800" not in t]) for _ in range(rows)],
        lambda: pa.array(range(rows), pa.timestamp("s")),
        lambda: [True] * rows,
    )
    match int(rng.integers(4)):
        case 0:
            table = table.drop_columns([name])
        case 1:
            table = table.rename_columns(
                [pick(rng, ("x", "text", "label", "", "<script>")) if c == name else c for c in table.column_names]
            )
        case _:
            table = table.set_column(at, name, pa.array(pick(rng, kinds)()))
    out = io.BytesIO()
    pq.write_table(table.slice(0, pick(rng, (rows, rows, rows, 0, 1))), out)
    return out.getvalue()


def damaged_text(data: bytes, rng: Rng) -> bytes:
    """Fields and lines of a table in text: swapped, doubled, emptied, quoted, in another encoding."""
    lines = data.split(b"\n")
    number = int(rng.integers(len(lines)))
    fields = lines[number].split(pick(rng, (b",", b"\t", b" ")))
    at = int(rng.integers(len(fields)))
    match int(rng.integers(8)):
        case 0 | 1:
            fields[at] = pick(rng, NASTY_TEXTS).encode("utf-8", "surrogatepass")
        case 2:
            del fields[at]
        case 3:
            fields[at] = b'"' + fields[at]
        case 4:
            return data.decode("utf-8", "replace").encode(
                pick(rng, ("utf-16", "utf-32", "cp1252", "utf-7", "utf-8-sig")), "replace"
            )
        case 5:
            del lines[number:]
        case 6:
            lines.insert(number, lines[0])
        case _:
            return data.replace(b"\n", pick(rng, (b"\r", b"\r\n", b"\xe2\x80\xa8", b"\x00\n", b"")))
    if number < len(lines):
        lines[number] = b",".join(fields)
    return b"\n".join(lines)


MEANING: dict[str, Callable[[bytes, Rng], bytes]] = {
    ".json": damaged_json,
    ".jsonl": damaged_json,
    ".npy": damaged_npy,
    ".npz": damaged_npz,
    ".safetensors": damaged_safetensors,
    ".parquet": damaged_parquet,
    ".csv": damaged_text,
    ".tsv": damaged_text,
    ".txt": damaged_text,
}
