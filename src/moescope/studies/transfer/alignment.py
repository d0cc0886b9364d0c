"""Do two models group the same prompts alike, when their experts have nothing to do with each other?

Three questions of rising strength about the signatures A (N, D) and B (N, F) of N prompts in two models:

- representational similarity (Kriegeskorte et al. 2008): are the prompts that are alike in A alike in B?
- Procrustes (Schönemann 1966): does a rotation found on some prompts carry others from A to their place in B?
- classification: does a classifier of B, never shown A, read A's prompts through that rotation?

All rest on one pairing of prompts, so every null shuffles that pairing. Prompts share words and lengths in both models; that
is a trivial reason to be alike, and the similarity of the prompts' tokens is held fixed in ``partial``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import orthogonal_procrustes
from scipy.stats import rankdata
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from moescope.errors import InputError
from moescope.routing.similarity import similarity
from moescope.stats.permutation import permutation_p
from moescope.study.rows import FoldRows


@dataclass(frozen=True)
class Rsa:
    """Correlation of two similarity matrices' entries above the diagonal, with Mantel's permutation p (one-sided)."""

    rho: float
    """Spearman"""
    p: float
    null: float
    """mean of rho under shuffled prompts"""
    p_within: float
    """p when prompts are shuffled within their category alone: likeness beyond the category"""
    partial: float
    """rho after the ranks of the tokens' similarity are regressed out of both; NaN where the tokens are unknown"""
    p_partial: float


def rsa(
    a: np.ndarray,
    b: np.ndarray,
    y: np.ndarray,
    *,
    tokens: np.ndarray | None = None,
    n_permutations: int = 999,
    seed: int = 0,
) -> Rsa:
    """Compare two similarity matrices (N, N) of the same prompts.

    Args:
        y: (N,) categories.
        tokens: (N, N) similarity of the prompts' token counts.

    Raises:
        InputError: fewer than four prompts.
    """
    n = len(a)
    if n < 4:
        raise InputError(f"{n} prompts are too few to compare two models by; give at least 4")
    upper = np.triu_indices(n, 1)
    ranks_a, ranks_b = _ranks(a[upper]), _ranks(b[upper])
    matrix_b = _square(ranks_b, n)
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(n) for _ in range(n_permutations)]
    inside = [_within(y, rng) for _ in range(n_permutations)]

    def null_of(own: np.ndarray, other: np.ndarray, shuffles: list[np.ndarray]) -> np.ndarray:
        return np.array([own @ other[np.ix_(order, order)][upper] for order in shuffles])

    null = null_of(ranks_a, matrix_b, orders)
    rho = float(ranks_a @ ranks_b)
    partial, p_partial = float("nan"), float("nan")
    if tokens is not None:
        ranks_t = _ranks(tokens[upper])
        rest_a, rest_b = _unit(ranks_a - (ranks_a @ ranks_t) * ranks_t), _unit(ranks_b - (ranks_b @ ranks_t) * ranks_t)
        partial = float(rest_a @ rest_b)
        p_partial = float(permutation_p(partial, null_of(rest_a, _square(rest_b, n), orders)))
    return Rsa(
        rho=rho,
        p=float(permutation_p(rho, null)),
        null=float(null.mean()),
        p_within=float(permutation_p(rho, null_of(ranks_a, matrix_b, inside))),
        partial=partial,
        p_partial=p_partial,
    )


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
