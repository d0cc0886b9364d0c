"""Seeded damage to the bytes of a file, and to the meaning of JSON."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

Rng = np.random.Generator

_DEEP = 100_000
# what JSON's writer would not write: put into the text where its name stands
_RAW = {
    "@nan@": "NaN",
    "@infinity@": "-Infinity",
    "@overflow@": "1e999",
    "@digits@": "9" * 5000,
    "@deep list@": "[" * _DEEP + "]" * _DEEP,
    "@deep object@": '{"a":' * _DEEP + "1" + "}" * _DEEP,
    "@twice@": '{"a": 1, "a": 2}',
    "@open@": '"',
}
NASTY_TEXTS = (
    "", " ", "7", "-1", "nan", "../../victim.txt", "/etc/passwd", "C:\\x", "\x1b[2J\x07\x00", "<script>alert(1)</script>",
    "\ud800", "$\\frac{1}{$", "$100 to $500", "{{7*7}}", "{% for x in range(10**9) %}{% endfor %}",
    "a\u202eb", "é" * 300, "x" * 20_000,
)  # fmt: skip
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3.5, 2**31, 2**63, -(10**30), 10**30, 1e308, 10**5, 3 * 10**7, [], {}, [None], [[]],
    {"a": None}, [1, "a", None], *_RAW, *NASTY_TEXTS,
)  # fmt: skip
_BYTES = (
    b"\x00",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\xc3(",
    b"\x1b]0;x\x07",
    b'"',
    b"\n",
    b"\r",
    b",",
    b"\t",
    b"\xef\xbb\xbf",
    b"\x80\x04",
)


def pick(rng: Rng, options: Any) -> Any:
    return options[int(rng.integers(len(options)))]


# -- bytes ---------------------------------------------------------------------------------------------------------------------


def damaged_bytes(data: bytes, rng: Rng) -> bytes:
    """Cut short, bits flipped, a piece taken out, doubled, zeroed or replaced by noise, foreign bytes put in."""
    if not data:
        return pick(rng, _BYTES)
    at, size = int(rng.integers(len(data))), int(rng.integers(1, 64))
    match int(rng.integers(9)):
        case 0:
            return data[:at]
        case 1 | 2:
            out = bytearray(data)
            for place in rng.integers(len(data), size=int(rng.integers(1, 9))):
                out[place] ^= 1 << int(rng.integers(8))
            return bytes(out)
        case 3:
            return data[:at] + data[at + size :]
        case 4:
            return data[: at + size] + data[at:]
        case 5:
            return data[:at] + bytes(size) + data[at + size :]
        case 6:
            return data[:at] + rng.bytes(size) + data[at + size :]
        case 7:
            return data[:at] + pick(rng, _BYTES) + data[at:]
        case _:
            return pick(rng, (b"", bytes(size), rng.bytes(200), data + data, data + b"\x00"))


# -- JSON ----------------------------------------------------------------------------------------------------------------------


def _places(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """(container, key) of every node below ``value``."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        found.append((value, key))
        _places(value[key], found)
    return found


def _retyped(value: Any, rng: Rng) -> Any:
    """The same in another type, as another program might have written it, or nearly the same."""
    if isinstance(value, bool) or value is None:
        return pick(rng, (str(value), int(bool(value)), [value]))
    if isinstance(value, int | float):
        return pick(rng, (str(value), -value, value + 1, value * 10**6, [value], {"value": value}, float(value) + 0.5))
    if isinstance(value, str):
        return pick(rng, (value.encode().hex(), value + "\x00", value[::-1], [value], len(value), "../" + value, value * 2))
    return pick(rng, (str(value)[:1000], list(value), len(value), [value], {str(i): v for i, v in enumerate(value)}))


def damaged_value(value: Any, rng: Rng) -> Any:
    """One node of a JSON value replaced, retyped, doubled, renamed or taken away; ``value`` itself is changed."""
    places = _places(value, [])
    if not places or rng.random() < 0.03:
        return pick(rng, _VALUES)
    holder, key = pick(rng, places)
    match int(rng.integers(8)):
        case 0 | 1 | 2:
            holder[key] = pick(rng, _VALUES)
        case 3 | 4:
            holder[key] = _retyped(holder[key], rng)
        case 5:
            del holder[key]
        case 6:
            other, there = pick(rng, places)
            if not isinstance(holder[key], dict | list) and not isinstance(other[there], dict | list):
                holder[key], other[there] = other[there], holder[key]
            else:
                holder[key] = pick(rng, _VALUES)
        case _:
            if isinstance(holder, dict):
                holder[pick(rng, (*NASTY_TEXTS, str(key) + "s"))] = holder.pop(key)
            else:
                holder.append(holder[key])
    return value


def as_json(value: Any) -> bytes:
    text = json.dumps(value)
    for name, raw in _RAW.items():
        text = text.replace(json.dumps(name), raw)
    return text.encode()


def damaged_json(data: bytes, rng: Rng) -> bytes:
    """A JSON document, or one line of several, damaged in meaning."""
    lines = data.split(b"\n")
    try:
        return as_json(damaged_value(json.loads(data), rng))
    except ValueError:
        number = int(rng.integers(len(lines)))
        try:
            lines[number] = as_json(damaged_value(json.loads(lines[number]), rng))
        except ValueError:
            return damaged_bytes(data, rng)
        return b"\n".join(lines)
