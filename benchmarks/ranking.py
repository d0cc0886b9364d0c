"""Nested cross-validation and the max-statistic null at the size of a 7B model, beside scikit-learn and the GEMM rate.

    python benchmarks/ranking.py                 # N = 5,000, D = 131,072: 10 GB of memory, minutes for scikit-learn
    python benchmarks/ranking.py --rows 1000 --width 16384

Both sides get the same activations, folds and circuit sizes. scikit-learn's is what its documentation advises against
leaks: ``cross_val_predict`` over a pipeline of ``SelectKBest`` and ``LinearDiscriminantAnalysis``, once per K. Two
figures are given: over all K, and for a single K, where one selection per fold is all that either side needs. The
selections are compared feature by feature. The null is timed as the share of its own matrix products, at the rate that
this machine reaches on products of that shape.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.feature_selection import SelectKBest, f_classif
from sklearn.model_selection import PredefinedSplit, cross_validate
from sklearn.pipeline import make_pipeline

from machine import describe
from moescope.select.nested import nested_cv
from moescope.select.null import permutation_max
from moescope.tasks import group_folds

RESULT = Path(__file__).parent / "results" / "ranking.json"
KS = (1, 2, 3, 5, 10, 20, 50)
BLOCK = 2048


def make(rows: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Balanced pairs of rows (one group each), noise of many scales and offsets, and 200 neurons that differ by class."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, width), dtype=np.float32)
    y, groups = np.arange(rows) % 2, np.arange(rows) // 2
    x *= rng.lognormal(size=width).astype(np.float32)
    x += rng.standard_normal(width, dtype=np.float32)
    planted = rng.choice(width, 200, replace=False)
    x[:, planted] += np.outer(y, x[:, planted].std(0) * np.linspace(0.2, 1.0, 200)).astype(np.float32)
    return x, y, groups, group_folds(y, groups, n_folds=5, seed=seed)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def scikit_learn(x: np.ndarray, y: np.ndarray, folds: np.ndarray, k: int) -> dict[str, Any]:
    pipeline = make_pipeline(SelectKBest(f_classif, k=k), LinearDiscriminantAnalysis())
    seconds, found = timed(lambda: cross_validate(pipeline, x, y, cv=PredefinedSplit(folds), return_estimator=True))
    chosen: list[BaseEstimator] = [model[0] for model in found["estimator"]]
    selected = [np.flatnonzero(selector.get_support()).tolist() for selector in chosen]
    return {"k": k, "seconds": seconds, "accuracy": found["test_score"].tolist(), "selected": selected}


def gemm_rate(rows: int, permutations: int, seconds: float = 6.0) -> float:
    """Best multiply-adds per second, counted as two operations, of products of the null's shape."""
    a, b = torch.randn(permutations, rows), torch.randn(rows, BLOCK)
    torch.mm(a, b)
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        best = min(best, timed(lambda: torch.mm(a, b))[0])
    return 2.0 * permutations * rows * BLOCK / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--width", type=int, default=131072)
    parser.add_argument("--permutations", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()

    small = make(200, 1000)
    nested_cv(small[0], small[1], small[3], KS)  # compiles
    permutation_max(small[0], small[1], small[2], n_permutations=20)
    x, y, groups, folds = make(options.rows, options.width)

    runs = [timed(lambda: nested_cv(x, y, folds, KS)) for _ in range(options.repeats)]
    ours, result = min(run[0] for run in runs), runs[0][1]
    ours_one = min(timed(lambda: nested_cv(x, y, folds, (10,)))[0] for _ in range(options.repeats))
    print(f"nested CV, {len(KS)} sizes: {ours:.2f} s; one size: {ours_one:.2f} s", flush=True)

    null_seconds = min(
        timed(lambda: permutation_max(x, y, groups, n_permutations=options.permutations, block=BLOCK))[0] for _ in range(2)
    )
    rate = gemm_rate(options.rows, options.permutations)
    operations = 2.0 * options.permutations * options.rows * options.width
    share = operations / null_seconds / rate
    print(f"{options.permutations} permutations: {null_seconds:.1f} s, {share:.0%} of {rate / 1e9:.0f} GFLOP/s", flush=True)

    theirs = []
    for k in KS:
        theirs.append(scikit_learn(x, y, folds, k))
        print(f"scikit-learn, K = {k}: {theirs[-1]['seconds']:.1f} s", flush=True)
    same = all(
        sorted(result.selected[fold, : run["k"]].tolist()) == run["selected"][fold] for run in theirs for fold in range(5)
    )
    gap = max(
        abs(float(result.correct[i][folds == fold].mean()) - run["accuracy"][fold])
        for i, run in enumerate(theirs)
        for fold in range(5)
    )
    total = sum(run["seconds"] for run in theirs)
    one = next(run["seconds"] for run in theirs if run["k"] == 10)
    report = {
        "rows": options.rows,
        "width": options.width,
        "ks": list(KS),
        "folds": 5,
        "machine": describe("scikit-learn"),
        "nested_cv": {
            "moescope_s": ours,
            "scikit_learn_s": total,
            "ratio": total / ours,
            "scikit_learn_s_by_k": {str(run["k"]): run["seconds"] for run in theirs},
            "one_k_moescope_s": ours_one,
            "one_k_scikit_learn_s": one,
            "one_k_ratio": one / ours_one,
            "same_selections": same,
            "largest_accuracy_difference": gap,
            "accuracy": dict(zip(map(str, KS), result.accuracy.tolist(), strict=True)),
        },
        "max_null": {
            "permutations": options.permutations,
            "seconds": null_seconds,
            "gflops": operations / null_seconds / 1e9,
            "gemm_gflops": rate / 1e9,
            "share_of_gemm": share,
        },
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
