"""How unevenly devices are loaded under each placement, on requests that it was not made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from moescope.errors import InputError
from moescope.routing.placement import balanced, contiguous, imbalance, shuffled
from moescope.routing.separation import Estimate, cells_of, estimate, with_and_without
from moescope.routing.trace import RoutingTrace
from moescope.studies.residency.rows import Halves
from moescope.studies.residency.settings import ResidencySettings

CONTIGUOUS = "contiguous"
FITTED = "fitted"
RANDOM = "random"
_DEFAULT = (4, 2, 8)


@dataclass(frozen=True, eq=False)
class Placed:
    """Placements over one number of devices."""

    devices: int
    placement: np.ndarray
    """(L, P) the fitted one, by the load of the requests that fit"""
    gain: Estimate
    """by how much the busiest device's load over the mean is lower than under the contiguous placement"""
    values: dict[str, Estimate]
    """that load under each placement, mean over layers"""
    random: np.ndarray
    """(R,) the same under random placements"""
    batch: dict[str, float]
    """mean over random batches"""


def devices_of(n_experts: Sequence[int], settings: ResidencySettings) -> tuple[int, ...]:
    """The numbers of devices to place for.

    Raises:
        InputError: layers have different numbers of experts, or they and their copies cannot be dealt out evenly.
    """
    if len(set(n_experts)) > 1:
        if settings.devices:
            raise InputError(f"layers have {min(n_experts)} to {max(n_experts)} experts; places are of layers alike", "devices")
        return ()
    places = n_experts[0] + settings.redundant
    for devices in settings.devices:
        if places % devices:
            raise InputError(f"{places} experts (with {settings.redundant} copies) are no multiple of {devices}", "devices")
        if places > n_experts[0] * devices:
            raise InputError(f"{settings.redundant} copies are more than {devices} devices can hold apart", "redundant")
    return settings.devices or tuple(d for d in _DEFAULT if not places % d and places <= n_experts[0] * d)


def place(halves: Halves, devices: int, settings: ResidencySettings, seed: int) -> Placed:
    """Fit a placement, and judge it beside the contiguous one and random ones."""
    n, layers = halves.judge.n_experts[0], len(halves.judge.layers)
    plain = contiguous(layers, n, settings.redundant)
    fitted = balanced(halves.fit.counts().sum(0), devices, settings.redundant)
    rng = np.random.default_rng(seed)
    cells = cells_of(np.zeros(len(halves.groups), np.int64), halves.groups, "group")
    whole, left = with_and_without(halves.judge.counts(), cells)  # (L, E), (U, L, E)
    values, lefts = {}, {}
    for name, placed in ((CONTIGUOUS, plain), (FITTED, fitted)):
        lefts[name] = imbalance(left, placed, devices).mean(1)
        values[name] = estimate(float(imbalance(whole, placed, devices).mean()), lefts[name], cells)
    gain = estimate(values[CONTIGUOUS].value - values[FITTED].value, lefts[CONTIGUOUS] - lefts[FITTED], cells)
    others = [shuffled(plain, rng) for _ in range(settings.n_random)]
    random = np.array([imbalance(whole, placed, devices).mean() for placed in others])
    batches = _batches(halves.judge, settings.tokens, rng)
    batch = {name: float(imbalance(batches, p, devices).mean()) for name, p in ((CONTIGUOUS, plain), (FITTED, fitted))}
    batch[RANDOM] = float(np.mean([imbalance(batches, placed, devices).mean() for placed in others[:_SOME]]))
    return Placed(devices, fitted, gain, values, random, batch)


_SOME = 20  # random placements that are also tried on batches
_BATCHES = 50


def _batches(trace: RoutingTrace, tokens: int, rng: np.random.Generator) -> np.ndarray:
    """(B, L, E) loads of batches of random tokens."""
    n = trace.n_experts[0]
    loads = np.zeros((_BATCHES, len(trace.layers), n))
    for batch in loads:
        ids = trace.ids[rng.choice(len(trace), min(tokens, len(trace)), replace=False)]
        for i in range(len(trace.layers)):
            batch[i] = np.bincount(ids[:, i].ravel(), minlength=trace.empty + 1)[:n]
    return loads


def placement_table(found: Sequence[Placed]) -> pd.DataFrame:
    """Table ``placement``."""
    rows = []
    for one in sorted(found, key=lambda one: one.devices):
        for name in (CONTIGUOUS, FITTED, RANDOM):
            known = one.values.get(name)
            ends = np.quantile(one.random, [0.025, 0.975]) if known is None else (known.low, known.high)
            rows.append(
                {
                    "devices": one.devices,
                    "placement": name,
                    "busiest": float(one.random.mean()) if known is None else known.value,
                    "low": float(ends[0]),
                    "high": float(ends[1]),
                    "busiest_in_batch": one.batch[name],
                }
            )
    return pd.DataFrame(rows)
