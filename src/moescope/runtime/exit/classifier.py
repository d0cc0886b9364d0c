"""A classifier that stops: a text leaves the model as soon as the head at its depth is confident enough."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from torch import Tensor

from moescope.capture.activations import padded_batches
from moescope.capture.encode import Batch, Encoded, encode
from moescope.errors import InputError
from moescope.runtime.exit.asked import Asked, Passing
from moescope.runtime.exit.heads import Heads
from moescope.runtime.exit.layers import Stepper, check_leaving, stepping
from moescope.runtime.exit.rule import Guarantee, finite, stored_guarantee
from moescope.study.artifacts import write_artifact

if TYPE_CHECKING:
    from moescope.models import LoadedModel


class Exits(NamedTuple):
    """What came out for N texts."""

    probability: np.ndarray
    """(N, C) float32"""
    depth: np.ndarray
    """(N,) int64: layers that were run, 1..L"""


@dataclasses.dataclass(frozen=True, eq=False)
class ExitClassifier:
    """Classifies texts with as many layers of a model as each needs; the interface is that of scikit-learn's classifiers.

    ``checks`` are the layers (from 0) after which a row may leave; after the last it always does. ``threshold`` is the
    confidence asked for; ``guarantee`` says what it promises, None where it was set by hand. ``template`` is the
    format string by which a row's fields became the texts it was fitted on; None: not known.

    Raises:
        InputError: a layer out of range, heads of another model, or an architecture whose rows cannot leave a batch.
    """

    model: LoadedModel
    heads: Heads
    classes: tuple[str, ...]
    threshold: float
    checks: tuple[int, ...]
    guarantee: Guarantee | None = None
    task: str = ""
    max_tokens: int | None = None
    template: str | None = None

    def __post_init__(self) -> None:
        n_layers, width = self.model.n_layers, self.model.d_model
        if self.heads.n_layers != n_layers or (self.heads.columns is None and self.heads.weight[0].shape[1] != width):
            raise InputError(
                f"these exit heads are for {self.heads.n_layers} layers, but {self.model.name} has {n_layers} of width {width}"
            )
        check_layers(self.checks, n_layers)
        check_leaving(self.model)

    @property
    def classes_(self) -> np.ndarray:
        """(C,) str."""
        return np.array(self.classes)

    def predict(self, texts: Sequence[str] | Encoded) -> np.ndarray:
        """(N,) str: the class of each text."""
        return np.asarray(self.classes_[self.run(texts).probability.argmax(1)])

    def predict_proba(self, texts: Sequence[str] | Encoded) -> np.ndarray:
        """(N, C) float32: by the head at which each text left."""
        return self.run(texts).probability

    def exit_depth(self, texts: Sequence[str] | Encoded) -> np.ndarray:
        """(N,) int64: how many layers each text needs, 1..L."""
        return self.run(texts).depth

    def run(self, texts: Sequence[str] | Encoded, *, batch_tokens: int = 8192) -> Exits:
        """All of it in one pass.

        Raises:
            InputError: an empty text.
        """
        encoded = encode(self.model, texts, max_tokens=self.max_tokens)
        probability = np.empty((len(encoded), len(self.classes)), np.float32)
        depth = np.empty(len(encoded), np.int64)
        with self.running() as run:
            for batch in padded_batches(self.model, encoded, batch_tokens, "right"):
                probability[batch.rows], depth[batch.rows] = run(batch)
        return Exits(probability, depth)

    @contextmanager
    def running(self) -> Iterator[_Run]:
        """``with classifier.running() as run: run(batch)``: for callers who make their batches (right padding) themselves."""
        with stepping(self.model) as stepper:
            yield _Run(self, stepper)

    def asked(self) -> Asked:
        """Its heads at work, where the model is."""
        return Asked(self.model, self.heads, self.threshold, self.checks)

    def fixed(self, layer: int) -> ExitClassifier:
        """The same heads, every row leaving after ``layer``; the last layer gives the full-depth model."""
        return dataclasses.replace(self, checks=(layer,), threshold=0.0, guarantee=None)

    @property
    def full(self) -> ExitClassifier:
        """The full-depth model that the guarantee compares with."""
        return self.fixed(self.model.n_layers - 1)

    def write(self, folder: Path, /) -> Path:
        """Write ``exit.safetensors`` into ``folder``, which is made where it is absent; for
        :func:`~moescope.runtime.exit.store.load_exit`.

        Raises:
            InputError: the folder cannot be written to.
        """
        heads = self.heads
        arrays = {f"{part}.{i}": a for part in ("weight", "bias") for i, a in enumerate(getattr(heads, part))}
        arrays |= {f"columns.{i}": a for i, a in enumerate(heads.columns or ())}
        fields = {
            "task": self.task,
            "classes": self.classes,
            "kind": heads.kind,
            "layers": heads.n_layers,
            "threshold": finite(self.threshold),
            "checks": self.checks,
            "max_tokens": self.max_tokens,
            "template": self.template,
            "guarantee": stored_guarantee(self.guarantee),
        }
        return write_artifact(folder, "exit", self.model, arrays, fields)


def check_layers(layers: Sequence[int], n_layers: int) -> None:
    """Raises InputError for a layer that the model does not have, or for none at all."""
    if not layers:
        raise InputError("none was given; leave them out to allow an exit after every layer", "layers")
    for layer in layers:
        if not 0 <= layer < n_layers:
            raise InputError(f"layer {layer} does not exist: the model has layers 0 to {n_layers - 1}", "layers")


class _Run:
    """Runs batches; holds the heads as tensors on the model's device."""

    def __init__(self, classifier: ExitClassifier, stepper: Stepper) -> None:
        self._stepper, self._asked = stepper, classifier.asked()
        self._last, self._n_classes = classifier.model.n_layers - 1, len(classifier.classes)

    def __call__(self, batch: Batch) -> Exits:
        """Exits of the batch's rows, in its order."""
        n, asked = len(batch.rows), self._asked
        probability = np.empty((n, self._n_classes), np.float32)
        depth = np.empty(n, np.int64)
        passing = Passing(batch, self._stepper.model.device, pooled=asked.pooled)
        asked.begin(n)

        def decide(layer: int, hidden: Tensor) -> Tensor | None:
            asked.see(layer, hidden, passing)
            if layer not in asked.checks:
                return None
            odds, total = asked.odds(layer, hidden, passing)
            leave = np.ones(len(total), bool) if layer == self._last else total <= asked.most
            if not leave.any():
                return None
            gone = passing.rows[leave]
            probability[gone], depth[gone] = odds[leave] / total[leave, None], layer + 1
            return passing.keep(~leave)

        self._stepper.run(batch.ids, batch.mask, decide)
        return Exits(probability, depth)
