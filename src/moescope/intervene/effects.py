"""An intervention's effect beside the effects of random interventions that match it."""

from __future__ import annotations

from typing import Any

import numpy as np

from moescope.stats.permutation import permutation_p


def against_random(effect: float, random: np.ndarray, *, harm: float = 1.0) -> dict[str, Any]:
    """``effect`` beside those of R random interventions, ``random`` (R,).

    Args:
        harm: +1 where a larger value is worse, -1 where a smaller one is.

    Returns:
        effect, random_mean, random_low, random_high (2.5 and 97.5 % of the random effects), p = (1 + random ones at least as
        harmful) / (1 + R), n_random.
    """
    random = np.asarray(random, dtype=np.float64)
    low, high = np.percentile(random, [2.5, 97.5])
    return {
        "effect": effect,
        "random_mean": float(random.mean()),
        "random_low": float(low),
        "random_high": float(high),
        # accuracies are multiples of 1 / texts: a tie must not be lost to rounding
        "p": float(permutation_p(harm * effect - 1e-9, harm * random)),
        "n_random": len(random),
    }
