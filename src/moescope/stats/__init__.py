"""Null distributions, intervals, overlaps and scores: plain functions on numpy arrays.

They are tested for calibration: p-values are uniform under the null, intervals cover at their nominal rate.
"""

from moescope.stats.change import Jump, largest_jump
from moescope.stats.intervals import (
    Difference,
    bootstrap_sums,
    expanded_percentiles,
    group_bootstrap,
    paired_bootstrap_difference,
    wilson,
    wilson_bounds,
)
from moescope.stats.overlap import disjoint_probability, expected_overlap, kuncheva, nogueira, overlap_p
from moescope.stats.permutation import benjamini_hochberg, holm, permutation_p, permute_labels, permuted_label_matrix
from moescope.stats.scores import SelectiveCurve, auroc, class_weights, macro_auroc, selective, sign_free_auroc

__all__ = [
    "Difference",
    "Jump",
    "SelectiveCurve",
    "auroc",
    "benjamini_hochberg",
    "bootstrap_sums",
    "class_weights",
    "disjoint_probability",
    "expanded_percentiles",
    "expected_overlap",
    "group_bootstrap",
    "holm",
    "kuncheva",
    "largest_jump",
    "macro_auroc",
    "nogueira",
    "overlap_p",
    "paired_bootstrap_difference",
    "permutation_p",
    "permute_labels",
    "permuted_label_matrix",
    "selective",
    "sign_free_auroc",
    "wilson",
    "wilson_bounds",
]
