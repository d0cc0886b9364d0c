"""How many tokens of a text it takes until every expert has had enough of them: the coupon collector's question, with rates,
dependence and doubt taken from the text at hand.

Tokens of a document are alike, so that a document is what is drawn. An expert's count over documents varies ``spread`` times as
much as that of independent tokens; ``count / spread`` is then read as a Poisson count (Rao and Scott 1992, "A simple method for
the analysis of clustered binary data"), with the exact limits of Garwood (1936). The limits of all experts hold together
(Bonferroni), and what is needed falls as any rate rises, so that the rates' limits give those of the tokens needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import beta, binom, chi2, norm
from scipy.stats import t as student

_PRIOR = 10.0
"""choices of an expert by which its own spread is drawn towards that of all"""
_DRAWS = 400


@dataclass(frozen=True, eq=False)
class Rates:
    """How often tokens reach each of E experts."""

    tokens: int
    """of the text"""
    documents: int
    reached: np.ndarray
    """(E,) tokens that each expert received"""
    seen_in: np.ndarray
    """(E,) documents in which it received any"""
    rate: np.ndarray
    """(E,) share of the tokens"""
    low: np.ndarray
    """(E,) lower limits of the rates, which hold for all experts together at 95 %"""
    high: np.ndarray
    """(E,) upper limits"""
    spread: np.ndarray
    """(E,) variance of a count over that of independent tokens"""

    @property
    def unseen(self) -> int:
        """Experts that no token reached. Whether they are dead or rare no text can tell."""
        return int((self.reached == 0).sum())

    @property
    def new(self) -> float:
        """Experts unseen so far that one more document is expected to reach: as many as were seen in one document alone, over
        the documents (Good 1953, Turing's estimate, with documents for draws)."""
        return min(float(self.unseen), float((self.seen_in == 1).sum()) / self.documents)


def expert_rates(counts: np.ndarray, tokens: np.ndarray, level: float = 0.95) -> Rates:
    """Rates and their limits.

    Args:
        counts: (D, E) tokens of each document that each expert received.
        tokens: (D,) tokens of each document; D at least 2.
    """
    n, n_experts = counts.shape
    total, length = counts.sum(0), float(tokens.sum())
    rate = total / length
    off = counts - rate * tokens[:, None]
    variance = n / (n - 1) * (off**2).sum(0)
    pooled = float(variance.sum() / max(total.sum(), 1))
    spread = np.maximum((variance + _PRIOR * pooled) / (total + _PRIOR), 1e-3)
    tail = (1 - level) / 2 / n_experts
    # what stands for the spread is itself from n documents
    wide = spread * float(student.isf(tail, n - 1) / norm.isf(tail)) ** 2
    low = wide * chi2.ppf(tail, 2 * total / wide) / 2 / length
    high = wide * chi2.isf(tail, 2 * total / wide + 2) / 2 / length
    low = np.where(total > 0, np.nan_to_num(low), 0.0)
    return Rates(int(length), n, total, (counts > 0).sum(0), rate, low, np.minimum(high, 1.0), spread)


@dataclass(frozen=True)
class Needed:
    """Tokens of further text like this of which, with the probability asked for, every expert but those spared has enough."""

    tokens: float
    """infinite where an expert that may not be spared was never reached"""
    low: float
    high: float
    """infinite likewise"""


def tokens_needed(
    counts: np.ndarray, tokens: np.ndarray, rates: Rates, least: int, sure: float, *, spare: int = 0, seed: int = 0
) -> Needed:
    """Until each expert has received ``least`` tokens, by drawing documents: 95 % limits from those of the rates.

    An expert meets the documents that hold tokens for it after a random number of others, and takes in each as many as one of
    those documents gave it, at random places; the last expert decides.

    Args:
        counts, tokens: as of :func:`expert_rates`, which gave ``rates``.
        spare: experts that may go without.
    """
    waits = _waits(counts, tokens, least, np.random.default_rng(seed))  # (E, R), infinite where unseen
    found = []
    for limit in (rates.rate, rates.high, rates.low):
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            slower = np.where(rates.reached > 0, rates.rate / limit, 1.0)
        scaled = waits * slower[:, None]
        if limit is rates.high:  # an unseen expert takes its tokens as often as is not excluded
            scaled = np.where(np.isinf(scaled), least / rates.high[:, None], scaled)
        # whoever may go without is whoever is last in a draw
        last = np.sort(scaled, axis=0)[len(scaled) - 1 - spare] if spare < len(scaled) else np.zeros(_DRAWS)
        found.append(float(np.ceil(np.quantile(last, sure, method="higher"))))
    return Needed(*found)


def _waits(counts: np.ndarray, tokens: np.ndarray, least: int, rng: np.random.Generator) -> np.ndarray:
    """(E, R) tokens until each expert has ``least``, in R draws of documents."""
    n, n_experts = counts.shape
    waits = np.full((n_experts, _DRAWS), np.inf)
    for expert in range(n_experts):
        hit = np.flatnonzero(counts[:, expert] > 0)
        if not len(hit):
            continue
        size, length = counts[hit, expert], tokens[hit].astype(float)
        between = float(tokens.sum() - length.sum()) / max(n - len(hit), 1)  # tokens of a document without any
        have, spent = np.zeros(_DRAWS), np.zeros(_DRAWS)
        open_ = np.arange(_DRAWS)
        while len(open_):
            drawn = rng.integers(len(hit), size=len(open_))
            misses = rng.geometric(len(hit) / n, len(open_)) - 1
            lack, gives = least - have[open_], size[drawn]
            ends = gives >= lack
            # where among a document's tokens the last of those that were lacking stands
            place = np.ones(len(open_))
            place[ends] = rng.beta(lack[ends], gives[ends] - lack[ends] + 1)
            spent[open_] += misses * between + place * length[drawn]
            have[open_] += gives
            open_ = open_[~ends]
        waits[expert] = spent
    return waits


def even_needed(n_experts: int, k: float, least: int, sure: float, spare: int = 0) -> float:
    """The same of an even router that sends each token to ``k`` of the experts, whatever the token; in closed form."""
    each = sure ** (1 / n_experts) if not spare else float(beta.ppf(sure, n_experts - spare, spare + 1))
    low, high = least - 1, least
    while binom.sf(least - 1, high, k / n_experts) < each:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if binom.sf(least - 1, middle, k / n_experts) >= each else (middle, high)
    return float(high)
