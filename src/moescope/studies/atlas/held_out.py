"""What experts are said to prefer by half of the prompts, measured on the other half.

An expert's best token and best category are the largest of many, and the largest of many is large by chance. So both are
chosen on one half of the templates and measured on the other, where the selection gives no advantage. The preference of several
experts is in bits: log2 of their choices by what each prefers, over those that each expert's rate on all tokens would give. (A
mean of the experts' own logarithms would be drawn far below 0 by experts that a few prompts use in bursts.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from moescope.routing.cards import MIN_TOKEN, characteristic, token_codes, token_use
from moescope.routing.separation import Cells
from moescope.routing.trace import RoutingTrace
from moescope.stats import wilson_bounds


@dataclass(frozen=True, eq=False)
class HeldOut:
    """What the E experts of all layers, in order, get of that which they prefer.

    Each preference is (2, 1 + U, E): choices on the judging half, and those that the expert's rate would give; in row 0 of the
    whole half, in row u without its block number u - 1.
    """

    layer: np.ndarray
    """(E,) true layer number"""
    labels: list[list[int]]
    """of each expert, ids of the characteristic tokens that were confirmed, surest first"""
    category: np.ndarray
    """(E,) code of the category that it prefers on the choosing half"""
    tokens: np.ndarray
    """of its characteristic tokens"""
    categories: np.ndarray
    """of that category"""
    identity: np.ndarray
    """of that category, were each token sent to the expert as often as its id was on the choosing half"""


def lifts(preference: np.ndarray) -> np.ndarray:
    """(E,) choices over those that the rate would give, both with one more, so that an expert without evidence has 1."""
    observed, expected = preference[:, 0]
    return np.asarray((observed + 1) / (expected + 1))


def bits(preference: np.ndarray, experts: np.ndarray | None = None) -> np.ndarray:
    """(1 + U,) log2 of the choices of ``experts`` (E,) bool together, over those that their rates would give; 0 without any."""
    kept = preference if experts is None else preference[..., experts]
    observed, expected = kept.sum(-1)
    known = (observed > 0) & (expected > 0)
    return np.asarray(np.log2(np.divide(observed, expected, out=np.ones(len(observed)), where=known)))


def held_out(trace: RoutingTrace, y: np.ndarray, cells: Cells, chooses: np.ndarray, top: int) -> HeldOut:
    """Choose on some sequences, judge on the others.

    Args:
        y: (N,) category codes of the sequences.
        chooses: (N,) bool.
        top: characteristic tokens of an expert at most.
    """
    codes = token_codes(trace)
    first, of_token = chooses[trace.sequence], y[trace.sequence]
    judging = np.flatnonzero(~first)
    blocks, block = np.unique(cells.groups[trace.sequence[judging]], return_inverse=True)
    found: list[tuple[np.ndarray, ...]] = []
    labels: list[list[int]] = []
    for at in range(len(trace.layers)):
        a, b = token_use(trace, at, codes, first), token_use(trace, at, codes, ~first)
        ids, width = trace.ids[judging, at], trace.n_experts[at]
        own = _Sums(codes[1][judging], ids, of_token[judging], block, len(blocks), len(a.tokens), width)
        chosen = list(characteristic(a, top))
        member = np.zeros((len(a.tokens), width), bool)
        for expert, rows in enumerate(chosen):
            member[rows, expert] = True
        preferred = _preferred(trace.ids[first, at], of_token[first], width)
        hits, n, cases = own.hits(), own.n(), own.n_of_category(preferred)
        expected = (a.hits + a.rate) / (a.n + 1)[:, None]  # (V, E): of a token of this id
        found.append(
            (
                preferred,
                _preference(own.hits(member), own.counts() @ member, hits, n),
                _preference(own.hits_of_category(preferred), cases, hits, n),
                _preference(own.expected_of_category(expected, preferred), cases, own.counts() @ expected, n),
            )
        )
        labels += [_confirmed(b.hits[rows, e], b.n[rows], b.rate[e], a.tokens[rows], top) for e, rows in enumerate(chosen)]
    category, tokens, categories, identity = (np.concatenate(part, axis=-1) for part in zip(*found, strict=True))
    return HeldOut(trace.experts[0], labels, category, tokens, categories, identity)


@dataclass(frozen=True, eq=False)
class _Sums:
    """Sums over the judging tokens (T) of one layer by block (U) and expert (E)."""

    code: np.ndarray
    ids: np.ndarray
    y: np.ndarray
    block: np.ndarray
    n_blocks: int
    n_tokens: int
    n_experts: int

    def counts(self, rows: np.ndarray | None = None) -> csr_array:
        """(U, V) occurrences of each token id, of the tokens ``rows`` (T,) alone."""
        kept = np.ones(len(self.code), bool) if rows is None else rows
        at = (self.block[kept], self.code[kept])
        return csr_array((np.ones(int(kept.sum())), at), shape=(self.n_blocks, self.n_tokens))

    def hits(self, member: np.ndarray | None = None) -> np.ndarray:
        """(U, E) choices of each expert, of the tokens that are its ``member`` (V, E)."""
        used = self.ids < self.n_experts
        if member is not None:
            used = used & member[self.code[:, None], np.where(used, self.ids, 0)]
        return self._by_block(used)

    def n(self) -> np.ndarray:
        """(U, 1) tokens."""
        return np.bincount(self.block, minlength=self.n_blocks)[:, None]

    def hits_of_category(self, preferred: np.ndarray) -> np.ndarray:
        """(U, E) choices of each expert by tokens of the category that it prefers."""
        used = self.ids < self.n_experts
        return self._by_block(used & (preferred[np.where(used, self.ids, 0)] == self.y[:, None]))

    def n_of_category(self, preferred: np.ndarray) -> np.ndarray:
        """(U, E) tokens of the category that each expert prefers."""
        return np.stack([np.bincount(self.block[self.y == c], minlength=self.n_blocks) for c in preferred], axis=1)

    def expected_of_category(self, rate: np.ndarray, preferred: np.ndarray) -> np.ndarray:
        """(U, E) :meth:`hits_of_category` if each token went to an expert with the ``rate`` (V, E) of its id."""
        found = np.zeros((self.n_blocks, self.n_experts))
        for c in np.unique(preferred):
            experts = np.flatnonzero(preferred == c)
            found[:, experts] = self.counts(self.y == c) @ rate[:, experts]
        return found

    def _by_block(self, used: np.ndarray) -> np.ndarray:
        flat = (self.block[:, None] * self.n_experts + self.ids)[used]
        return np.bincount(flat, minlength=self.n_blocks * self.n_experts).reshape(self.n_blocks, self.n_experts)


def _preference(hits: np.ndarray, n: np.ndarray, all_hits: np.ndarray, all_n: np.ndarray) -> np.ndarray:
    """(2, 1 + U, E) from choices and tokens of what is preferred and of all, by block (U, E)."""
    part, size, whole, total = (np.vstack([s.sum(0), s.sum(0) - s]) for s in (hits, n, all_hits, all_n))
    rate = np.divide(whole, total, out=np.zeros(part.shape), where=total > 0)
    return np.stack([part, size * rate])


def _preferred(ids: np.ndarray, y: np.ndarray, width: int) -> np.ndarray:
    """(E,) the category of ``y`` (T,) whose tokens use each expert most beyond its rate; ids (T, K)."""
    codes, code = np.unique(y, return_inverse=True)
    used = ids < width
    flat = (code[:, None] * width + ids)[used]
    hits = np.bincount(flat, minlength=len(codes) * width).reshape(len(codes), width)
    rate = hits.sum(0) / max(1, len(y))
    return np.asarray(codes[((hits + rate) / (np.bincount(code)[:, None] + 1)).argmax(0)])


def _confirmed(hits: np.ndarray, n: np.ndarray, rate: float, tokens: np.ndarray, top: int) -> list[int]:
    """Those of an expert's characteristic tokens whose rate on the judging half lies above the expert's own, tokens counted as
    independent, at 95 % for all ``top`` together."""
    low = wilson_bounds(hits, n, 1 - 0.1 / top)[0]
    kept = np.flatnonzero((low > rate) & (n >= MIN_TOKEN))
    return [int(tokens[i]) for i in kept[np.argsort(-low[kept], kind="stable")]]
