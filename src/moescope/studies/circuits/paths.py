"""Does a circuit act on another, or a column's lower layers on its upper ones? Change the senders, and watch the receivers.

The senders' values are replaced at the final token, and the model runs on, so that a change arrives by every path, direct and
indirect (path patching without a choice of path: Wang et al. 2023, arXiv 2211.00593; Goldowsky-Dill et al. 2023, arXiv
2304.05969). An effect is the mean over texts and receivers of |change| in units of the receiver's standard deviation. Of a
residual coordinate most of it is the coordinate itself, which the skip connection carries: what arrives *through blocks* is the
change less what was put in below.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from moescope.intervene.matched import STREAM, matched_sets
from moescope.intervene.neuron_sets import NeuronSets
from moescope.intervene.replicas import Reading
from moescope.intervene.watched_sets import WatchedSets
from moescope.studies.circuits.causal_values import change_sizes, task_replacement
from moescope.studies.circuits.halves import Halved
from moescope.studies.circuits.settings import CircuitSettings
from moescope.studies.circuits.trial import Trial
from moescope.study.paired import beyond_sets, interval_over
from moescope.study.protocol import Context
from moescope.types import Neuron, Site

if TYPE_CHECKING:
    from torch import Tensor

    from moescope.models import LoadedModel

OWN, COLUMN, PATHWAY = "own", "column", "pathway"
PATH_MARGIN = 0.1
"""Smallest effect that counts, in the receiver's standard deviations."""


@dataclass(frozen=True)
class _Route:
    """Receivers of one kind: of the circuit first, then of each random set."""

    kind: str
    target: str
    receivers: list[list[Neuron]]


def path_table(model: LoadedModel, halves: Sequence[Halved], settings: CircuitSettings, context: Context) -> pd.DataFrame:
    """The table ``paths``: from each task's circuit to the other tasks', from its lowest layer to its others, and along its
    columns, on texts of the task that did not rank it.
    """
    assert settings.paths is not None
    rows: list[dict[str, Any]] = []
    circuits = {task.name: [task.columns.neuron(int(c)) for c in task.ranking[: settings.k]] for task in halves}
    for turn, task in enumerate(halves):
        own = circuits[task.name]
        norms = change_sizes(settings.paths, task.trial.vectors, task.trial.split)
        seeds = count(10**6 * turn + context.run.seed)

        def drawn(neurons: Sequence[Neuron], seeds: Iterator[int] = seeds, norms: Any = norms) -> list[list[Neuron]]:
            others = matched_sets(neurons, norms, n_sets=settings.path_random, seed=next(seeds))
            return [list(neurons), *others]

        senders = drawn(own)
        shared = sum(bool(set(own) & set(members)) for members in senders[1:])
        said = f"{shared} of {len(senders) - 1} random sets hold a neuron of the circuit"
        context.control(f"{task.name}: random senders", differs=shared == 0, evidence=said)
        lowest = min(n.site.layer for n in own)
        routes = [
            _Route(PATHWAY, name, [_above(members, lowest) for members in drawn(other)])
            for name, other in circuits.items()
            if name != task.name
        ]
        rows += _followed(model, task, senders, routes, settings, context)
        first = [[n for n in members if n.site.layer == lowest] for members in senders]
        later = _Route(OWN, task.name, [_above(members, lowest) for members in senders])
        rows += _followed(model, task, first, [later], settings, context)
        lower, upper = _column(own)
        if lower:
            columns = drawn([*lower, *upper])
            above = _Route(COLUMN, task.name, [members[len(lower) :] for members in columns])
            rows += _followed(model, task, [members[: len(lower)] for members in columns], [above], settings, context)
    return pd.DataFrame(rows)


def _above(neurons: Sequence[Neuron], layer: int) -> list[Neuron]:
    return [n for n in neurons if n.site.layer > layer]


def _column(circuit: Sequence[Neuron]) -> tuple[list[Neuron], list[Neuron]]:
    """Of the stream's coordinates that the circuit holds in several layers, the lowest neuron of each, and the others."""
    layers: dict[int, list[Neuron]] = {}
    for neuron in sorted(circuit, key=lambda n: n.site.layer):
        if neuron.site.kind in STREAM:
            layers.setdefault(neuron.index, []).append(neuron)
    several = [members for members in layers.values() if len(members) > 1]
    return [members[0] for members in several], [n for members in several for n in members[1:]]


