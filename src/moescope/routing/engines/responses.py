"""Answers of a server, a JSON object each: which experts it says that the tokens were sent to.

vLLM (``--enable-return-routed-experts``) writes an ``.npy`` file in base64, nested lists, or an object of encoding, dtype,
shape and data; either a choice has them of prompt and generated tokens, or the response has the prompt's
(``prompt_routed_experts``) and each choice its own. SGLang writes raw int32 in base64, ``meta_info.routed_experts`` of its own
API and ``sglext`` or ``sgl_ext`` of OpenAI's, whose shape (tokens, layers, k) the answer does not say. The last token generated
is never fed back, so that it has no experts.
"""

from __future__ import annotations

import base64
import binascii
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from moescope.errors import InputError, Note
from moescope.files.parse import parse_npy
from moescope.files.text import read_text
from moescope.routing.engines.build import Recorded
from moescope.routing.engines.model import EngineModel
from moescope.routing.engines.shape import shaped
from moescope.tasks.sources import read_json

_EXTENSIONS = ("sglext", "sgl_ext", "meta_info")
_DTYPES = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64")


def requests(path: Path, model: EngineModel, prompt_tokens: dict[str, int]) -> list[Recorded]:
    """Every sequence of a file of answers. Those of one request (``n`` > 1) have their prompt's tokens once, in the first.

    Raises:
        InputError: names the line, and what is missing, damaged or does not fit the usage that the answer states.
    """
    rows = read_json(str(path), read_text(path))
    found: list[Recorded] = []
    for row, (number, item) in enumerate(zip(rows.numbers, rows.records, strict=True)):
        try:
            found += _sequences(item, str(number), prompt_tokens)
        except (ValueError, TypeError, AttributeError, EOFError, binascii.Error) as error:
            raise InputError(f"{rows.where(row)}: {error}") from error
    return shaped(found, model, str(path))


def _sequences(item: dict[str, Any], number: str, prompt_tokens: dict[str, int]) -> list[Recorded]:
    meta = _object(item, "meta_info")
    usage = _object(item, "usage") or meta
    name = str(item.get("id", meta.get("id", number)))
    facts: dict[str, Any] = {key: item[key] for key in ("category", "group") if key in item}
    said = prompt_tokens.get(name, item.get("prompt_tokens", usage.get("prompt_tokens")))
    completion, start = usage.get("completion_tokens"), _first(item, meta, "routed_experts_start_len") or 0
    _check_facts({"prompt_tokens": said, "completion_tokens": completion, "routed_experts_start_len": start, **facts})
    choices = item.get("choices") or [item]
    alone = len(choices) == 1
    if not alone:
        facts.setdefault("group", name)  # answers to one prompt: never on both sides of a split
    fed = None if said is None or completion is None else said - start + completion - len(choices)
    prompt = None if said is None else max(0, said - start)
    before = None if item.get("prompt_routed_experts") is None else _rows(item["prompt_routed_experts"], prompt)
    if before is not None:
        if prompt not in (None, len(before)):
            raise ValueError(f"truncated: {len(before)} prompt tokens have experts, but {prompt} were fed to the model")
        prompt = len(before)
    found = []
    for index, choice in enumerate(choices):
        ids = _rows(_routed(choice, item, alone=alone, needed=before is None), fed if alone else None)
        if before is not None and not (len(ids) >= len(before) and np.array_equal(ids[: len(before)], before)):
            ids = _joined(before, ids)
        later = index > 0 and prompt is not None  # the prompt's tokens stand in the first choice
        found.append(
            Recorded(
                name if alone else f"{name}/{index}",
                ids[prompt:] if later else ids,
                0 if later else prompt,
                start=start + (prompt or 0) * later,
                **facts,
            )
        )
    recorded = sum(len(r.ids) for r in found)
    if fed is not None and recorded == fed + len(found) and all(not (r.ids[-1] > 0).any() for r in found if len(r.ids)):
        warnings.warn(Note(f"request {name}: a row of noughts after its last token is padding, and left out"), stacklevel=4)
        return [replace(r, ids=r.ids[:-1]) for r in found]
    if fed is not None and recorded != fed:
        kind = "truncated: " if recorded < fed else ""
        raise ValueError(f"{kind}{recorded} tokens have experts, but {fed} were fed to the model")
    return found


