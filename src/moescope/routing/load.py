"""How often each expert was chosen, where an engine counted no more than that: no tokens, no requests."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from moescope.errors import InputError
from moescope.files.checkpoint import check_array, load_arrays, save_arrays
from moescope.files.folder import check_place, settled

FILE = "load.safetensors"
"""The one file of a folder that holds a load."""
_FORMAT = "moescope routing load"
_DRAWS = 200


@dataclass(frozen=True, eq=False)
class RoutingLoad:
    """The choices of each expert, by step of the engine (a forward pass, or as many as it counted together)."""

    layers: tuple[int, ...]
    """true numbers of the layers with experts, ascending (L)"""
    n_experts: int
    """of each of them (E)"""
    counts: np.ndarray
    """int64 (steps, L, E): choices of each expert; a token that is sent to k experts counts k times in a layer"""
    meta: dict[str, Any] = field(default_factory=dict)
    """where it comes from: model, source"""

    def table(self, seed: int = 0) -> pd.DataFrame:
        """A row a layer: ``layer``, ``choices``, ``busiest`` expert, its load over a fair share (``most``), what the busiest
        has by an even router of as many choices (``even_most``, mean of 200 draws), ``effective`` share of the experts
        (exponential of the load's entropy over E), the same of an even router (``even_effective``), the load's ``gini`` with
        ``even_gini`` and what 95 % of the draws lie between (``even_gini_low``, ``even_gini_high``), and ``idle`` experts.
        """
        rng, total = np.random.default_rng(seed), self.counts.sum(0)
        rows = []
        for layer, load in zip(self.layers, total, strict=True):
            choices = int(load.sum())
            even = rng.multinomial(choices, np.full(self.n_experts, 1 / self.n_experts), _DRAWS)
            rows.append(
                {
                    "layer": layer,
                    "choices": choices,
                    "busiest": int(load.argmax()),
                    "most": float(load.max() / max(choices, 1) * self.n_experts),
                    "even_most": float(even.max(1).mean() / max(choices, 1) * self.n_experts),
                    "effective": float(effective_share(shares(load))),
                    "even_effective": float(effective_share(shares(even)).mean()),
                    "gini": float(gini(shares(load))),
                    "even_gini": float(gini(shares(even)).mean()),
                    "even_gini_low": float(np.quantile(gini(shares(even)), 0.025)),
                    "even_gini_high": float(np.quantile(gini(shares(even)), 0.975)),
                    "idle": int((load == 0).sum()),
                }
            )
        return pd.DataFrame(rows)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write :data:`FILE` into ``folder``, whole or not at all.

        Raises:
            InputError: the folder cannot be written, or holds a load that may not be replaced.
        """
        place = check_load_target(folder, overwrite=overwrite)
        place.mkdir(parents=True, exist_ok=True)
        meta = {"format": _FORMAT, "layers": list(self.layers), "n_experts": self.n_experts, "meta": self.meta}
        save_arrays(place / FILE, {"counts": self.counts}, meta)
        return place


def check_load_target(folder: str | Path, *, overwrite: bool) -> Path:
    """The folder to write a load to, refused before any work if none could be written.

    Raises:
        InputError: it cannot be made, or holds a load while ``overwrite`` is off.
    """
    place = settled(folder)
    check_place(place)
    if (place / FILE).exists() and not overwrite:
        raise InputError(f"{place}: a load is there already; name another folder, or replace it by overwrite=True", "out")
    return place


def holds_load(folder: Path) -> bool:
    """Whether a load, and no trace of tokens, stands in ``folder``."""
    return (folder / FILE).is_file()


def load_load(folder: str | Path) -> RoutingLoad:
    """Read what :meth:`RoutingLoad.save` wrote.

    Raises:
        InputError: there is none, or it is damaged.
    """
    path = Path(folder) / FILE
    arrays, meta = load_arrays(path, _FORMAT)
    try:
        layers, n_experts = tuple(int(n) for n in meta["layers"]), int(meta["n_experts"])
        counts, about = arrays["counts"], dict(meta["meta"])
        check_array("counts", counts, np.int64, (counts.shape[0], len(layers), n_experts))
        if n_experts < 1 or (counts < 0).any() or counts.sum(dtype=float) >= 2**53 or list(layers) != sorted(set(layers)):
            raise ValueError("counts that cannot be, no experts, or layers that do not rise")
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise InputError(f"{path}: damaged ({error}); import it again") from error
    return RoutingLoad(layers, n_experts, counts, about)


def shares(counts: np.ndarray) -> np.ndarray:
    """Counts (..., E) over their sum; of none nought."""
    return np.asarray(counts / np.maximum(counts.sum(-1, keepdims=True), 1))


def gini(shares: np.ndarray) -> np.ndarray:
    """(...) of shares (..., E): 0 where the load is even, (E - 1) / E where one expert has all of it (Gini 1912)."""
    n = shares.shape[-1]
    ranked = np.sort(shares, axis=-1)
    total = np.maximum(ranked.sum(-1), 1e-300)
    return np.asarray(((2 * np.arange(1, n + 1) - n - 1) * ranked).sum(-1) / (n * total))


def dropped(counts: np.ndarray, factor: float) -> np.ndarray:
    """(...) choices of a batch, counts (..., E), beyond its experts' capacity: ``factor`` fair shares each, rounded up."""
    room = np.ceil(factor * counts.sum(-1, keepdims=True) / counts.shape[-1] - 1e-9)
    return np.asarray(np.maximum(counts - room, 0).sum(-1))


def entropy(shares: np.ndarray) -> np.ndarray:
    """(...) in nats, of shares (..., E)."""
    return np.asarray(-(shares * np.log(np.maximum(shares, 1e-300))).sum(-1))


def effective_share(shares: np.ndarray) -> np.ndarray:
    """(...) the exponential of the entropy of shares (..., E) over E: 1 where the load is even."""
    return np.asarray(np.exp(entropy(shares)) / shares.shape[-1])
