"""Do two models group the same prompts alike, when their experts have nothing to do with each other?

Three questions of rising strength about the signatures A (N, D) and B (N, F) of N prompts in two models:

- representational similarity (Kriegeskorte et al. 2008): are the prompts that are alike in A alike in B?
- Procrustes (Schönemann 1966): does a rotation found on some prompts carry others from A to their place in B?
- classification: does a classifier of B, never shown A, read A's prompts through that rotation?

All rest on one pairing of prompts, so every null shuffles that pairing, topics whole. Prompts share words and lengths in both
models; that is a trivial reason to be alike, and the similarity of the prompts' tokens is held fixed in ``partial``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.linalg import orthogonal_procrustes
from scipy.stats import rankdata
from scipy.stats import t as student
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from moescope.errors import InputError
from moescope.routing.similarity import similarity
from moescope.study.rows import FoldRows
from moescope.study.verdicts import beyond_draws


@dataclass(frozen=True)
class Rsa:
    """Correlation of two similarity matrices' entries above the diagonal beside that under shuffled pairings (Mantel 1967).

    Three nulls: pairings shuffled (topics whole), shuffled within a category alone (likeness beyond the category), and
    shuffled with the ranks of the tokens' similarity regressed out of both; NaN there where the tokens are unknown.
    """

    rho: float
    """Spearman"""
    low: float
    high: float
    """its 95 % interval, from leaving out one topic (or prompt) after the other"""
    p: float
    """two-sided, as the others"""
    null: float
    null_low: float
    null_high: float
    """mean and range of 95 % of rho under the null"""
    p_within: float
    null_within: float
    null_within_low: float
    null_within_high: float
    partial: float
    partial_low: float
    partial_high: float
    p_partial: float
    null_partial: float
    null_partial_low: float
    null_partial_high: float


def rsa(
    a: np.ndarray,
    b: np.ndarray,
    y: np.ndarray,
    *,
    topics: np.ndarray | None = None,
    tokens: np.ndarray | None = None,
    n_permutations: int = 999,
    seed: int = 0,
) -> Rsa:
    """Compare two similarity matrices (N, N) of the same prompts.

    Args:
        y: (N,) categories.
        topics: (N,) which stay together when pairings are shuffled; None: every prompt is its own.
        tokens: (N, N) similarity of the prompts' token counts.

    Raises:
        InputError: fewer than four prompts.
    """
    n = len(a)
    if n < 4:
        raise InputError(f"{n} prompts are too few to compare two models by; give at least 4")
    upper = np.triu_indices(n, 1)
    rng = np.random.default_rng(seed)
    orders = [pairing(y, topics, rng) for _ in range(n_permutations)]
    inside = [pairing(y, topics, rng, within=True) for _ in range(n_permutations)]
    groups = np.arange(n) if topics is None else topics

    def beside(own: np.ndarray, other: np.ndarray, shuffles: list[np.ndarray], name: str = "") -> dict[str, float]:
        matrix, rho = _square(other, n), float(own @ other)
        null = np.array([own @ matrix[np.ix_(order, order)][upper] for order in shuffles])
        low, high = np.quantile(null, [0.025, 0.975])
        p = beyond_draws(rho, null, "", 0.0).p
        found = {"p": p, "null": float(null.mean()), "null_low": float(low), "null_high": float(high)}
        return {("null" + name + key[4:] if key != "p" else key + name): float(value or 0.0) for key, value in found.items()}

    ranks_a, ranks_b = _ranks(a[upper]), _ranks(b[upper])
    found = beside(ranks_a, ranks_b, orders) | beside(ranks_a, ranks_b, inside, "_within")
    found["rho"] = float(ranks_a @ ranks_b)
    found["low"], found["high"] = _jackknife(found["rho"], groups, lambda kept: _rho(a, b, None, kept))
    if tokens is None:
        names = ("partial", "partial_low", "partial_high", "p_partial")
        found |= dict.fromkeys((*names, "null_partial", "null_partial_low", "null_partial_high"), float("nan"))
    else:
        ranks_t = _ranks(tokens[upper])
        rest_a, rest_b = _beyond(ranks_a, ranks_t), _beyond(ranks_b, ranks_t)
        found |= beside(rest_a, rest_b, orders, "_partial") | {"partial": float(rest_a @ rest_b)}
        ends = _jackknife(found["partial"], groups, lambda kept: _rho(a, b, tokens, kept))
        found["partial_low"], found["partial_high"] = ends
    return Rsa(**found)


def pairing(y: np.ndarray, topics: np.ndarray | None, rng: np.random.Generator, *, within: bool = False) -> np.ndarray:
    """int64 (N,): with which prompt of B each of A is paired by chance.

    Topics that are alike in size (``within``: in their categories) change places whole, so that what prompts on one topic
    share in both models is there by chance too; inside a topic the prompts (``within``: of a category) are shuffled.

    Args:
        topics: (N,); None: every prompt is its own.
    """
    names = np.arange(len(y)) if topics is None else np.unique(topics, return_inverse=True)[1]
    blocks: dict[tuple[int, ...], list[np.ndarray]] = {}
    for topic in np.unique(names):
        members = np.flatnonzero(names == topic)
        members = members[np.argsort(y[members], kind="stable")]
        blocks.setdefault(tuple(y[members].tolist()) if within else (len(members),), []).append(members)
    order = np.empty(len(y), dtype=np.int64)
    for kind, alike in blocks.items():
        for place, other in enumerate(rng.permutation(len(alike))):
            slots = _within(np.array(kind), rng) if within else rng.permutation(kind[0])
            order[alike[place]] = alike[other][slots]
    return order


@dataclass(frozen=True, eq=False)
class Alignment:
    """A rotation from A's principal coordinates to B's, with the centring and scale that go before and after it."""

    pca_a: PCA
    pca_b: PCA
    rotation: np.ndarray
    """(d, d) orthogonal"""
    scale: float

    @classmethod
    def fit(cls, a: np.ndarray, b: np.ndarray, dimensions: int) -> Alignment:
        """Least-squares ``scale * (A - mean) @ rotation ~ B - mean`` over orthogonal rotations, after both are reduced to
        their first ``dimensions`` principal components (fewer where there are fewer prompts or features).
        """
        d = min(dimensions, len(a) - 1, a.shape[1], b.shape[1])
        pca_a, pca_b = PCA(d, svd_solver="full").fit(a), PCA(d, svd_solver="full").fit(b)
        left, right = pca_a.transform(a), pca_b.transform(b)
        rotation, total = orthogonal_procrustes(left, right)
        return cls(pca_a, pca_b, rotation, float(total / max(float((left**2).sum()), 1e-300)))

    def carry(self, a: np.ndarray) -> np.ndarray:
        """A's signatures (n, D) in B's principal coordinates (n, d)."""
        return np.asarray(self.scale * self.pca_a.transform(a) @ self.rotation)

    def place(self, b: np.ndarray) -> np.ndarray:
        """B's own signatures (n, F) there (n, d)."""
        return np.asarray(self.pca_b.transform(b))


