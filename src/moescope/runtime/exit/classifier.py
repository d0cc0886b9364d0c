"""A classifier that stops: a text leaves the model as soon as the head at its depth is confident enough."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from moescope.capture.activations import padded_batches
from moescope.capture.encode import Batch, Encoded, encode
from moescope.capture.position import token_index, weights
from moescope.errors import InputError
from moescope.runtime.exit.heads import Heads
from moescope.runtime.exit.layers import Stepper, check_leaving, stepping
from moescope.runtime.exit.rule import Guarantee
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
    confidence asked for; ``guarantee`` says what it promises, None where it was set by hand.

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
        training = [module for module in self.model.body.modules() if module.training]
        self.model.body.eval()
        try:
            with stepping(self.model) as stepper:
                yield _Run(self, stepper)
        finally:
            for module in training:
                module.training = True

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
        promise = dataclasses.asdict(self.guarantee) if self.guarantee is not None else None
        fields = {
            "task": self.task,
            "classes": self.classes,
            "kind": heads.kind,
            "layers": heads.n_layers,
            "threshold": _finite(self.threshold),
            "checks": self.checks,
            "max_tokens": self.max_tokens,
            "guarantee": promise and promise | {"threshold": _finite(promise["threshold"])},
        }
        return write_artifact(folder, "exit", self.model, arrays, fields)


def check_layers(layers: Sequence[int], n_layers: int) -> None:
    """Raises InputError for a layer that the model does not have, or for none at all."""
    if not layers:
        raise InputError("none was given; leave them out to allow an exit after every layer", "layers")
    for layer in layers:
        if not 0 <= layer < n_layers:
            raise InputError(f"layer {layer} does not exist: the model has layers 0 to {n_layers - 1}", "layers")


def _finite(value: float) -> float | None:
    """JSON has no infinity: null stands for "no row leaves early"."""
    return None if value == float("inf") else value


class _Run:
    """Runs batches; holds the heads as tensors on the model's device."""

    def __init__(self, classifier: ExitClassifier, stepper: Stepper) -> None:
        self._stepper = stepper
        self._kind = classifier.heads.kind
        self._threshold = classifier.threshold
        self._last = classifier.model.n_layers - 1
        self._n_classes = len(classifier.classes)
        self._checks = frozenset((*classifier.checks, self._last))
        device, heads = classifier.model.device, classifier.heads
        self._weight = {i: torch.from_numpy(heads.weight[i]).T.contiguous().to(device) for i in self._checks}
        self._bias = {i: torch.from_numpy(heads.bias[i]).to(device) for i in self._checks}
        self._read: dict[int, Tensor] = {}  # layer -> coordinates that some circuit head wants of it
        self._place: dict[int, Tensor] = {}  # check -> where its coordinates are among all that have been read
        if heads.columns is not None:
            wanted = np.unique(np.concatenate([heads.columns[i] for i in self._checks]))
            width = classifier.model.d_model
            for layer in np.unique(wanted // width):
                self._read[int(layer)] = torch.from_numpy(wanted[wanted // width == layer] % width).to(device)
            # `wanted` ascends by layer, so what has been read so far is its beginning
            self._place = {i: torch.from_numpy(np.searchsorted(wanted, heads.columns[i])).to(device) for i in self._checks}

    def __call__(self, batch: Batch) -> Exits:
        """Exits of the batch's rows, in its order."""
        n, device = len(batch.rows), self._stepper.model.device
        probability = torch.empty(n, self._n_classes)
        depth = torch.empty(n, dtype=torch.int64)
        rows = torch.arange(n)  # still there
        at = token_index(batch, "final", None).to(device)
        pooling = weights(batch, "mean", None).to(device) if self._kind == "pooled" else None
        if pooling is not None:
            pooling = pooling / pooling.sum(1, keepdim=True)
        read = torch.empty(n, 0, device=device)
        everyone = torch.arange(n, device=device)

        def decide(layer: int, hidden: Tensor) -> Tensor | None:
            nonlocal rows, at, pooling, read
            if layer in self._read:
                final = hidden[everyone[: len(rows)], at]
                read = torch.cat([read, final[:, self._read[layer]].float()], dim=1)
            if layer not in self._checks:
                return None
            if self._kind == "circuit":
                x = read[:, self._place[layer]]
            elif pooling is not None:
                x = torch.bmm(pooling[:, None, : hidden.shape[1]], hidden.float())[:, 0]
            else:
                x = hidden[everyone[: len(rows)], at].float()
            said = torch.addmm(self._bias[layer], x, self._weight[layer]).softmax(-1).cpu()
            leave = torch.ones(len(rows), dtype=torch.bool) if layer == self._last else said.amax(-1) >= self._threshold
            if not bool(leave.any()):
                return None
            gone = rows[leave]
            probability[gone], depth[gone] = said[leave], layer + 1
            rows = rows[~leave]
            stay = (~leave).nonzero()[:, 0].to(device)
            at, read = at[stay], read[stay]
            pooling = pooling[stay] if pooling is not None else None
            return stay

        self._stepper.run(batch.ids, batch.mask, decide)
        return Exits(probability.numpy(), depth.numpy())
