"""The mixed stream on the clock: one text at a time, each way of answering in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pandas as pd

from moescope.capture.activations import padded_batches
from moescope.capture.encode import Batch
from moescope.stats import group_bootstrap
from moescope.stats.intervals import jackknife, ratios_left_out
from moescope.studies.route.act import Acting
from moescope.studies.route.settings import BAG, FULL, PROBE, ROUTED, TOLD, TURNS, RouteSettings
from moescope.study.protocol import Context

Running = Callable[[int], AbstractContextManager[Callable[[Batch], Any]]]
"""Of a row: what answers it, set up before the clock starts."""


def stream_table(
    context: Context, acting: Acting, texts: Sequence[str], judge: np.ndarray, settings: RouteSettings
) -> pd.DataFrame:
    """Every way of answering on the test rows ``judge``: right, lost, layers; and on the clock, some of them in random order.

    Args:
        texts: of all rows.
    """
    n_layers, groups, seed = acting.dispatcher.model.n_layers, acting.stream.groups[judge], context.run.seed
    timed = np.random.default_rng(seed).permutation(judge)[: settings.timed_texts]
    spent = context.stage("the mixed stream, on the clock", lambda: _clocked(context, acting, texts, timed))
    found = []
    for name in (FULL, TOLD, ROUTED, BAG, PROBE):
        way = acting.ways[name]
        right = way.of("right", judge).astype(float)
        low, high = group_bootstrap(right, groups, seed=seed)
        faster = ratios_left_out(spent[FULL], spent[name])
        between = jackknife(faster)
        found.append(
            {
                "way": name,
                "told": name in (FULL, TOLD),
                "promised": way.promised,
                "setting": float(way.answers.candidates[way.place]),
                "n": len(judge),
                "accuracy": float(right.mean()),
                "low": low,
                "high": high,
                "lost": float(way.of("lost", judge).mean()),
                "share": float(way.of("layers", judge).mean() / n_layers),
                "texts": len(timed),
                "milliseconds": 1e3 * float(spent[name].mean()),
                "speedup": float(faster[-1]),
                "speedup_low": between[0],
                "speedup_high": between[1],
            }
        )
    return pd.DataFrame(found)


def frontier_table(acting: Acting, judge: np.ndarray, settings: RouteSettings) -> pd.DataFrame:
    """Every way of answering at every confidence or depth that it may be run at: layers run and test rows lost."""
    n_layers, found = acting.dispatcher.model.n_layers, []
    for name in (ROUTED, TOLD, BAG, PROBE):
        way = acting.ways[name]
        lost, share = way.answers.lost[judge].mean(0), way.answers.layers[judge].mean(0) / n_layers
        # neighbours that leave the same rows at the same layers are one point
        new = np.ones(len(lost), bool)
        new[1:] = (np.diff(lost) != 0) | (np.diff(share) != 0)
        for place in np.flatnonzero(new | (np.arange(len(lost)) == way.place)):
            at = {"way": name, "setting": float(way.answers.candidates[place]), "used": bool(place == way.place)}
            found.append(at | {"share": float(share[place]), "lost": float(lost[place]), "risk": settings.risk})
    return pd.DataFrame(found)


def _clocked(context: Context, acting: Acting, texts: Sequence[str], timed: np.ndarray) -> dict[str, np.ndarray]:
    """Of each way (n,) seconds for each text; a bag of words reads it anew, ids are there for all."""
    dispatcher, task = acting.dispatcher, acting.stream.task
    bag, routed = acting.runners[BAG]
    told, probe = acting.runners[TOLD], acting.runners[PROBE]
    encoded = dispatcher.encode([texts[i] for i in timed])
    ways: dict[str, Running] = {
        FULL: lambda i: told[task[i]].full.running(),
        TOLD: lambda i: told[task[i]].running(),
        ROUTED: lambda i: dispatcher.running(),
        BAG: lambda i: routed[int(bag.predict([texts[i]])[0])].running(),
        PROBE: lambda i: probe.running(),
    }
    spent = {name: np.zeros((len(timed), TURNS)) for name in ways}
    names = list(ways)
    for number, row in enumerate(timed):
        (batch,) = padded_batches(dispatcher.model, encoded.rows(number, number + 1), context.run.batch_tokens, "right")
        for turn in range(TURNS + (number == 0)):  # the first of a process sets up what later ones reuse
            for place in range(len(names)):
                name = names[(place + turn + number) % len(names)]
                with ways[name](int(row)) as run:
                    began = time.perf_counter()
                    if name == BAG:
                        bag.predict([texts[row]])
                    run(batch)
                    spent[name][number, turn % TURNS] = time.perf_counter() - began
        context.tell("the mixed stream, on the clock", number + 1, len(timed))
    return {name: np.median(seconds, axis=1) for name, seconds in spent.items()}
