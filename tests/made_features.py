"""Activations made without a model: noise, with planted neurons that differ by class."""

from __future__ import annotations

import numpy as np

from moescope.studies.circuits.cues import read_cues
from moescope.studies.circuits.features import Columns, Features
from moescope.studies.circuits.settings import CircuitSettings
from moescope.studies.circuits.single import TaskFindings, analyse
from moescope.tasks import group_folds
from moescope.types import Example, Site, Task

QUICK = CircuitSettings(
    ks=(1, 2, 4), k=4, n_permutations=49, n_label_permutations=0, n_random=20, twin=False
)  # fmt: skip


def made_features(
    name: str,
    planted: dict[int, float],
    *,
    rows: int = 160,
    layers: int = 4,
    width: int = 16,
    n_classes: int = 2,
    seed: int = 0,
    languages: tuple[str, ...] = (),
    kind: str = "resid",
) -> Features:
    """Rows in pairs (one group each, classes in turn); ``planted`` maps a column to the gap between its class means."""
    rng = np.random.default_rng(seed)
    y, groups = np.arange(rows) % n_classes, (np.arange(rows) // n_classes).astype(str)
    x = rng.normal(size=(rows, layers * width))
    for column, gap in planted.items():
        x[:, column] += gap * (y - (n_classes - 1) / 2)
    spoken = [languages[(i // n_classes) % len(languages)] if languages else None for i in range(rows)]
    examples = tuple(
        Example(f"{name} text {i}", int(c), g, s) for i, (c, g, s) in enumerate(zip(y, groups, spoken, strict=True))
    )
    task = Task(name, examples, tuple("abcdef"[:n_classes]), source="made here")
    columns = Columns(tuple(Site(kind, i) for i in range(layers)), (width,) * layers)  # type: ignore[arg-type]
    embed = rng.normal(size=(rows, 3)).astype(np.float32)
    return Features(task, columns, x.astype(np.float32), embed, y, groups, group_folds(y, groups, 5, seed), seed)


def made_findings(features: Features, settings: CircuitSettings = QUICK) -> TaskFindings:
    return analyse(features, settings, cues=read_cues(features, None), n_layers=len(features.columns.layers))
