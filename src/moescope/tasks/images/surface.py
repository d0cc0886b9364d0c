"""What the surface of images alone scores: mean colour and its variance, size, file type, JPEG quality, a thumbnail.

Sets of real and of generated images often differ in how their files were made; a classifier that reads that knows nothing of
what is shown. The cues are learnt and judged as those of texts are (:mod:`moescope.tasks.surface`).
"""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from moescope.tasks.images.task import ImageTask
from moescope.tasks.predictors import Predictor, by_threshold, by_value

_BRIGHTNESS = 4  # bins in which rows are matched
_NO_TABLE = -1.0


def image_cues(task: ImageTask) -> dict[str, Predictor]:
    """Each trivial cue of a task of images by name."""
    rows = task.surfaces()
    n_classes = len(task.classes)
    mean, spread = np.array([r.mean for r in rows]), np.array([r.spread for r in rows])
    size = np.array([f"{r.width} × {r.height}" for r in rows])
    kind = np.array([r.kind for r in rows])
    quality = np.array([_NO_TABLE if r.table is None else r.table for r in rows])
    nbytes = np.array([float(r.nbytes) for r in rows])
    cues = {"majority class": by_value(np.zeros(len(rows)))}
    cues |= {f"mean {name}": by_threshold(mean[:, i], n_classes) for i, name in enumerate(("red", "green", "blue"))}
    return cues | {
        "mean brightness": by_threshold(mean.mean(1), n_classes),
        "variance of brightness": by_threshold(spread.mean(1), n_classes),
        "number of greys": by_threshold(np.array([float(r.shades) for r in rows]), n_classes),
        "image size": by_value(size),
        "pixels": by_threshold(np.array([float(r.width * r.height) for r in rows]), n_classes),
        "file size": by_threshold(nbytes, n_classes),
        "file type": by_value(kind),
        "JPEG quality": by_threshold(quality, n_classes),
        "colours and their variances": _linear(np.hstack([mean, spread])),
        "thumbnail": _linear(np.array([r.thumbnail for r in rows])),
    }


def image_matched(task: ImageTask, seed: int) -> np.ndarray:
    """Indices (sorted, int64) of a subset in which type, size, JPEG quality and brightness say nothing about the class: of
    each cell of rows that agree on them (brightness in quarters) as many of every class, drawn with ``seed``."""
    rows = task.surfaces()
    y = np.array([e.label for e in task.examples])
    light = np.array([np.mean(r.mean) for r in rows])
    edges = np.unique(np.quantile(light, np.linspace(0, 1, _BRIGHTNESS + 1)[1:-1]))
    quarter = np.searchsorted(edges, light)
    names = [f"{r.kind} {r.width} {r.height} {r.table} {q}" for r, q in zip(rows, quarter, strict=True)]
    cell = np.unique(names, return_inverse=True)[1]
    rng = np.random.default_rng(seed)
    chosen: list[np.ndarray] = []
    for c in range(int(cell.max()) + 1):
        members = [np.flatnonzero((cell == c) & (y == label)) for label in range(len(task.classes))]
        take = min(len(m) for m in members)
        chosen += [rng.choice(m, take, replace=False) for m in members if take]
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, dtype=np.int64)


def _linear(x: np.ndarray) -> Predictor:
    """Logistic regression, standardised on the rows that train."""

    def predict(train: np.ndarray, held: np.ndarray, y: np.ndarray) -> np.ndarray:
        scale = StandardScaler().fit(x[train])
        model = LogisticRegression(C=1.0, max_iter=300, tol=1e-3).fit(scale.transform(x[train]), y[train])
        return np.asarray(model.predict(scale.transform(x[held])))

    return predict
