"""From recorded requests to a trace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moescope.errors import InputError
from moescope.routing.check import check_ids
from moescope.routing.engines.model import EngineModel
from moescope.routing.sense import check_sense, unwritten
from moescope.routing.trace import RoutingTrace, TracedSequence, id_dtype


@dataclass(frozen=True, eq=False)
class Recorded:
    """What an engine recorded of one sequence."""

    name: str
    ids: np.ndarray
    """(T, L, k) whole numbers; below 0, or the largest of an unsigned type: not recorded, or no expert"""
    prompt: int | None = None
    """of these tokens the prompt's; None: all"""
    category: str | None = None
    group: str | None = None
    start: int = 0
    """place of the first token in its sequence: what stands before was recorded with another one, or not at all"""


def build(requests: Sequence[Recorded], model: EngineModel, path: str, source: str) -> RoutingTrace:
    """One trace of all requests.

    Raises:
        InputError: names the file, the request, and its token and layer where one is wrong.
    """
    if not requests:
        raise InputError(f"{path}: holds no routed experts; was the server started with --enable-return-routed-experts?")
    dtype = id_dtype(model.n_experts)
    ids: list[np.ndarray] = []
    kept: list[np.ndarray] = []
    layers: tuple[int, ...] = ()
    for request in requests:
        where = f"{path}, request {request.name}"
        if request.ids.ndim != 3 or request.ids.dtype.kind not in "iu":
            raise InputError(
                f"{where}: routed experts must be integers (tokens, layers, k), not {request.ids.dtype} {request.ids.shape}"
            )
        picked, layers = model.pick(request.ids, 1, where)
        if ids and picked.shape[1:] != ids[0].shape[1:]:
            raise InputError(
                f"{where}: has layers x k = {picked.shape[1:]}, the first request has {ids[0].shape[1:]}; "
                "import the requests of each model by themselves"
            )
        none = unwritten(picked, model.n_experts)
        check_ids(np.where(none, 0, picked), layers, (model.n_experts,) * len(layers), where)
        ids.append(np.where(none, np.iinfo(dtype).max, picked).astype(dtype))
        kept.append(~np.asarray(none.all((1, 2))))  # a token without any expert was not recorded
    lengths = [int(rows.sum()) for rows in kept]
    positions = [np.arange(len(rows), dtype=np.int32) for rows in kept]
    made = [p >= (len(p) if r.prompt is None else r.prompt) for p, r in zip(positions, requests, strict=True)]
    trace = RoutingTrace(
        layers=layers,
        n_experts=(model.n_experts,) * len(layers),
        ids=np.concatenate([part[rows] for part, rows in zip(ids, kept, strict=True)]),
        weights=None,
        sequence=np.repeat(np.arange(len(requests), dtype=np.int32), lengths),
        position=np.concatenate([(p + r.start)[rows] for p, r, rows in zip(positions, requests, kept, strict=True)]).astype(
            np.int32
        ),
        generated=np.concatenate([part[rows] for part, rows in zip(made, kept, strict=True)]),
        tokens=None,
        sequences=tuple(TracedSequence(r.name, r.category, r.group) for r in requests),
        meta={"model": model.name, "source": source, "scores": "none"},
    )
    check_sense(trace, path, recorded=np.concatenate(kept))
    return trace
