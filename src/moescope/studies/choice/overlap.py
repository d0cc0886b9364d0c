"""Are the neurons in whose choice a task's classes differ those in whose activation they do?

The circuit is ranked on one half of the texts and the choice on the other, and the other way round, so that no text is in
both: a sample's accidents are then no overlap.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from moescope.select.ranking import divergence, fold_class_sums, top_k
from moescope.stats import permuted_label_matrix
from moescope.studies.choice.settings import ChoiceSettings

_TENTHS = 10  # by how often neurons are chosen


@dataclass(frozen=True)
class Chosen:
    """One task's texts as a model reads them, D neurons of all layers.

    Attributes:
        y, groups: (N,) classes, and what never straddles a split.
        second: bool (N,): the second half.
        rates: float32 (N, D): share of a text's tokens for which each neuron is chosen.
        activations: float32 (N, D): mean over its tokens.
        layer: (D,) of each neuron.
    """

    task: str
    classes: tuple[str, ...]
    y: np.ndarray
    groups: np.ndarray
    second: np.ndarray
    rates: np.ndarray
    activations: np.ndarray
    layer: np.ndarray


@dataclass(frozen=True)
class Overlap:
    """Of one task: the share of its circuit in whose choice the classes differ too, the mean over both ways round.

    Attributes:
        layers, often: (n_random,) the same of random neurons of the circuit's layers, and of those chosen as often too.
        permuted: (n_permutations,) of the choice under permuted labels.
        circuit, choice: what the circuits of the two halves share, and the two rankings of the choice: what could be reached.
    """

    task: str
    k: int
    measured: float
    layers: np.ndarray
    often: np.ndarray
    permuted: np.ndarray
    circuit: float
    choice: float


def overlap_of(found: Chosen, settings: ChoiceSettings, seed: int) -> tuple[Overlap, list[dict[str, object]]]:
    """The overlap, and rows of the table ``shared``."""
    rng, k = np.random.default_rng(seed), settings.k
    halves = [np.flatnonzero(found.second == half) for half in (False, True)]
    circuits = [best(found.activations, found.y, rows, k) for rows in halves]
    choices = [best(found.rates, found.y, rows, k) for rows in halves]
    ways = [(circuits[0], choices[1], halves[0], halves[1]), (circuits[1], choices[0], halves[1], halves[0])]
    layers, often, permuted = [], [], []
    for circuit, choice, own, other in ways:
        tenth = _tenths(found.rates[own].mean(0), found.layer)
        layers.append(_by_chance(rng, found.layer, circuit, choice, settings.n_random))
        often.append(_by_chance(rng, found.layer * _TENTHS + tenth, circuit, choice, settings.n_random))
        labels = permuted_label_matrix(found.y[other], found.groups[other], settings.n_permutations, rng)
        everything = np.arange(len(other))
        drawn = [best(found.rates[other], shuffled, everything, k) for shuffled in labels]
        permuted.append(np.array([len(np.intersect1d(circuit, other)) for other in drawn]))
    both = [len(np.intersect1d(circuit, choice)) for circuit, choice, _, _ in ways]
    overlap = Overlap(
        found.task,
        k,
        float(np.mean(both)) / k,
        *(np.mean(drawn, axis=0) / k for drawn in (layers, often, permuted)),
        len(np.intersect1d(*circuits)) / k,
        len(np.intersect1d(*choices)) / k,
    )
    return overlap, _shared(found, np.unique(np.concatenate([np.intersect1d(c, choice) for c, choice, _, _ in ways])))


def best(x: np.ndarray, y: np.ndarray, rows: np.ndarray, k: int) -> np.ndarray:
    """The k columns of x (N, D) whose divergence between the classes of ``rows`` is largest."""
    sums = fold_class_sums(x[rows], y[rows], np.zeros(len(rows), np.int64))
    return np.asarray(top_k(divergence(*sums.total()), k))


def _tenths(rate: np.ndarray, layer: np.ndarray) -> np.ndarray:
    """(D,) 0 to 9: the tenth of its layer in which each neuron is by how often it is chosen."""
    tenth = np.empty(len(rate), np.int64)
    for one in np.unique(layer):
        inside = np.flatnonzero(layer == one)
        order = np.argsort(np.argsort(rate[inside], kind="stable"))
        tenth[inside] = order * _TENTHS // len(inside)
    return tenth


def _by_chance(rng: np.random.Generator, strata: np.ndarray, a: np.ndarray, b: np.ndarray, n: int) -> np.ndarray:
    """(n,) what random neurons, as many of each stratum as ``a`` has, share with ``b``."""
    total = np.zeros(n, np.int64)
    for one in np.unique(strata[a]):
        size, own, hit = (int((strata[part] == one).sum()) for part in (slice(None), a, b))
        total += rng.hypergeometric(hit, size - hit, own, size=n)
    return total


def _shared(found: Chosen, columns: np.ndarray) -> list[dict[str, object]]:
    """What the neurons are, and for which class they are chosen most and least."""
    means = np.stack([found.rates[found.y == c][:, columns].mean(0) for c in range(len(found.classes))])
    first = np.searchsorted(found.layer, found.layer[columns])  # layers ascend
    return [
        {
            "task": found.task,
            "layer": int(found.layer[column]),
            "neuron": int(column - first[i]),
            "most": found.classes[int(means[:, i].argmax())],
            "rate_most": float(means[:, i].max()),
            "rate_least": float(means[:, i].min()),
        }
        for i, column in enumerate(columns)
    ]


def circuit_table(found: list[Overlap]) -> pd.DataFrame:
    """Table ``circuits``."""
    rows = []
    for one in found:
        row: dict[str, object] = {"task": one.task, "k": one.k, "shared": one.measured}
        for name, draws in (("layers", one.layers), ("often", one.often), ("permuted", one.permuted)):
            low, high = np.quantile(draws, [0.025, 0.975])
            row |= {name: float(draws.mean()), f"{name}_low": float(low), f"{name}_high": float(high)}
        times = one.measured / one.layers.mean() if one.layers.mean() else np.nan
        rows.append(row | {"times": float(times), "circuit": one.circuit, "choice": one.choice})
    return pd.DataFrame(rows)
