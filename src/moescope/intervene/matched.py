"""Random sets of neurons that resemble a circuit in everything but the task: same sites, like norms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from moescope.errors import InputError
from moescope.types import Neuron, Site

STREAM = ("embed", "resid")


def matched_sets(
    circuit: Sequence[Neuron],
    norms: Mapping[Site, np.ndarray],
    *,
    n_sets: int = 100,
    seed: int = 0,
    window: int = 20,
) -> list[list[Neuron]]:
    """``n_sets`` random counterparts of a circuit of K neurons.

    Each coordinate of the circuit is replaced, at the same site, by one of the ``window`` coordinates whose norm is
    nearest to its norm (ratio of norms) and that the circuit does not use; no two share a replacement. A residual
    stream carries a coordinate on from layer to layer. So where the circuit has one at several layers, its
    counterpart is one coordinate at the same layers, and a coordinate that the circuit has at any layer is drawn at
    none. The first k neurons of a set are a matched set for the first k of the circuit: one draw serves a whole dose
    curve.

    Args:
        norms: for each site (D,) norms (root mean square or mean magnitude) of its coordinates.

    Raises:
        InputError: a site has no norms, or too few coordinates outside the circuit to draw from.
    """
    rng = np.random.default_rng(seed)
    sites: dict[tuple[Site | None, int], list[Site]] = {}  # where each coordinate of the circuit occurs
    for neuron in circuit:
        if neuron.site not in norms:
            raise InputError(f"norms: none for {neuron.site}; give one number per coordinate of each site of the circuit")
        sites.setdefault(_coordinate(neuron), []).append(neuron.site)
    size = {s: np.log(np.abs(np.asarray(norms[s], dtype=np.float64)) + 1e-12) for ss in sites.values() for s in ss}
    candidates: dict[tuple[Site | None, int], list[int]] = {}
    for (space, index), where in sites.items():
        inside = [i for s, i in sites if s == space]
        outside = np.setdiff1d(np.arange(len(size[where[0]])), inside)
        if len(outside) < 2 * len(inside):
            raise InputError(
                f"{where[0]}: {len(inside)} of its {len(size[where[0]])} coordinates are in the circuit, too few are "
                "left to draw random sets from; use a smaller K"
            )
        distance = np.mean([np.abs(size[s][outside] - size[s][index]) for s in where], axis=0)
        # at least twice the members, so that draws without repeats stay random for the last of them
        near = np.argsort(distance, kind="stable")[: max(window, 2 * len(inside))]
        candidates[space, index] = outside[near].tolist()
    sets = []
    for _ in range(n_sets):
        drawn: dict[tuple[Site | None, int], int] = {}
        for (space, index), choices in candidates.items():
            taken = {i for (s, _), i in drawn.items() if s == space}
            free = [i for i in choices if i not in taken]
            drawn[space, index] = free[rng.integers(len(free))]
        sets.append([Neuron(n.site, drawn[_coordinate(n)]) for n in circuit])
    return sets


def _coordinate(neuron: Neuron) -> tuple[Site | None, int]:
    """A neuron's identity: its site and index, or in the residual stream (None) its index at whatever layer."""
    return None if neuron.site.kind in STREAM else neuron.site, neuron.index


def norm_ratio(circuit: Sequence[Neuron], sets: Sequence[Sequence[Neuron]], norms: Mapping[Site, np.ndarray]) -> float:
    """Geometric mean over the sets of (norm of the set / norm of the circuit): 1 where matching succeeded.

    The norm of a set is the root of the sum of its neurons' squared ``norms``. Far below 1 where the circuit holds massive
    activations, which have no match in their layer.
    """
    own, *others = [
        np.log(np.sqrt(sum(float(norms[n.site][n.index]) ** 2 for n in members)) + 1e-12) for members in (circuit, *sets)
    ]
    return float(np.exp(np.mean(others) - own))
