"""Are the neurons in whose choice a task's classes differ those in whose activation they do?

The circuit is ranked on one half of the texts and the choice on the other, and the other way round, so that no text is in
both: a sample's accidents are then no overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from moescope.select.ranking import divergence, fold_class_sums, top_k
from moescope.stats import permuted_label_matrix
from moescope.studies.choice.halvings import FEW, Beside
from moescope.studies.choice.settings import ChoiceSettings

_TENTHS = 10  # by how often neurons are chosen


@dataclass(frozen=True)
class Chosen:
    """One task's texts as a model reads them, D neurons of all layers.

    Attributes:
        y, groups: (N,) classes, and what never straddles a split.
        seconds: of each halving bool (N,): the second half.
        rates: float32 (N, D): share of a text's tokens for which each neuron is chosen.
        activations: float32 (N, D): mean over its tokens.
        layer: (D,) of each neuron.
    """

    task: str
    classes: tuple[str, ...]
    y: np.ndarray
    groups: np.ndarray
    seconds: Sequence[np.ndarray]
    rates: np.ndarray
    activations: np.ndarray
    layer: np.ndarray


@dataclass(frozen=True)
class Overlap:
    """Of one task: the share of its circuit in whose choice the classes differ too, the mean over both ways round.

    Attributes:
        layers, often, permuted: it beside random neurons of the circuit's layers, beside those chosen as often too, and
            beside the choice under permuted labels.
        circuit, choice: (H,) what the circuits of two halves share, and their two rankings of the choice.
    """

    task: str
    k: int
    layers: Beside
    often: Beside
    permuted: Beside
    circuit: np.ndarray
    choice: np.ndarray

    @property
    def reach(self) -> float:
        """What could be shared: the geometric mean of what circuits, and choices, share with themselves on other texts."""
        return float(np.sqrt(self.circuit.mean() * self.choice.mean()))


def overlap_of(found: Chosen, settings: ChoiceSettings, seed: int) -> tuple[Overlap, list[dict[str, object]]]:
    """The overlap, and rows of the table ``shared``."""
    rng = np.random.default_rng(seed)
    halvings = [_halving(found, second, settings, rng, first=not turn) for turn, second in enumerate(found.seconds)]
    measured = np.array([each.measured for each in halvings])
    layers, often, permuted = (
        Beside(measured, np.array([each.expected[name] for each in halvings]), halvings[0].draws[name])
        for name in ("layers", "often", "permuted")
    )
    circuit, choice = (np.array([getattr(each, name) for each in halvings]) for name in ("circuit", "choice"))
    return Overlap(found.task, settings.k, layers, often, permuted, circuit, choice), _shared(found, halvings[0].common)


@dataclass(frozen=True)
class _Halving:
    """One halving's figures, shares of k; ``draws`` of the first halving alone, ``common`` the neurons that are shared."""

    measured: float
    expected: dict[str, float]
    draws: dict[str, np.ndarray]
    circuit: float
    choice: float
    common: np.ndarray


def _halving(found: Chosen, second: np.ndarray, settings: ChoiceSettings, rng: np.random.Generator, *, first: bool) -> _Halving:
    k, halves = settings.k, [np.flatnonzero(second == half) for half in (False, True)]
    circuits = [best(found.activations, found.y, rows, k) for rows in halves]
    choices = [best(found.rates, found.y, rows, k) for rows in halves][::-1]  # each beside the other half's circuit
    ways = list(zip(circuits, choices, strict=True))
    tenths = [found.layer * _TENTHS + _tenths(found.rates[rows].mean(0), found.layer) for rows in halves]
    strata = {"layers": [found.layer] * 2, "often": tenths}
    expected = {
        name: float(np.mean([_expected(kind, *way) for kind, way in zip(kinds, ways, strict=True)])) / k
        for name, kinds in strata.items()
    }
    n = settings.n_permutations if first else FEW
    permuted = [_permuted(found, rows, circuit, n, rng) for circuit, rows in zip(circuits, halves[::-1], strict=True)]
    draws = {"permuted": np.mean(permuted, axis=0) / k}
    if first:
        for name, kinds in strata.items():
            drawn = [_by_chance(rng, kind, *way, settings.n_random) for kind, way in zip(kinds, ways, strict=True)]
            draws[name] = np.mean(drawn, axis=0) / k
    common = [np.intersect1d(*way) for way in ways]
    return _Halving(
        float(np.mean([len(each) for each in common])) / k,
        expected | {"permuted": float(draws["permuted"].mean())},
        draws,
        len(np.intersect1d(circuits[0], circuits[1])) / k,
        len(np.intersect1d(choices[0], choices[1])) / k,
        np.unique(np.concatenate(common)),
    )


def _permuted(found: Chosen, rows: np.ndarray, circuit: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """(n,) what a circuit shares with the choice on ``rows`` under permuted labels."""
    rates, everything = found.rates[rows], np.arange(len(rows))
    labels = permuted_label_matrix(found.y[rows], found.groups[rows], n, rng)
    return np.array([len(np.intersect1d(circuit, best(rates, y, everything, len(circuit)))) for y in labels])


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


def _expected(strata: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    """The mean of :func:`_by_chance`."""
    kinds, own = np.unique(strata[a], return_counts=True)
    hit, size = ((strata[part][:, None] == kinds).sum(0) for part in (b, slice(None)))
    return float((own * hit / size).sum())


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
        row: dict[str, object] = {"task": one.task, "k": one.k, "shared": one.layers.value}
        for name in ("layers", "often", "permuted"):
            beside: Beside = getattr(one, name)
            low, high = np.quantile(beside.draws, [0.025, 0.975])
            row |= {name: beside.null, f"{name}_low": float(low), f"{name}_high": float(high)}
        times = one.layers.value / one.layers.null if one.layers.null else np.nan
        own = {"circuit": float(one.circuit.mean()), "choice": float(one.choice.mean()), "reach": one.reach}
        rows.append(row | {"times": times} | own)
    return pd.DataFrame(rows)
