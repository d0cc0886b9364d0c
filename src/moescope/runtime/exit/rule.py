"""When a row leaves, and which confidence is asked for: calibrated so that a promise holds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from moescope.runtime.choices import Loss, Method
from moescope.stats.conformal import conformal_risk_control, learn_then_test

_STEPS, _TOP = 160, 12.0


@dataclass(frozen=True)
class Guarantee:
    """What was promised, and on what ground. A threshold of infinity means that no row leaves early.

    ``groups`` is the calibration size; ``calibration_risk`` the loss there, mean over groups of the mean within a group.
    """

    threshold: float
    risk: float
    delta: float | None
    loss: Loss
    method: Method
    groups: int
    calibration_risk: float

    def text(self) -> str:
        what = {"accuracy": "rows that full depth gets right and the exit gets wrong", "disagreement": "rows decided otherwise"}
        sure = f"with probability {1 - self.delta:g}" if self.delta is not None else "on average over calibration sets"
        name = {"ltt": "Learn-then-Test", "crc": "conformal risk control"}[self.method]
        return f"at most {self.risk:.1%} of {what[self.loss]}, {sure} ({name}, {self.groups} calibration groups)"


def finite(threshold: float) -> float | None:
    """JSON has no infinity: null stands for "no row leaves early"."""
    return None if threshold == float("inf") else threshold


def stored_guarantee(guarantee: Guarantee | None) -> dict[str, Any] | None:
    """For JSON."""
    return None if guarantee is None else asdict(guarantee) | {"threshold": finite(guarantee.threshold)}


def thresholds(n_classes: int) -> np.ndarray:
    """Candidate confidences from the safest to the riskiest: infinity, then even steps of log-odds down to 1 / C.

    They are fixed beforehand, which the guarantees need.
    """
    odds = np.linspace(_TOP, -np.log(max(n_classes - 1, 1)), _STEPS)
    return np.concatenate([[np.inf], 1 / (1 + np.exp(-odds))])


def exit_layers(probabilities: np.ndarray, threshold: float, checks: tuple[int, ...]) -> np.ndarray:
    """(N,) int64: the first layer of ``checks`` at which the head of (N, L, C) probabilities is confident, else the last."""
    n_layers = probabilities.shape[1]
    sure = np.zeros(probabilities.shape[:2], dtype=bool)
    sure[:, list(checks)] = probabilities[:, list(checks)].max(-1) >= threshold
    sure[:, n_layers - 1] = True
    return np.asarray(sure.argmax(1))


def losses(probabilities: np.ndarray, y: np.ndarray, at: np.ndarray, loss: Loss) -> np.ndarray:
    """(N,) float64 in {0, 1}: what leaving at layers ``at`` (N,) costs a row, against the last layer's head."""
    said = probabilities.argmax(-1)  # (N, L)
    full, early = said[:, -1], said[np.arange(len(at)), at]
    lost = full != early
    return np.asarray(lost & (full == y) if loss == "accuracy" else lost, np.float64)


def promise(
    table: np.ndarray,
    candidates: np.ndarray,
    *,
    binary: bool,
    risk: float,
    delta: float,
    loss: Loss,
    method: Method,
) -> Guarantee:
    """The lowest confidence that calibration groups allow.

    Args:
        table: (G, T) mean loss of each group by candidate, from the safest of ``candidates`` (T,) to the riskiest.
        binary: every group is one row, which loses 0 or 1: the test is exact then.

    Raises:
        InputError: too few groups for the risk and delta asked for, or not even the safest candidate will do.
    """
    ltt = method == "ltt"
    found = learn_then_test(table, risk, delta, binary=binary) if ltt else conformal_risk_control(table, risk)
    return Guarantee(
        threshold=float(candidates[found.candidate]),
        risk=risk,
        delta=delta if ltt else None,
        loss=loss,
        method=method,
        groups=found.n,
        calibration_risk=found.risk,
    )