def _followed(
    model: LoadedModel,
    task: Halved,
    senders: list[list[Neuron]],
    routes: Sequence[_Route],
    settings: CircuitSettings,
    context: Context,
) -> list[dict[str, Any]]:
    routes = [route for route in routes if route.receivers[0]]
    if not routes:
        return []
    trial, mode = task.trial, settings.paths
    assert mode is not None
    sites = dict.fromkeys(n.site for members in senders for n in members)
    values = task_replacement(
        mode, {site: trial.vectors[site] for site in sites}, trial.split, np.random.default_rng([context.run.seed, 6])
    )
    watched = [[n for route in routes for n in route.receivers[i]] for i in range(len(senders))]
    sets = WatchedSets(NeuronSets(model, senders, values), watched, len(trial.evaluated))
    with context.tokens.of(model, "paths"):
        replicas = trial.replicas(batch_tokens=context.run.batch_tokens)
        replicas.run(sets, _nothing, context.counter(f"{task.name}: following paths"))
    changed, skipped = _changes(trial, senders, watched, sets.values, {site: v.numpy() for site, v in values.items()})
    rows, start = [], 0
    for route in routes:
        part = slice(start, start + len(route.receivers[0]))
        start = part.stop
        rows.append(_row(task, route, len(senders[0]), changed[:, :, part], skipped[:, :, part], context.run.seed))
    return rows


def _nothing(reading: Reading) -> dict[str, Tensor]:
    return {}


def _changes(
    trial: Trial,
    senders: Sequence[Sequence[Neuron]],
    watched: Sequence[Sequence[Neuron]],
    values: np.ndarray,
    replacement: dict[Site, np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """(S, N, M) changes of the receivers, and what of them the skip connection carried, in standard deviations."""
    changed, skipped = np.empty(values.shape), np.zeros(values.shape)
    for i, receivers in enumerate(watched):
        for j, neuron in enumerate(receivers):
            spread = float(trial.vectors[neuron.site][:, neuron.index].std()) + 1e-12
            changed[i, :, j] = (values[i, :, j] - trial.judged[neuron.site][:, neuron.index]) / spread
            below = [
                n for n in senders[i] if n.index == neuron.index and n.site.kind in STREAM and n.site.layer < neuron.site.layer
            ]
            if neuron.site.kind in STREAM and below:  # a higher one was replaced after a lower one
                last = max(below, key=lambda n: n.site.layer)
                put = replacement[last.site][..., last.index] - trial.judged[last.site][:, last.index]
                skipped[i, :, j] = put / spread
    return changed, skipped


def _row(task: Halved, route: _Route, n_senders: int, changed: np.ndarray, skipped: np.ndarray, seed: int) -> dict[str, Any]:
    """A row of the table ``paths``; what decides is the whole change, and along a column what came through blocks."""
    groups = task.trial.groups
    whole, blocks = np.abs(changed).mean(2), np.abs(changed - skipped).mean(2)  # (S, N)
    decides = blocks if route.kind == COLUMN else whole
    found = beyond_sets(decides[0], decides[1:], groups, "", PATH_MARGIN, seed)
    low, high = interval_over(decides[0], groups, seed)
    return {
        "source": task.name,
        "target": route.target,
        "kind": route.kind,
        "senders": n_senders,
        "receivers": len(route.receivers[0]),
        "whole": float(whole[0].mean()),
        "skip": float(np.abs(skipped[0]).mean()),
        "blocks": float(blocks[0].mean()),
        "low": low,
        "high": high,
        "random": float(decides[1:].mean()),
        "random_low": float(np.quantile(decides[1:].mean(1), 0.025)),
        "random_high": float(np.quantile(decides[1:].mean(1), 0.975)),
        "gap": found.value,
        "gap_low": found.low,
        "gap_high": found.high,
        "p": float(found.p or 0.0),
        "n_random": len(decides) - 1,
        "n": len(groups),
    }
