"""The tokens of two traces that are the same ones, and how far their experts agree."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from moescope.errors import InputError
from moescope.routing.overlap import overlap
from moescope.routing.trace import RoutingTrace


@dataclass(frozen=True, eq=False)
class Agreement:
    """Two traces token by token; T tokens of both, L layers."""

    rows: np.ndarray
    """(T,) their rows in A"""
    unit: np.ndarray
    """(T,) what is independent: the sequence's group, or the sequence"""
    shared: np.ndarray
    """(T, L) float32: share of A's experts of the token that B sent it to too"""
    same: np.ndarray
    """(T, L) bool: the very same set"""
    chance: np.ndarray
    """(L,) the mean of ``shared`` if each layer's choices were dealt out anew among the tokens"""
    sequences: pd.DataFrame
    """``sequence``, ``compared`` tokens, ``left_out`` (in one trace alone, or after the first token that differs), ``shared``,
    ``first`` position at which a set differs (absent where none does)"""

    @property
    def first(self) -> np.ndarray:
        """(T,) the first layer, as its index, in which a token's sets differ; L where none does."""
        return np.asarray(np.where(self.same.all(1), self.same.shape[1], (~self.same).argmax(1)))


def agreement_of(a: RoutingTrace, b: RoutingTrace, names: tuple[str, str]) -> Agreement:
    """Match the tokens of two traces by sequence and position, and compare their experts.

    Where both hold token ids, a sequence counts up to the first token that differs: what follows was routed for another text.

    Raises:
        InputError: they are of models of other layers or numbers of experts, or have no token in common.
    """
    for what in ("layers", "n_experts"):
        if getattr(a, what) != getattr(b, what):
            raise InputError(
                f"{names[1]}: its {what} are {list(getattr(b, what))[:8]}, those of {names[0]} {list(getattr(a, what))[:8]}; "
                "two recordings of one model agree in these"
            )
    rows_a, rows_b, summary = _matched(a, b)
    if not len(rows_a):
        raise InputError(f"{names[1]}: no token of it is in {names[0]}: sequences are matched by their id, tokens by position")
    shared = np.empty((len(rows_a), len(a.layers)), np.float32)
    same = np.empty(shared.shape, bool)
    chance = np.empty(len(a.layers))
    for layer, n in enumerate(a.n_experts):
        shared[:, layer], same[:, layer], chance[layer] = overlap(a.ids[rows_a, layer], b.ids[rows_b, layer], n)
    units = np.array([s.group or s.id for s in a.sequences])
    # a sequence's tokens stand together
    parts = np.split(np.arange(len(rows_a)), np.cumsum(summary["compared"])[:-1])
    summary["shared"] = [float(shared[part].mean()) for part in parts]
    changed = [part[~same[part].all(1)] for part in parts]
    summary["first"] = [int(a.position[rows_a[rows[0]]]) if len(rows) else None for rows in changed]
    return Agreement(rows_a, units[a.sequence[rows_a]], shared, same, chance, summary)


def _matched(a: RoutingTrace, b: RoutingTrace) -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
    """Rows of A, the rows of B that are the same tokens, and a line a sequence."""
    in_b = {s.id: n for n, s in enumerate(b.sequences)}
    ends_a, ends_b = (np.searchsorted(t.sequence, np.arange(len(t.sequences) + 1)) for t in (a, b))
    left, right, lines = [], [], []
    for n, sequence in enumerate(a.sequences):
        if sequence.id not in in_b:
            continue
        m = in_b[sequence.id]
        here, there = np.arange(ends_a[n], ends_a[n + 1]), np.arange(ends_b[m], ends_b[m + 1])
        _, i, j = np.intersect1d(a.position[here], b.position[there], return_indices=True)
        i, j = here[i], there[j]
        if a.tokens is not None and b.tokens is not None:
            other = np.flatnonzero(a.tokens[i] != b.tokens[j])
            if len(other):
                i, j = i[: other[0]], j[: other[0]]
        if len(i):
            left.append(i)
            right.append(j)
            lines.append({"sequence": sequence.id, "compared": len(i), "left_out": max(len(here), len(there)) - len(i)})
    joined = [np.concatenate(part) if part else np.zeros(0, np.int64) for part in (left, right)]
    return joined[0], joined[1], pd.DataFrame(lines)
