"""SGLang's expert distribution recorder, whose dumps are ``torch.save`` files: pickles, which are not read here.

:data:`SGLANG_CONVERSION` turns one into ``.npz`` on the machine that wrote it. Mode ``per_token`` names each token's experts;
``stat`` and ``per_pass``, and the CSV of older releases, hold loads alone.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from moescope.errors import InputError
from moescope.routing.check import check_ids
from moescope.routing.engines.arrays import need
from moescope.routing.engines.model import EngineModel
from moescope.routing.load import RoutingLoad
from moescope.routing.sense import check_sense
from moescope.routing.trace import RoutingTrace, TracedSequence, id_dtype

SGLANG_CONVERSION = (
    "import sys, numpy as np, torch; d = torch.load(sys.argv[1], map_location='cpu', weights_only=True); "
    "r = [x for x in d.get('records', []) if len(x.get('input_ids', []))]; c = np.concatenate; "
    "np.savez(sys.argv[2], **({'logical_count': d['logical_count'].numpy()} if 'logical_count' in d else {"
    "'global_physical_count': np.stack([x['global_physical_count'].numpy() for x in d['records']]), "
    "'physical_to_logical_map': d['last_physical_to_logical_map'].numpy()} if not r else {"
    "'topk_ids_of_layer': c([x['topk_ids_of_layer'].numpy() for x in r], 1), "
    "'input_ids': c([np.asarray(x['input_ids']) for x in r]), 'positions': c([np.asarray(x['positions']) for x in r]), "
    "'forward_mode': c([np.full(len(x['input_ids']), x['forward_mode']) for x in r]), "
    "'physical_to_logical_map': d['last_physical_to_logical_map'].numpy()}))"
)
"""Run as ``python -c "$CODE" recorder.pt out.npz`` where SGLang runs."""
LOGICAL, PHYSICAL = "logical_count", "global_physical_count"
"""Arrays of a dump in mode ``stat``, and of one in mode ``per_pass``."""
_DECODE = 2  # SGLang's ForwardMode.DECODE


def tokens_of(file: Path, arrays: dict[str, np.ndarray], model: EngineModel) -> RoutingTrace:
    """A converted ``per_token`` dump as a trace.

    The dump names no requests: they are told apart by their positions, so they must have been served one at a time.

    Raises:
        InputError: the file lacks an array; requests were interleaved or began in a cached prefix.
    """
    ids, tokens, positions = (
        need(arrays, name, file, axes) for name, axes in (("topk_ids_of_layer", 3), ("input_ids", 1), ("positions", 1))
    )
    modes = need(arrays, "forward_mode", file, 1) if "forward_mode" in arrays else np.zeros(len(positions))
    ids, layers = model.pick(ids, 0, str(file))
    ids = ids.transpose(1, 0, 2)  # (T, L, K)
    if len(tokens) != len(ids) or len(positions) != len(ids) or len(modes) != len(ids):
        raise InputError(f"{file}: truncated: {len(ids)} rows of experts, {len(tokens)} tokens and {len(positions)} positions")
    for name, values in (("topk_ids_of_layer", ids), ("input_ids", tokens), ("positions", positions)):
        low = -(2**31) if values is ids else 0  # a slot without an expert is below nought
        if values.dtype.kind not in "iu" or (values.size and not (low <= values.min() and values.max() < 2**31)):
            raise InputError(f"{file}: {name} are not all integers from {low} to 2^31 - 1; record the file again")
    if "physical_to_logical_map" in arrays:
        table, _ = model.pick(need(arrays, "physical_to_logical_map", file, 2), 0, str(file))
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
    trace = RoutingTrace(
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
    check_sense(trace, str(file))
    return trace


def load_of(file: Path, arrays: dict[str, np.ndarray], model: EngineModel) -> RoutingLoad:
    """A converted dump of counts as a load: ``logical_count`` (steps, layers, experts), or ``global_physical_count`` with the
    map from physical experts to logical ones.

    Raises:
        InputError: the arrays do not fit each other or the number of experts, or count below 0.
    """
    name = LOGICAL if LOGICAL in arrays else PHYSICAL
    counts = need(arrays, name, file, 3)
    if counts.dtype.kind not in "iuf" or not np.isfinite(counts).all() or (counts < 0).any() or (counts % 1 != 0).any():
        raise InputError(f"{file}: {name} are not all whole numbers from 0; record the file again")
    counts, layers = model.pick(counts.astype(np.int64), 1, str(file))
    if name == PHYSICAL:
        table, _ = model.pick(need(arrays, "physical_to_logical_map", file, 2), 0, str(file))
        if table.shape != counts.shape[1:] or table.dtype.kind not in "iu":
            raise InputError(f"{file}: physical_to_logical_map is {table.dtype} {table.shape}, and counts are {counts.shape}")
        check_ids(table[None].transpose(0, 1, 2), layers, (model.n_experts,) * len(layers), f"{file}: physical_to_logical_map")
        logical = np.zeros((*counts.shape[:2], model.n_experts), np.int64)
        for layer in range(counts.shape[1]):
            np.add.at(logical[:, layer].T, table[layer], counts[:, layer].T)
        counts = logical
    if counts.shape[2] != model.n_experts:
        raise InputError(f"{file}: {name} has {counts.shape[2]} experts a layer, not {model.n_experts}", "experts")
    return RoutingLoad(layers, model.n_experts, counts, {"model": model.name, "source": f"SGLang recorder, {name}"})


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
