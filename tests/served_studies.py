"""A small model, and a folder with every kind of study of it, as a server is started with them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

import moescope
from moescope.models import LoadedModel
from moescope.runtime.exit.classifier import ExitClassifier
from moescope.runtime.exit.heads import Heads
from moescope.server import Served, gather
from moescope.types import Example, Task
from tests.planted_llama import planted_llama, planted_task

QUICK: dict[str, Any] = {"n_permutations": 19, "n_label_permutations": 0, "n_random": 20, "twin": False, "ks": (2,), "k": 3}


def few_words(rows: int = 200) -> Task:
    """Texts of w0 to w4 only, so that a router can tell them from those of all words."""
    texts = [" ".join(f"w{(i * j) % 5}" for j in range(3, 9 + i % 3)) for i in range(rows)]
    return Task("few", tuple(Example(t, i % 2, str(i)) for i, t in enumerate(texts)), ("a", "b"), "made here")


def wandering(model: LoadedModel) -> ExitClassifier:
    """Random heads, so that texts leave at every depth: at each about a third of those that are left."""
    rng, n = np.random.default_rng(0), model.n_layers
    weight = tuple(rng.standard_normal((3, model.d_model)).astype(np.float32) for _ in range(n))
    heads = Heads("pooled", weight, tuple(np.zeros(3, np.float32) for _ in range(n)), None)
    return ExitClassifier(model, heads, ("x", "y", "z"), 0.93, tuple(range(n)), task="wandering")


def save_studies(folder: Path) -> Path:
    """``folder/exit``, ``folder/route`` and ``folder/circuits`` of ``planted_llama()``, as the commands save them."""
    model, planted = planted_llama(), planted_task(rows=600)
    exits = moescope.exit(model, [planted], moescope.ExitSettings(risk=0.05, k=3, timed_texts=4, margin=0.06))
    exits.save(folder / "exit", figures=False)
    dataclasses.replace(wandering(model), template="Say: {one}\nAnd: {two}").write(folder / "exit" / "exit" / "wandering")
    routed = moescope.route(model, [planted, few_words()], moescope.RouteSettings(unknown=0.1))
    routed.save(folder / "route", figures=False)
    save_circuits(folder)
    return folder


def save_circuits(folder: Path) -> Path:
    """``folder/circuits`` alone."""
    found = moescope.circuits(planted_llama(), [planted_task(rows=600)], moescope.CircuitSettings(**QUICK))
    found.save(folder / "circuits", figures=False)
    return folder / "circuits"


def serve_studies(folder: Path, **options: Any) -> Served:
    folders: dict[str, Any] = {"exits": [folder / "exit"], "route": folder / "route", "circuits": folder / "circuits"}
    return gather(planted_llama(), **folders, **options)
