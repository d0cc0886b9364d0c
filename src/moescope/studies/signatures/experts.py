"""Which layers and experts tell the categories apart, with family-wise control, and what each expert is chosen for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from moescope.errors import InputError
from moescope.routing.separation import MEASURED, Cells, estimates, pairs_between, separated, without_each
from moescope.routing.signatures import Signatures
from moescope.routing.similarity import similarity
from moescope.routing.subject import Subject
from moescope.routing.trace import RoutingTrace
from moescope.stats import permutation_p, wilson

Decode = Callable[[list[int]], str]
MIN_TOKEN = 5  # a token seen less often has no rate worth a line
WINDOW = 6  # tokens of context on either side


def variance_explained(values: np.ndarray, labels: np.ndarray, cells: Cells | None = None) -> np.ndarray:
    """Eta squared: the share of each column's variance over prompts that lies between the categories.

    Args:
        values: (N, D).
        labels: (N,) codes, or (P, N) for P labelings at once; of cells, (G,) or (P, G), where those are given.
        cells: each counts alike, however many prompts it holds.

    Returns:
        (D,) or (P, D) in [0, 1]; 0 for a constant column.
    """
    labels2 = np.atleast_2d(labels)
    of = np.arange(len(values)) if cells is None else cells.of
    weight = (1 / np.bincount(of)[of])[:, None]  # each cell weighs 1
    centred = values - (weight * values).sum(0) / weight.sum()
    total = (weight * centred**2).sum(0)
    sums = np.zeros((labels2.shape[1], values.shape[1]))
    np.add.at(sums, of, weight * centred)
    out = np.empty((len(labels2), values.shape[1]))
    codes = np.unique(labels2)
    for i, row in enumerate(labels2):
        onehot = (row == codes[:, None]).astype(float)  # (C, G)
        between = ((onehot @ sums) ** 2 / onehot.sum(1, keepdims=True)).sum(0)
        out[i] = np.divide(between, total, out=np.zeros(len(total)), where=total > 1e-20)
    return out if np.ndim(labels) == 2 else out[0]


def real_experts(signatures: Signatures) -> np.ndarray:
    """Columns of ``flat()`` that stand for an expert, rather than fill a layer that has fewer."""
    width = signatures.values.shape[2]
    return np.concatenate([i * width + np.arange(n) for i, n in enumerate(signatures.n_experts)])


def expert_table(signatures: Signatures, subject: Subject, labels: np.ndarray) -> tuple[pd.DataFrame, np.ndarray]:
    """Table ``experts``.

    ``p_family`` is that of the maximum over all experts of all layers (Westfall & Young 1993).

    Args:
        labels: (P, G) permuted categories of the cells.

    Returns:
        the table, and (P,) the mean over experts of the permuted eta squared.
    """
    flat = signatures.flat()
    y, categories, cells = subject.y, subject.categories, subject.cells()
    width, real = signatures.values.shape[2], real_experts(signatures)
    null = variance_explained(flat[:, real], labels, cells)
    eta = variance_explained(flat[:, real], cells.y, cells)
    p = permutation_p(eta, null.max(1))
    means = np.stack([flat[y == c].mean(0) for c in range(len(categories))])[:, real]  # (C, D)
    overall = flat.mean(0)[real]
    lift = np.divide(means, overall, out=np.ones(means.shape), where=overall > 0)
    best = lift.argmax(0)
    rows = [
        {
            "layer": signatures.layers[at // width],
            "expert": int(at % width),
            "share": float(overall[i]),
            "eta2": float(eta[i]),
            "p_family": float(p[i]),
            "category": categories[best[i]],
            "lift": float(lift[best[i], i]),
            **{f"share_{c}": float(means[n, i]) for n, c in enumerate(categories)},
        }
        for i, at in enumerate(real)
    ]
    return pd.DataFrame(rows), null.mean(1)


def layer_table(signatures: Signatures, cells: Cells, labels: np.ndarray) -> tuple[pd.DataFrame, np.ndarray]:
    """Table ``routing_layers``; ``p_family`` is of the d that is largest over all layers when cells are permuted.

    Args:
        labels: (P, G) permuted categories of the cells.

    Returns:
        the table, and (L, U) d when each block of cells is left out in turn.
    """
    pairs = [pairs_between(similarity(signatures.flat(layer)), cells) for layer in signatures.layers]
    found = [estimates(p, cells) for p in pairs]
    null = np.array([separated(p, labels)["d"] for p in pairs])  # (L, P)
    d = np.array([f["d"].value for f in found])
    known = not (np.isnan(null).any() or np.isnan(d).any())
    p = permutation_p(d, null.max(0)) if known else np.full(len(d), np.nan)
    rows = [
        {
            "layer": layer,
            **{name: f[name].value for name in MEASURED},
            "d_low": f["d"].low,
            "d_high": f["d"].high,
            "null_d_95": float(np.quantile(null[i], 0.95)),
            "p_family": float(p[i]),
        }
        for i, (layer, f) in enumerate(zip(signatures.layers, found, strict=True))
    ]
    return pd.DataFrame(rows), np.array([without_each(p, cells)["d"] for p in pairs])


@dataclass(frozen=True)
class ExpertCard:
    """What one expert is chosen for: its rows of ``expert_tokens``, ``expert_categories`` and ``expert_contexts``."""

    layer: int
    expert: int
    rate: float
    tokens: pd.DataFrame
    categories: pd.DataFrame
    contexts: pd.DataFrame


def expert_card(
    trace: RoutingTrace, layer: int, expert: int, *, decode: Decode | None = None, top: int = 8, seed: int = 0
) -> ExpertCard:
    """Describe one expert from a trace.

    Args:
        layer: its true layer number.
        decode: token ids to text; without it tokens stay numbers.
        top: tokens and contexts shown.

    Raises:
        InputError: the layer or expert is not in the trace.
    """
    if layer not in trace.layers:
        raise InputError(f"layer {layer} is not traced; the layers are {', '.join(map(str, trace.layers))}", "experts")
    at = trace.layers.index(layer)
    if not 0 <= expert < trace.n_experts[at]:
        raise InputError(f"layer {layer} has experts 0 to {trace.n_experts[at] - 1}, not {expert}", "experts")
    hit = trace.ids[:, at] == expert  # (T, K)
    chosen = hit.any(1)
    rate = float(chosen.mean())
    return ExpertCard(
        layer,
        expert,
        rate,
        _tokens(trace, chosen, rate, decode, top),
        _categories(trace, chosen, rate, seed),
        _contexts(trace, at, hit, decode, top),
    )


def _tokens(trace: RoutingTrace, chosen: np.ndarray, rate: float, decode: Decode | None, top: int) -> pd.DataFrame:
    columns = ["token", "n", "rate", "lift", "low", "high"]
    if trace.tokens is None or rate == 0:
        return pd.DataFrame(columns=columns)
    names, code, n = np.unique(trace.tokens, return_inverse=True, return_counts=True)
    hits = np.bincount(code, weights=chosen)
    rows = []
    for i in np.flatnonzero(n >= MIN_TOKEN):
        low, high = wilson(hits[i], int(n[i]))
        text = decode([int(names[i])]) if decode else str(names[i])
        rows.append((text, int(n[i]), hits[i] / n[i], hits[i] / n[i] / rate, low / rate, high / rate))
    # By the lower bound: five tokens out of five say less than ninety out of a hundred.
    frame = pd.DataFrame(rows, columns=columns).sort_values("low", ascending=False, kind="stable")
    return frame[frame["lift"] > 1].head(top).reset_index(drop=True)


def _categories(trace: RoutingTrace, chosen: np.ndarray, rate: float, seed: int) -> pd.DataFrame:
    columns = ["category", "n", "rate", "lift", "low", "high"]
    category = np.array([s.category or "" for s in trace.sequences])
    hits = np.bincount(trace.sequence, weights=chosen, minlength=len(category))
    size = trace.lengths
    rng = np.random.default_rng(seed)
    rows = []
    for name in dict.fromkeys(category.tolist()):
        members = np.flatnonzero((category == name) & (size > 0))
        if not name or not len(members) or rate == 0:
            continue
        here = hits[members].sum() / size[members].sum()
        pick = rng.integers(len(members), size=(1000, len(members)))
        drawn = hits[members][pick].sum(1) / size[members][pick].sum(1) / rate
        low, high = np.quantile(drawn, [0.025, 0.975])
        rows.append((name, len(members), here, here / rate, low, high))
    return pd.DataFrame(rows, columns=columns)


def _contexts(trace: RoutingTrace, at: int, hit: np.ndarray, decode: Decode | None, top: int) -> pd.DataFrame:
    rows: list[tuple[float, str, str]] = []
    if trace.tokens is not None:
        mass = (
            hit.any(1).astype(float) if trace.weights is None else np.where(hit, trace.weights[:, at], 0).sum(1).astype(float)
        )
        seen: set[int] = set()
        for t in np.argsort(-mass, kind="stable"):
            sequence = int(trace.sequence[t])
            if mass[t] <= 0 or len(rows) == top:
                break
            if sequence in seen:
                continue
            seen.add(sequence)
            rows.append((float(mass[t]), trace.sequences[sequence].category or "", _window(trace, int(t), decode)))
    return pd.DataFrame(rows, columns=["weight", "category", "text"])


def _window(trace: RoutingTrace, t: int, decode: Decode | None) -> str:
    assert trace.tokens is not None
    same = np.flatnonzero(trace.sequence[max(0, t - WINDOW) : t + WINDOW + 1] == trace.sequence[t]) + max(0, t - WINDOW)
    before, after = trace.tokens[same[same < t]], trace.tokens[same[same > t]]

    def text(ids: np.ndarray) -> str:
        return decode(ids.tolist()) if decode else " ".join(map(str, ids.tolist()))

    return f"{text(before)}⟦{text(trace.tokens[t : t + 1])}⟧{text(after)}"
