"""Routing recorded by the engines that serve models: vLLM's routed experts and SGLang's expert distribution recorder.

vLLM, started with ``--enable-return-routed-experts``, answers each choice with ``routed_experts``: an ``.npy`` file in
base64, integers (tokens - 1, layers, k) over prompt and generated tokens but the last. SGLang writes ``torch.save`` files,
which are pickles and are not read here; :data:`SGLANG_CONVERSION` turns one into ``.npz`` on the machine that wrote it.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moescope.errors import InputError
from moescope.files.parse import parse_npy, parse_npz, parse_safetensors
from moescope.files.remote import local
from moescope.files.text import read_bytes, read_text
from moescope.routing.check import check_ids
from moescope.routing.trace import RoutingTrace, TracedSequence, id_dtype
from moescope.tasks.sources import read_json

SGLANG_CONVERSION = (
    "import sys, numpy as np, torch; d = torch.load(sys.argv[1], map_location='cpu', weights_only=True); "
    "r = [x for x in d.get('records', []) if len(x.get('input_ids', []))]; c = np.concatenate; "
    "np.savez(sys.argv[2], **({'logical_count': d['logical_count'].numpy()} if 'logical_count' in d else {"
    "'topk_ids_of_layer': c([x['topk_ids_of_layer'].numpy() for x in r], 1), "
    "'input_ids': c([np.asarray(x['input_ids']) for x in r]), 'positions': c([np.asarray(x['positions']) for x in r]), "
    "'forward_mode': c([np.full(len(x['input_ids']), x['forward_mode']) for x in r]), "
    "'physical_to_logical_map': d['last_physical_to_logical_map'].numpy()}))"
)
"""Run as ``python -c "$CODE" recorder.pt out.npz`` where SGLang runs."""
_PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".bin")
_MOST = 2**16 - 1  # experts of a layer: a trace holds their numbers in 16 bits at most
_DECODE = 2  # SGLang's ForwardMode.DECODE


@dataclass(frozen=True)
class EngineModel:
    """What an engine's dump does not say about the model."""

    n_experts: int
    layers: tuple[int, ...] | None = None
    """true numbers of the mixture-of-experts layers; None: the dump's layers are all of them, counted from 0. If the dump
    has a row for dense layers too, these are picked from it."""
    name: str = "unknown"

    def __post_init__(self) -> None:
        if not 1 <= self.n_experts <= _MOST:
            raise InputError(f"{self.n_experts} experts in a layer cannot be; give their number, 1 to {_MOST}", "experts")

    def pick(self, ids: np.ndarray, axis: int, where: str) -> tuple[np.ndarray, tuple[int, ...]]:
        """The expert layers of an array whose ``axis`` counts layers, and their numbers."""
        found = ids.shape[axis]
        layers = self.layers if self.layers is not None else tuple(range(found))
        if len(layers) == found:
            return ids, layers
        if layers and found > max(layers):
            return np.take(ids, layers, axis), layers
        raise InputError(
            f"{where}: has {found} layers, but {len(layers)} layer numbers were given; name the layers with experts"
        )


def import_vllm(
    path: str | Path,
    model: EngineModel,
    *,
    prompt_tokens: dict[str, int] | None = None,
) -> RoutingTrace:
    """Read vLLM's routed experts.

    Args:
        path: a folder of ``.npy`` files, one per request; one ``.npy``, ``.npz`` or ``.safetensors`` file, whose arrays are
            requests; or ``.jsonl`` (packed or not), each line a response of the server (``choices[].routed_experts``, with
            ``usage.prompt_tokens``) or a plain object with ``id``, ``routed_experts`` (base64 or nested lists) and, where
            known, ``prompt_tokens`` (a number), ``category`` and ``group``.
        prompt_tokens: by request: tokens of its prompt, the rest being generated. Without it, and without usage in the
            file, all tokens count as the prompt's.

    Raises:
        InputError: names the file, the request, and for an id out of range its row and layer.
    """
    requests: list[tuple[TracedSequence, np.ndarray, int | None, tuple[int, ...]]] = []
    for name, ids, facts in _requests(local(path)):
        where = f"{path}, request {name}"
        if ids.ndim != 3 or ids.dtype.kind not in "iu":
            raise InputError(f"{where}: routed experts must be integers (tokens, layers, k), not {ids.dtype} {ids.shape}")
        ids, layers = model.pick(ids, 1, where)
        check_ids(ids, layers, (model.n_experts,) * len(layers), where)
        if requests and ids.shape[1:] != requests[0][1].shape[1:]:
            raise InputError(f"{where}: has layers x k = {ids.shape[1:]}, the first request has {requests[0][1].shape[1:]}")
        prompt = (prompt_tokens or {}).get(name, facts.get("prompt_tokens"))
        requests.append((TracedSequence(name, facts.get("category"), facts.get("group")), ids, prompt, layers))
    if not requests:
        raise InputError(f"{path}: holds no routed experts; was the server started with --enable-return-routed-experts?")
    dtype = id_dtype(model.n_experts)
    lengths = [len(ids) for _, ids, _, _ in requests]
    positions = [np.arange(n, dtype=np.int32) for n in lengths]
    layers = requests[0][3]
    return RoutingTrace(
        layers=layers,
        n_experts=(model.n_experts,) * len(layers),
        ids=np.concatenate([ids.astype(dtype) for _, ids, _, _ in requests]),
        weights=None,
        sequence=np.repeat(np.arange(len(requests), dtype=np.int32), lengths),
        position=np.concatenate(positions),
        generated=np.concatenate(
            [p >= (len(p) if prompt is None else prompt) for p, (_, _, prompt, _) in zip(positions, requests, strict=True)]
        ),
        tokens=None,
        sequences=tuple(sequence for sequence, _, _, _ in requests),
        meta={"model": model.name, "source": "vLLM routed experts", "scores": "none"},
    )


