"""What leaving early is worth on the clock, beside what the layers left out would give."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from moescope.capture.activations import padded_batches
from moescope.capture.encode import Batch, Encoded
from moescope.models import LoadedModel
from moescope.runtime.exit.classifier import ExitClassifier
from moescope.stats.intervals import jackknife, ratios_left_out
from moescope.study.run import Counter
from moescope.types import Site

_TURNS = 3
"""Times that every contender runs a batch; the median counts, so that a stall of the machine in one of them does not."""


@dataclass(frozen=True)
class Timed:
    """What was measured, and the pass with every head asked on which the layers are weighed."""

    rows: list[dict[str, Any]]
    """table ``speed`` without the task"""
    texts: np.ndarray
    """(N,) int64: the texts that were timed, in the order of ``ends`` where each runs by itself"""
    ends: np.ndarray
    """(batches, L + 1) float64: seconds from the start of a batch until its first layer, and until the end of each, its head
    asked"""


def measure(
    contenders: Mapping[str, ExitClassifier],
    encoded: Encoded,
    batch: int,
    *,
    seconds: float,
    batch_tokens: int = 8192,
    seed: int = 0,
    progress: Counter | None = None,
) -> Timed:
    """Time contenders on the same texts, ``batch`` of them given at a time; the first is what the others are compared with.

    Texts go through in the product's own batches, in random order, as many as ``seconds`` suffice for. Each batch runs whole
    once with every head asked, which notes when each layer ends: a contender's share is of that time, not of layers times
    tokens, since a layer has costs that no token shares (its weights are read once a batch). Then contenders take turns on it,
    each beginning in turn, and once more while the time inside their layers is noted. A speed-up is one of sums over batches;
    its interval is from leaving out each batch, and so of the texts as well as of the clock.
    """
    names = list(contenders)
    first = contenders[names[0]]
    asking = dataclasses.replace(first, checks=tuple(range(first.model.n_layers)), threshold=float("inf"))
    batches = _batches(first.model, encoded, batch, batch_tokens, seed)
    _run(asking, batches[0])  # the first pass of a process sets up what later ones reuse
    began = time.perf_counter()
    kept: list[Batch] = []
    passes: list[_Pass] = []
    spent: list[np.ndarray] = []  # of each batch (contenders, turns)
    left_out: list[list[float]] = []
    inside: list[list[float]] = []  # of each batch and contender, share of a pass in its layers and before them
    for number, one in enumerate(batches):
        whole, _ = _noted(asking, one)
        layers = np.diff(whole.ends)
        took = np.zeros((len(names), _TURNS))
        for turn in range(_TURNS):
            for place in range(len(names)):
                which = (place + turn + number) % len(names)
                took[which, turn], _ = _run(contenders[names[which]], one)
        noted = [_noted(contenders[name], one) for name in names[1:]]
        kept.append(one)
        passes.append(whole)
        spent.append(took)
        inside.append([whole.inside / whole.ends[-1], *(found.inside / found.ends[-1] for found, _ in noted)])
        left_out.append([0.0, *(float(np.mean([layers[d:].sum() for d in depth])) for _, depth in noted)])
        if progress is not None:
            progress(number + 1, len(batches))
        if (time.perf_counter() - began) * (number + 2) / (number + 1) > seconds:
            break
    ends = np.stack([found.ends for found in passes])
    middle = np.median(np.stack(spent), axis=2)  # (batches, contenders)
    weighed = np.diff(ends, axis=1).sum(1)  # (batches,) seconds of all layers
    run = 1 - np.array(left_out) / weighed[:, None]  # (batches, contenders) of those seconds
    texts = np.concatenate([one.numbers for one in kept]).astype(np.int64)
    rows = []
    for which, name in enumerate(names):
        share = ratios_left_out(run[:, which] * weighed, weighed)
        faster = ratios_left_out(middle[:, 0], middle[:, which])
        reached = faster * share
        rows.append(
            {
                "contender": name,
                "batch": batch,
                "texts": len(texts),
                "batches": len(kept),
                "turns": _TURNS,
                "milliseconds": 1e3 * float(middle[:, which].sum()) / len(texts),
                "speedup": faster[-1],
                "low": jackknife(faster)[0],
                "high": jackknife(faster)[1],
                "share": share[-1],
                "layer_speedup": 1 / share[-1],
                "of_layers": reached[-1],
                "of_layers_low": jackknife(reached)[0],
                "of_layers_high": jackknife(reached)[1],
                "inside": float(np.average(np.array(inside)[:, which], weights=middle[:, which])),
                "outside": float(ends[:, 0].sum() / ends[:, -1].sum()),
            }
        )
    return Timed(rows, texts, ends)


def _batches(model: LoadedModel, encoded: Encoded, at_once: int, batch_tokens: int, seed: int) -> list[Batch]:
    """Of every ``at_once`` texts those that run together, in random order."""
    parts = (encoded.rows(i, min(i + at_once, len(encoded))) for i in range(0, len(encoded), at_once))
    found = [one for part in parts for one in padded_batches(model, part, batch_tokens, "right")]
    return [found[i] for i in np.random.default_rng(seed).permutation(len(found))]


class _Pass(NamedTuple):
    """When a batch's layers ran, in seconds from its start."""

    ends: np.ndarray
    """(n + 1,) float64: until the first of the n layers that it ran, and until the end of each, its head asked"""
    inside: float
    """in the layers, on the batch as it was cut by then, and in what the body does before the first"""


def _noted(classifier: ExitClassifier, batch: Batch) -> tuple[_Pass, np.ndarray]:
    """A pass of which the layers are noted, and how many of them each row took (B,)."""
    with classifier.running() as run, _noting(classifier.model) as (starts, stops):
        began = time.perf_counter()
        depth = run(batch).depth
        end = time.perf_counter()
    body, *layers = starts
    return _Pass(np.array([*layers, end]) - began, layers[0] - body + float(np.sum(np.subtract(stops, layers)))), depth


@contextmanager
def _noting(model: LoadedModel) -> Iterator[tuple[list[float], list[float]]]:
    """When the body and each layer begins, after all that is hooked on it, and when each layer ends, before that."""
    starts: list[float] = []
    stops: list[float] = []
    layers: Sequence[nn.Module] = [model.structure.taps[Site("resid", i)].module for i in range(model.n_layers)]
    handles = [one.register_forward_pre_hook(lambda *_: starts.append(time.perf_counter())) for one in (model.body, *layers)]
    handles += [one.register_forward_hook(lambda *_: stops.append(time.perf_counter()), prepend=True) for one in layers]
    try:
        yield starts, stops
    finally:
        for handle in handles:
            handle.remove()


def _run(classifier: ExitClassifier, batch: Batch) -> tuple[float, np.ndarray]:
    """Seconds for a batch, and how many layers each of its rows took (B,)."""
    with classifier.running() as run:
        began = time.perf_counter()
        depth = run(batch).depth
        return time.perf_counter() - began, depth
