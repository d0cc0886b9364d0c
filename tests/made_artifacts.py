"""Small artifacts that tests save, damage and read."""

from __future__ import annotations

import numpy as np

from moescope.models import LoadedModel
from moescope.runtime.exit.classifier import ExitClassifier
from moescope.runtime.exit.heads import Heads
from moescope.runtime.exit.rule import Guarantee
from moescope.runtime.monitor import MonitorCascade, Promise, Score, Thresholds
from moescope.runtime.route.router import source_sites
from moescope.studies.distill.spec import StudentSpec
from moescope.studies.distill.students import LayerShape, Student


def exit_classifier(model: LoadedModel, sign: int = 1) -> ExitClassifier:
    """Circuit heads of random weights, with a guarantee; ``sign=-1`` is one that answers the contrary."""
    rng, n, width = np.random.default_rng(0), model.n_layers, model.d_model
    weight = tuple((sign * rng.standard_normal((2, 3))).astype(np.float32) for _ in range(n))
    bias = tuple(rng.standard_normal(2).astype(np.float32) for _ in range(n))
    columns = tuple(np.sort(rng.choice((i + 1) * width, 3, replace=False)).astype(np.int64) for i in range(n))
    promise = Guarantee(0.7, 0.05, 0.05, "accuracy", "ltt", 60, 0.01)
    heads = Heads("circuit", weight, bias, columns)
    return ExitClassifier(model, heads, ("a", "b"), 0.7, tuple(range(n)), promise, "t", 50)


def student(seed: int = 0) -> Student:
    """Experts beside shared neurons, gated."""
    spec = StudentSpec(kind="moe", shared=4, experts=16, active=2, rank=4)
    return Student(spec, LayerShape(12, 10, "silu", True), seed=seed)


def monitor(model: LoadedModel, threshold: float = 0.0) -> MonitorCascade:
    """The experts of layer 0 decide what is plain, the residual stream after it the rest."""
    routers = sum(model.width(site) for site in source_sites(model, "routing", 0))
    scores = [Score(np.ones(width), 0.5) for width in (routers, model.d_model)]
    return MonitorCascade(model, "code", 0, *scores, Thresholds(-1.0, np.inf, threshold), Promise(0.1, 0.1, 48, 0))