def import_sglang(path: str | Path, model: EngineModel) -> RoutingTrace:
    """Read a converted ``per_token`` dump of SGLang's expert distribution recorder (see :data:`SGLANG_CONVERSION`).

    The dump names no requests: they are told apart by their positions, so they must have been served one at a time.

    Raises:
        InputError: the file is a pickle or lacks an array; requests were interleaved or began in a cached prefix.
    """
    file = local(path)
    arrays = _arrays(file)
    ids, tokens, positions = (
        _need(arrays, name, file, axes) for name, axes in (("topk_ids_of_layer", 3), ("input_ids", 1), ("positions", 1))
    )
    modes = _need(arrays, "forward_mode", file, 1) if "forward_mode" in arrays else np.zeros(len(positions))
    ids, layers = model.pick(ids, 0, str(file))
    ids = ids.transpose(1, 0, 2)  # (T, L, K)
    if len(tokens) != len(ids) or len(positions) != len(ids) or len(modes) != len(ids):
        raise InputError(f"{file}: truncated: {len(ids)} rows of experts, {len(tokens)} tokens and {len(positions)} positions")
    for name, values in (("topk_ids_of_layer", ids), ("input_ids", tokens), ("positions", positions)):
        low = -(2**31) if values is ids else 0  # a slot without an expert is below nought
        if values.dtype.kind not in "iu" or (values.size and not (low <= values.min() and values.max() < 2**31)):
            raise InputError(f"{file}: {name} are not all integers from {low} to 2^31 - 1; record the file again")
    if "physical_to_logical_map" in arrays:
        table, _ = model.pick(_need(arrays, "physical_to_logical_map", file, 2), 0, str(file))
        ids = _logical(ids, table, str(file), layers)
    none = ids < 0
    dtype = id_dtype(model.n_experts)
    check_ids(np.where(none, 0, ids), layers, (model.n_experts,) * len(layers), str(file))
    starts = np.flatnonzero(np.r_[True, positions[1:] != positions[:-1] + 1]) if len(ids) else np.zeros(0, int)
    if len(starts) and (positions[starts] != 0).any():
        row = int(starts[positions[starts] != 0][0])
        raise InputError(
            f"{file}: row {row} is at position {int(positions[row])} of a request that does not precede it: serve one request"
            " at a time (--max-running-requests 1) without prefix cache (--disable-radix-cache)"
        )
    sequence = np.zeros(len(ids), np.int32)
    sequence[starts] = 1
    return RoutingTrace(
        layers=layers,
        n_experts=(model.n_experts,) * len(layers),
        ids=_drop_unused(np.where(none, np.iinfo(dtype).max, ids).astype(dtype)),
        weights=None,
        sequence=(np.cumsum(sequence) - 1).astype(np.int32),
        position=positions.astype(np.int32),
        generated=modes == _DECODE,
        tokens=tokens.astype(np.int32),
        sequences=tuple(TracedSequence(str(n)) for n in range(len(starts))),
        meta={"model": model.name, "source": "SGLang expert distribution recorder", "scores": "none"},
    )