def _joined(before: np.ndarray, own: np.ndarray) -> np.ndarray:
    if not len(own):
        return before
    if before.shape[1:] != own.shape[1:]:
        raise ValueError(f"the prompt's experts are {before.shape[1:]} a token, the choice's {own.shape[1:]}")
    return np.concatenate([before, own])


def _object(item: dict[str, Any], key: str) -> dict[str, Any]:
    found = item.get(key)
    if found is not None and not isinstance(found, dict):
        raise ValueError(f"{key} is a {type(found).__name__}, not an object")
    return found or {}


def _first(*sources: Any) -> Any:
    *objects, key = sources
    return next((o[key] for o in objects if o.get(key) is not None), None)


def _routed(choice: dict[str, Any], item: dict[str, Any], *, alone: bool, needed: bool) -> Any:
    """What a choice, or the whole answer where it has but one, says of its experts."""
    for source in (choice, item) if alone else (choice,):
        found = _first(source, *(_object(source, key) for key in _EXTENSIONS), "routed_experts")
        if found is not None:
            return found
    if needed:
        raise ValueError("has no routed_experts; was the server started with --enable-return-routed-experts?")
    return []


def _check_facts(facts: dict[str, Any]) -> None:
    for name, value in facts.items():
        text = name in ("category", "group")
        fits = isinstance(value, str) if text else type(value) is int and 0 <= value < 2**31
        if value is not None and not fits:
            raise ValueError(f"{name} is {str(value)[:40]!r}, not {'a text' if text else 'a number of tokens'}")


def _rows(value: Any, tokens: int | None) -> np.ndarray:
    """(T, L, k), or (T, L * k) of raw integers, of which ``tokens`` says how many there are."""
    if isinstance(value, dict):
        return _described(value)
    if isinstance(value, str):
        data = base64.b64decode(value, validate=True)
        if data.startswith(b"\x93NUMPY"):
            return _checked(parse_npy(data))
        if not tokens:
            raise ValueError(
                "raw routed_experts need usage, prompt_tokens and completion_tokens of one choice, for their shape"
            )
        if len(data) % (4 * tokens):
            raise ValueError(f"truncated: {len(data)} bytes of routed_experts are no int32 of {tokens} tokens")
        return np.frombuffer(data, "<i4").reshape(tokens, -1)
    found = np.asarray(value)
    return found.reshape(0, 0, 0).astype(np.int64) if not found.size else _checked(found)


def _checked(found: np.ndarray) -> np.ndarray:
    if found.ndim != 3 or found.dtype.kind not in "iu":
        raise ValueError(f"routed experts must be integers (tokens, layers, k), not {found.dtype} {found.shape}")
    return found


def _described(value: dict[str, Any]) -> np.ndarray:
    encoding, dtype, shape = value.get("encoding"), value.get("dtype"), value.get("shape")
    if encoding != "base64" or dtype not in _DTYPES or not isinstance(value.get("data"), str):
        raise ValueError(f"routed_experts in {str(encoding)[:20]!r} of {str(dtype)[:20]!r}; base64 of integers is read")
    if not isinstance(shape, list) or len(shape) != 3 or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"shape {str(shape)[:40]} of routed_experts is not [tokens, layers, k]")
    data = base64.b64decode(value["data"], validate=True)
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size != len(data):
        raise ValueError(f"truncated: shape {shape} of {dtype} takes {size} bytes, and data has {len(data)}")
    return np.frombuffer(data, np.dtype(dtype).newbyteorder("<")).reshape(shape)