@dataclass(frozen=True, eq=False)
class Held:
    """What held-out prompts gave."""

    explained: float
    """1 - squared error of B's coordinates predicted from A / their variance"""
    matched: np.ndarray
    """bool (N,): the nearest of the fold's held-out B prompts is the prompt itself"""
    chance: float
    """of ``matched``: mean of 1 / prompts in the fold"""
    predicted: np.ndarray
    """int64 (N,): category of each A prompt by a classifier fitted on B's training prompts"""


def held_out(a: np.ndarray, b: np.ndarray, y: np.ndarray, folds: FoldRows, *, dimensions: int = 16) -> Held:
    """Fit rotation and classifier on the rows that fit and use both on those that judge, fold by fold.

    The rotation sees pairs of prompts and no categories; the classifier sees categories and no A. They are fitted on
    different halves of the training prompts (both ways round, their log probabilities added): on the same ones, a rotation
    would carry A's categories to wherever the classifier believes to have found them in B, in noise too.
    """
    error = total = 0.0
    matched = np.zeros(len(y), dtype=bool)
    predicted = np.zeros(len(y), dtype=np.int64)
    shares = []
    for rows in folds:
        train, test = rows.fit, rows.judge
        alignment = Alignment.fit(a[train], b[train], dimensions)
        carried, own = alignment.carry(a[test]), alignment.place(b[test])
        error += float(((carried - own) ** 2).sum())
        total += float((own**2).sum())  # around the training mean
        distance = ((carried[:, None] - own[None]) ** 2).sum(-1)
        matched[test] = distance.argmin(1) == np.arange(len(test))
        shares += [1 / len(test)] * len(test)
        half = _half(y[train])
        votes = sum(
            _read(Alignment.fit(a[pairs], b[pairs], dimensions), a[pairs], b[labelled], y[labelled], a[test])
            for pairs, labelled in ((train[half], train[~half]), (train[~half], train[half]))
        )
        predicted[test] = np.unique(y)[np.asarray(votes).argmax(1)]
    return Held(1 - error / max(total, 1e-300), matched, float(np.mean(shares)), predicted)


