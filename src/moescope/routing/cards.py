"""What experts are chosen for, many at once: their tokens, their categories, and the contexts in which they weigh most."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd

from moescope.errors import InputError
from moescope.routing.trace import RoutingTrace
from moescope.stats import wilson_bounds

Decode = Callable[[list[int]], str]
MIN_TOKEN = 5  # a token seen less often has no rate worth a line
WINDOW = 6  # tokens of context on either side
_DRAWS = 1000


@dataclass(frozen=True, eq=False)
class TokenUse:
    """How often the tokens of one layer go to its E experts, by the V token ids that occur."""

    tokens: np.ndarray
    """(V,) token ids, ascending"""
    n: np.ndarray
    """int64 (V,): occurrences"""
    hits: np.ndarray
    """int64 (V, E): of them, sent to the expert"""

    @property
    def rate(self) -> np.ndarray:
        """(E,) share of all tokens that is sent to each expert."""
        return np.asarray(self.hits.sum(0) / max(1, int(self.n.sum())))


Codes = tuple[np.ndarray, np.ndarray]
"""(V,) token ids that occur, ascending; and (T,) which of them each token is"""


def token_codes(trace: RoutingTrace) -> Codes:
    """Which tokens occur, and where.

    Raises:
        InputError: the trace holds no token ids.
    """
    if trace.tokens is None:
        raise InputError("the trace has no token ids; trace again with them")
    names, code = np.unique(trace.tokens, return_inverse=True)
    return names, code


def token_use(trace: RoutingTrace, at: int, codes: Codes, rows: np.ndarray | None = None) -> TokenUse:
    """Count the tokens of layer number ``at`` of the trace by id and expert.

    Args:
        codes: of the trace's tokens (:func:`token_codes`).
        rows: bool (T,), the tokens that count; None for all. Ids that occur among others alone have ``n`` 0.
    """
    names, code = codes
    width, ids = trace.n_experts[at], trace.ids[:, at]
    used = ids < width  # an unused slot holds the largest value of its type
    if rows is not None:
        used = used & rows[:, None]
    flat = (code[:, None] * width + ids)[used]
    hits = np.bincount(flat, minlength=len(names) * width).reshape(len(names), width)
    return TokenUse(names, np.bincount(code if rows is None else code[rows], minlength=len(names)), hits)


def expert_cards(
    trace: RoutingTrace,
    experts: Sequence[tuple[int, int]] | None = None,
    *,
    decode: Decode | None = None,
    top: int = 8,
    seed: int = 0,
) -> dict[str, pd.DataFrame]:
    """Describe experts from a trace.

    Args:
        experts: (true layer number, expert); None for all.
        decode: token ids to text; without it tokens stay numbers.
        top: tokens and contexts of each.

    Returns:
        tables ``expert_tokens``, ``expert_categories`` and ``expert_contexts`` with ``layer`` and ``expert``; one without rows
        is left out.

    Raises:
        InputError: a layer or expert is not in the trace.
    """
    wanted = [(int(layer), int(e)) for layer, e in zip(*trace.experts, strict=True)] if experts is None else list(experts)
    _check(trace, wanted)
    parts: dict[str, list[pd.DataFrame]] = {"expert_tokens": [], "expert_categories": [], "expert_contexts": []}
    hits = trace.counts()
    codes = None if trace.tokens is None else token_codes(trace)
    for at, layer in enumerate(trace.layers):
        members = [e for number, e in wanted if number == layer]
        if not members:
            continue
        use = None if codes is None else token_use(trace, at, codes)
        for name, rows in (
            ("expert_tokens", _tokens(use, members, decode, top) if use is not None else ()),
            ("expert_categories", _categories(trace, hits[:, at, : trace.n_experts[at]], members, seed)),
            ("expert_contexts", _contexts(trace, at, members, decode, top)),
        ):
            for expert, frame in zip(members, rows, strict=False):
                frame.insert(0, "layer", layer)
                frame.insert(1, "expert", expert)
                parts[name].append(frame)
    order = {pair: i for i, pair in enumerate(wanted)}
    found = {}
    for name, frames in parts.items():
        if filled := [frame for frame in frames if len(frame)]:
            filled.sort(key=lambda frame: order[int(frame["layer"].iloc[0]), int(frame["expert"].iloc[0])])
            found[name] = pd.concat(filled, ignore_index=True)
    return found


def expert_shares(trace: RoutingTrace) -> np.ndarray:
    """(M,) share of all tokens that is sent to each of :attr:`RoutingTrace.experts`."""
    shares = trace.counts().sum(0) / max(1, len(trace))  # (L, E)
    return np.concatenate([row[:n] for row, n in zip(shares, trace.n_experts, strict=True)])


def _check(trace: RoutingTrace, experts: Sequence[tuple[int, int]]) -> None:
    count = dict(zip(trace.layers, trace.n_experts, strict=True))
    for layer, expert in experts:
        if layer not in count:
            raise InputError(f"layer {layer} is not traced; the layers are {', '.join(map(str, trace.layers))}", "experts")
        if not 0 <= expert < count[layer]:
            raise InputError(f"layer {layer} has experts 0 to {count[layer] - 1}, not {expert}", "experts")


def characteristic(use: TokenUse, top: int) -> Iterator[np.ndarray]:
    """For each expert the rows of ``use``, at most ``top``, whose rate lies above its overall one with its 95 % interval.

    In the order of the lower bound: five tokens out of five say less than ninety out of a hundred.
    """
    often = np.flatnonzero(use.n >= MIN_TOKEN)
    low = wilson_bounds(use.hits[often], use.n[often, None])[0]
    for expert, rate in enumerate(use.rate):
        order = np.argsort(-low[:, expert], kind="stable")[:top]
        yield often[order[low[order, expert] > rate]]


def _tokens(use: TokenUse, members: Sequence[int], decode: Decode | None, top: int) -> Iterator[pd.DataFrame]:
    found, rate = list(characteristic(use, top)), use.rate
    for e in members:
        rows = found[e]
        n, hits = use.n[rows], use.hits[rows, e]
        low, high = wilson_bounds(hits, n)
        own = max(rate[e], 1e-300)  # no row without a hit
        names = [decode([int(t)]) if decode else str(t) for t in use.tokens[rows]]
        yield pd.DataFrame(
            {"token": names, "n": n, "rate": hits / n, "lift": hits / n / own, "low": low / own, "high": high / own}
        )


def _categories(trace: RoutingTrace, hits: np.ndarray, members: Sequence[int], seed: int) -> Iterator[pd.DataFrame]:
    """``hits``: (N, E) choices of each expert by sequence."""
    category, size = np.array([s.category or "" for s in trace.sequences]), trace.lengths
    rate = hits.sum(0) / max(1, len(trace))
    rows: list[list[tuple[str, int, float, float, float, float]]] = [[] for _ in rate]
    rng = np.random.default_rng(seed)
    for name in dict.fromkeys(category.tolist()):
        own = np.flatnonzero((category == name) & (size > 0))
        if not name or not len(own):
            continue
        weight = rng.multinomial(len(own), np.full(len(own), 1 / len(own)), _DRAWS)
        drawn = (weight @ hits[own]) / (weight @ size[own])[:, None]
        low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
        here = hits[own].sum(0) / size[own].sum()
        for e in np.flatnonzero(rate).tolist():
            rows[e].append((name, len(own), here[e], here[e] / rate[e], low[e] / rate[e], high[e] / rate[e]))
    for e in members:
        yield pd.DataFrame(rows[e], columns=["category", "n", "rate", "lift", "low", "high"])


def _contexts(trace: RoutingTrace, at: int, members: Sequence[int], decode: Decode | None, top: int) -> Iterator[pd.DataFrame]:
    slots = trace.ids[:, at].ravel()
    order = np.argsort(slots, kind="stable")
    bounds = np.searchsorted(slots[order], np.arange(trace.n_experts[at] + 1))
    weights = None if trace.weights is None else trace.weights[:, at].ravel()
    chosen = np.zeros(len(trace), bool)
    for e in members:
        rows: list[tuple[float, str, str]] = []
        mine = order[bounds[e] : bounds[e + 1]]
        tokens, mass = mine // trace.top_k, np.ones(len(mine)) if weights is None else weights[mine].astype(float)
        chosen[tokens] = True
        seen: set[int] = set()
        for i in np.argsort(-mass, kind="stable") if trace.tokens is not None else ():
            t = int(tokens[i])
            sequence = int(trace.sequence[t])
            if mass[i] <= 0 or len(rows) == top:
                break
            if sequence not in seen:
                seen.add(sequence)
                rows.append((float(mass[i]), trace.sequences[sequence].category or "", _window(trace, t, chosen, decode)))
        chosen[tokens] = False
        yield pd.DataFrame(rows, columns=["weight", "category", "text"])


def _window(trace: RoutingTrace, t: int, chosen: np.ndarray, decode: Decode | None) -> str:
    """The text around token ``t`` of its sequence; every token that the expert gets stands in ⟦ ⟧."""
    assert trace.tokens is not None
    return marked_window(trace.tokens, trace.sequence, t, chosen, decode)


def marked_window(tokens: np.ndarray, sequence: np.ndarray, t: int, chosen: np.ndarray, decode: Decode | None) -> str:
    """The same of token ids (T,), the sequence that each belongs to (T,), and which are marked, bool (T,)."""
    rows = np.arange(max(0, t - WINDOW), min(len(tokens), t + WINDOW + 1))
    rows = rows[sequence[rows] == sequence[t]]
    pieces = _pieces(tokens[rows].tolist(), decode)
    return "".join(f"⟦{p}⟧" if mine and p else p for p, mine in zip(pieces, chosen[rows], strict=True))


def _pieces(ids: list[int], decode: Decode | None) -> list[str]:
    """What each token adds to the text: a token alone may lose its space, or be part of a letter."""
    if decode is None:
        return [f"{' ' if i else ''}{token}" for i, token in enumerate(ids)]
    # a letter that is not whole yet is decoded as U+FFFD, and comes with the token that completes it
    texts = ["", *(decode(ids[: i + 1]).rstrip("\ufffd") for i in range(len(ids)))]
    return [longer[len(shorter) :] for shorter, longer in pairwise(texts)]
