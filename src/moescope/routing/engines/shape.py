"""The layers and slots of raw integers: what a file says, and what can be, an expert standing once in a token of a layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from moescope.errors import InputError
from moescope.routing.engines.build import Recorded
from moescope.routing.engines.model import EngineModel

_SURE = 9.0  # coincidences that a smaller k would have led one to expect, and none of which is there: chance below e^-9


def shaped(requests: Sequence[Recorded], model: EngineModel, path: str) -> list[Recorded]:
    """The requests with (T, L, k) ids, where some have (T, L * k).

    Raises:
        InputError: k is not given, and the ids do not tell it.
    """
    raw = [r for r in requests if r.ids.ndim == 2]
    if not raw:
        return list(requests)
    widths = {int(r.ids.shape[1]) for r in raw}
    if len(widths) > 1:
        raise InputError(f"{path}: its requests have {' and '.join(map(str, sorted(widths)))} experts a token: are all whole?")
    k = _slots(np.concatenate([r.ids for r in raw]), model, path)
    return [replace(r, ids=r.ids.reshape(len(r.ids), -1, k)) if r.ids.ndim == 2 else r for r in requests]


def _slots(rows: np.ndarray, model: EngineModel, path: str) -> int:
    width = int(rows.shape[1])
    if model.top_k is not None:
        if width % model.top_k:
            raise InputError(f"{path}: {width} experts a token are no whole number of layers of {model.top_k}", "top_k")
        return model.top_k
    if model.layers is not None and width % len(model.layers) == 0 and width // len(model.layers) <= model.n_experts:
        return width // len(model.layers)
    rows = rows[(rows != 0).any(1)]  # what was never written says nothing
    whole = [k for k in range(1, min(width, model.n_experts) + 1) if width % k == 0]
    free = [k for k in whole if not _repeats(rows.reshape(len(rows), -1, k))]
    if not free:
        raise InputError(f"{path}: holds no token with experts; record it again")
    best = free[-1]
    smaller = [k for k in free[:-1] if len(rows) * (width // best) * _pairs(best, k) / model.n_experts < _SURE]
    if smaller or (best == 1 and (rows == 0).all(0).any()):
        raise InputError(f"{path}: its {width} experts a token do not tell how many are of one layer; say so", "top_k")
    return best


def _repeats(ids: np.ndarray) -> bool:
    """Whether an expert stands twice in one token of one layer."""
    ordered = np.sort(ids, 2)
    return bool(((ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)).any())


def _pairs(best: int, k: int) -> float:
    """Pairs of slots that ``best`` takes for one layer's, and that would be of two were it ``k``."""
    return (best * (best - 1) - best * (k - 1)) / 2 if best % k == 0 else 0.0
