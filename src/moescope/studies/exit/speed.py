"""What leaving early is worth on the clock, beside what the layers left out would give."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t as student

from moescope.capture.activations import padded_batches
from moescope.capture.encode import Batch, Encoded
from moescope.models import LoadedModel
from moescope.runtime.exit.classifier import ExitClassifier
from moescope.study.run import Counter
from moescope.types import Site

_TURNS = 5
"""Times that every contender runs: the interval of a speed-up is from these, by Student's t on its logarithm."""
_COST = 0.7
"""Of a contender in full passes, as a guess before it has run: one goes whole, the others leave a part out."""


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

    Texts go through in the product's own batches. A first pass, which also warms up, runs whole with every head asked and
    notes when each layer ends: a contender's share is of that time, not of layers times tokens, since a layer has costs that
    no token shares (its weights are read once a batch). It takes batches, in random order, for as long as the turns that
    follow will fit into ``seconds`` by its pace; the others are left out. Then contenders take turns batch by batch, each
    beginning in turn; a speed-up is the geometric mean of those of the turns.
    """
    names = list(contenders)
    first = contenders[names[0]]
    asking = dataclasses.replace(first, checks=tuple(range(first.model.n_layers)), threshold=float("inf"))
    kept, ends = _kept(
        asking, _batches(first.model, encoded, batch, batch_tokens, seed), seconds / (1 + _TURNS * _COST * len(names))
    )
    if progress is not None:
        progress(1, _TURNS + 1)
    spent = np.zeros((len(names), _TURNS))
    layers = np.diff(ends, axis=1)
    ran = np.zeros(len(names))
    for turn in range(_TURNS):
        for number, one in enumerate(kept):
            for place in range(len(names)):
                which = (place + turn + number) % len(names)
                took, depth = _run(contenders[names[which]], one)
                spent[which, turn] += took
                if turn == 0:
                    ran[which] += sum(layers[number, :d].sum() for d in depth) / len(depth)
        if progress is not None:
            progress(turn + 2, _TURNS + 1)
    share = ran / layers.sum()
    texts = np.concatenate([one.numbers for one in kept]).astype(np.int64)
    outside = float(ends[:, 0].sum() / ends[:, -1].sum())
    half = float(student.ppf(0.975, _TURNS - 1)) / np.sqrt(_TURNS)
    rows = []
    for which, name in enumerate(names):
        logs = np.log(spent[0] / spent[which])
        middle, error = float(logs.mean()), float(half * logs.std(ddof=1))
        rows.append(
            {
                "contender": name,
                "batch": batch,
                "texts": len(texts),
                "turns": _TURNS,
                "milliseconds": 1e3 * float(np.median(spent[which])) / len(texts),
                "speedup": float(np.exp(middle)),
                "low": float(np.exp(middle - error)),
                "high": float(np.exp(middle + error)),
                "share": float(share[which]),
                "layer_speedup": float(share[0] / share[which]),
                "of_layers": float(np.exp(middle) * share[which] / share[0]),
                "outside": outside,
            }
        )
    return Timed(rows, texts, ends)


def _batches(model: LoadedModel, encoded: Encoded, at_once: int, batch_tokens: int, seed: int) -> list[Batch]:
    """Of every ``at_once`` texts those that run together, in random order."""
    parts = (encoded.rows(i, min(i + at_once, len(encoded))) for i in range(0, len(encoded), at_once))
    found = [one for part in parts for one in padded_batches(model, part, batch_tokens, "right")]
    return [found[i] for i in np.random.default_rng(seed).permutation(len(found))]


def _kept(asking: ExitClassifier, batches: list[Batch], seconds: float) -> tuple[list[Batch], np.ndarray]:
    """The batches that ``seconds`` suffice for, one at least, and when their layers end (batches, L + 1)."""
    _run(asking, batches[0])  # the first pass of a process sets up what later ones reuse
    began, kept, ends = time.perf_counter(), [], []
    for one in batches:
        with asking.running() as run, _noting(asking.model) as noted:
            start = time.perf_counter()
            run(one)
            noted.append(time.perf_counter())
        kept.append(one)
        ends.append(np.array(noted) - start)
        if time.perf_counter() - began > seconds:
            break
    return kept, np.stack(ends)


@contextmanager
def _noting(model: LoadedModel) -> Iterator[list[float]]:
    """When the first layer begins, and when each but the last ends: the caller adds that one, since the pass stops there."""
    layers = [model.structure.taps[Site("resid", i)].module for i in range(model.n_layers)]
    noted: list[float] = []
    handles = [layers[0].register_forward_pre_hook(lambda *_: noted.append(time.perf_counter()))]
    handles += [layer.register_forward_hook(lambda *_: noted.append(time.perf_counter())) for layer in layers[:-1]]
    try:
        yield noted
    finally:
        for handle in handles:
            handle.remove()


def _run(classifier: ExitClassifier, batch: Batch) -> tuple[float, np.ndarray]:
    """Seconds for a batch, and how many layers each of its rows took (B,)."""
    with classifier.running() as run:
        began = time.perf_counter()
        depth = run(batch).depth
        return time.perf_counter() - began, depth
