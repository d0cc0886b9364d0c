"""What leaving early is worth on the clock, beside what the share of layers would give."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from statistics import median
from typing import Any

import numpy as np

from moescope.capture.encode import Batch, Encoded, pad
from moescope.models.inputs import padding_id
from moescope.runtime.exit.classifier import ExitClassifier
from moescope.study.run import Counter


def measure(
    contenders: Mapping[str, ExitClassifier],
    encoded: Encoded,
    batch: int,
    *,
    repeats: int = 3,
    progress: Counter | None = None,
) -> list[dict[str, Any]]:
    """Time contenders on the same texts, ``batch`` rows at a time; the first is what the others are compared with.

    Contenders are interleaved, each turn beginning with another, after one turn that warms up; a speed-up is the median of
    those within a turn.

    Returns:
        Table ``speed`` without the task.
    """
    order = np.argsort(-encoded.lengths, kind="stable")
    fill = padding_id(next(iter(contenders.values())).model)
    batches = [pad(encoded, order[i : i + batch], pad_id=fill) for i in range(0, len(order), batch)]
    names = list(contenders)
    spent: dict[str, list[float]] = {name: [] for name in names}
    share: dict[str, float] = {}
    for turn in range(-1, repeats):
        for place in range(len(names)):
            name = names[(place + turn) % len(names)]
            seconds, share[name] = _run(contenders[name], batches)
            if turn >= 0:
                spent[name].append(seconds)
        if progress is not None:
            progress(turn + 2, repeats + 1)
    first = names[0]
    rows = []
    for name in names:
        turns = [a / b for a, b in zip(spent[first], spent[name], strict=True)]
        speedup = median(turns)
        layer_speedup = share[first] / share[name]
        rows.append(
            {
                "contender": name,
                "batch": batch,
                "milliseconds": 1e3 * median(spent[name]) / len(encoded),
                "speedup": speedup,
                "share": share[name],
                "layer_speedup": layer_speedup,
                "of_layers": speedup / layer_speedup,
                "slowest": min(turns),
                "fastest": max(turns),
            }
        )
    return rows


def _run(classifier: ExitClassifier, batches: list[Batch]) -> tuple[float, float]:
    """Seconds for all batches, and the share of the full model's layers times padded tokens that was run."""
    with ExitStack() as stack:
        run = stack.enter_context(classifier.running())
        began = time.perf_counter()
        depths = [run(batch).depth for batch in batches]
        seconds = time.perf_counter() - began
    widths = [batch.ids.shape[1] for batch in batches]
    ran = sum(width * int(depth.sum()) for width, depth in zip(widths, depths, strict=True))
    return seconds, ran / (classifier.model.n_layers * sum(w * len(d) for w, d in zip(widths, depths, strict=True)))