def _drop_unused(ids: np.ndarray) -> np.ndarray:
    """Without the last slots that no token uses: SGLang's buffer is as wide as the widest model's top-k."""
    used = np.flatnonzero((ids != np.iinfo(ids.dtype).max).any((0, 1)))
    return ids[..., : int(used[-1]) + 1 if len(used) else 1]


def _logical(ids: np.ndarray, table: np.ndarray, where: str, layers: tuple[int, ...]) -> np.ndarray:
    if table.shape[0] != ids.shape[1] or table.dtype.kind not in "iu":
        raise InputError(f"{where}: physical_to_logical_map is {table.dtype} {table.shape}, but {ids.shape[1]} layers have ids")
    check_ids(np.where(ids < 0, 0, ids), layers, (table.shape[1],) * len(layers), where)
    logical = table[np.arange(ids.shape[1])[None, :, None], np.maximum(ids, 0)]
    return np.where(ids < 0, -1, logical)


def _need(arrays: dict[str, np.ndarray], name: str, file: Path, axes: int) -> np.ndarray:
    """The array of that name, which has so many axes."""
    if name not in arrays:
        raise InputError(f"{file}: has no array {name!r}, only {', '.join(sorted(arrays)) or 'none'}")
    found = arrays[name]
    if found.ndim != axes:
        raise InputError(f"{file}: {name} has shape {found.shape}, where {axes} axes are needed")
    return found


def _arrays(file: Path) -> dict[str, np.ndarray]:
    """The named arrays of a file; never a pickle."""
    if file.suffix in _PICKLES:
        raise InputError(
            f"{file}: is a pickle and is never read; convert it where it was written: python -c"
            " \"$(python -c 'from moescope.routing.importers import SGLANG_CONVERSION as c; print(c)')\" IN.pt OUT.npz"
        )
    if file.suffix not in (".npy", ".npz", ".safetensors"):
        raise InputError(f"{file}: not .npy, .npz or .safetensors")
    data = read_bytes(file)
    try:
        if file.suffix == ".npy":
            return {file.stem: parse_npy(data)}
        return parse_npz(data) if file.suffix == ".npz" else parse_safetensors(data)
    except ValueError as error:
        raise InputError(f"{file}: truncated or not such a file ({error})") from error


def _requests(path: Path) -> Iterator[tuple[str, np.ndarray, dict[str, Any]]]:
    """(id, routed experts, what else is known) of each request."""
    if path.is_dir():
        for file in sorted(path.glob("*.npy")):
            yield file.stem, _arrays(file)[file.stem], {}
    elif set(path.suffixes) & {".jsonl", ".ndjson", ".json"}:
        yield from _lines(path)
    else:
        for name, array in _arrays(path).items():
            yield name, array, {}


def _lines(path: Path) -> Iterator[tuple[str, np.ndarray, dict[str, Any]]]:
    rows = read_json(str(path), read_text(path))
    for row, (number, item) in enumerate(zip(rows.numbers, rows.records, strict=True)):
        try:
            choices = item.get("choices", [item])
            usage = item.get("usage") or {}
            facts = {"prompt_tokens": usage.get("prompt_tokens")} | {
                k: item[k] for k in ("prompt_tokens", "category", "group") if k in item
            }
            _check_facts(facts)
            for index, choice in enumerate(choices):
                name = str(item.get("id", number)) + (f"/{index}" if len(choices) > 1 else "")
                ids = _routed(choice.get("routed_experts"))
                fed = usage.get("prompt_tokens", 0) + usage.get("completion_tokens", 0) - 1
                if len(choices) == 1 and "completion_tokens" in usage and len(ids) != fed:
                    raise ValueError(f"truncated: {len(ids)} tokens have experts, but {fed} were fed to the model")
                yield name, ids, facts
        except (ValueError, TypeError, AttributeError, EOFError, binascii.Error) as error:
            raise InputError(f"{rows.where(row)}: {error}") from error


def _check_facts(facts: dict[str, Any]) -> None:
    for name, value in facts.items():
        fits = type(value) is int and value >= 0 if name == "prompt_tokens" else isinstance(value, str)
        if value is not None and not fits:
            needed = "a number of tokens" if name == "prompt_tokens" else "a text"
            raise ValueError(f"{name} is {str(value)[:40]!r}, not {needed}")


def _routed(value: Any) -> np.ndarray:
    if value is None:
        raise ValueError("has no routed_experts; was the server started with --enable-return-routed-experts?")
    if isinstance(value, str):
        return parse_npy(base64.b64decode(value, validate=True))
    return np.asarray(value)