def _read(alignment: Alignment, paired: np.ndarray, b: np.ndarray, y: np.ndarray, a: np.ndarray) -> np.ndarray:
    """Log probabilities (n, C) of A's signatures ``a`` (n, D) by a classifier of B's ``b`` with categories ``y``."""
    train = alignment.place(b)
    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(train, y)
    # a rotation fitted by least squares shrinks what it carries; the classifier expects B's spread
    stretch = train.std() / max(float(alignment.carry(paired).std()), 1e-12)
    return np.asarray(np.log(model.predict_proba(alignment.carry(a) * stretch) + 1e-12))


def _half(y: np.ndarray) -> np.ndarray:
    """bool (n,): every other prompt of each category."""
    half = np.zeros(len(y), dtype=bool)
    for category in np.unique(y):
        half[np.flatnonzero(y == category)[::2]] = True
    return half


def reduced(flat: np.ndarray, dimensions: int) -> np.ndarray:
    """Signatures (N, D) in the leading ``dimensions`` principal components of all N (fewer where there are fewer)."""
    return np.asarray(PCA(min(dimensions, *flat.shape), svd_solver="full").fit_transform(flat))


def signature_similarity(flat: np.ndarray) -> np.ndarray:
    """The similarity that is compared: cosine after the mean signature, which all prompts share, is taken off."""
    return similarity(flat, "centred_cosine")


def _rho(a: np.ndarray, b: np.ndarray, tokens: np.ndarray | None, kept: np.ndarray) -> float:
    """Spearman among the prompts ``kept``, with the tokens' similarity held fixed where it is given."""
    upper = np.triu_indices(len(kept), 1)
    ranks = [_ranks(matrix[np.ix_(kept, kept)][upper]) for matrix in (a, b, *([] if tokens is None else [tokens]))]
    left, right = ranks[:2] if tokens is None else (_beyond(ranks[0], ranks[2]), _beyond(ranks[1], ranks[2]))
    return float(left @ right)


def _jackknife(value: float, groups: np.ndarray, stat: Callable[[np.ndarray], float]) -> tuple[float, float]:
    """95 % interval of a statistic of rows from leaving out each group in turn, at most 100 bundles of them (Tukey 1958)."""
    code = np.unique(groups, return_inverse=True)[1] % 100
    names = np.unique(code)
    left = np.array([stat(np.flatnonzero(code != name)) for name in names])
    n = len(names)
    half = float(student.ppf(0.975, n - 1) * np.sqrt((n - 1) / n * ((left - left.mean()) ** 2).sum()))
    return value - half, value + half


def _beyond(values: np.ndarray, cue: np.ndarray) -> np.ndarray:
    """Centred ranks with a cue's regressed out, of unit length."""
    return _unit(values - (values @ cue) * cue)


def _within(y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    order = np.arange(len(y))
    for category in np.unique(y):
        members = np.flatnonzero(y == category)
        order[members] = rng.permutation(members)
    return order


def _ranks(values: np.ndarray) -> np.ndarray:
    """Centred ranks of unit length, so that a product is Spearman's correlation."""
    ranks = rankdata(values)
    return _unit(ranks - ranks.mean())


def _unit(values: np.ndarray) -> np.ndarray:
    return np.asarray(values / max(float(np.linalg.norm(values)), 1e-300))


def _square(values: np.ndarray, n: int) -> np.ndarray:
    matrix = np.zeros((n, n))
    matrix[np.triu_indices(n, 1)] = values
    return matrix + matrix.T
