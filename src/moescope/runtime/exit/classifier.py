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
        training = [module for module in self.model.body.modules() if module.training]
        if training:
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
            "template": self.template,
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
        with np.errstate(divide="ignore"):
            self._most = np.float32(1) / np.float32(classifier.threshold)  # 1 over a confidence that suffices
        self._last = classifier.model.n_layers - 1
        self._n_classes = len(classifier.classes)
        self._checks = frozenset((*classifier.checks, self._last))
        device, heads = classifier.model.device, classifier.heads
        self._weight = {i: heads.weight[i].T for i in self._checks}  # of circuit heads; others read where the model is
        self._bias = {i: heads.bias[i] for i in self._checks}
        self._on_device: dict[int, tuple[Tensor, Tensor]] = {}
        self._read: dict[int, tuple[slice, Tensor]] = {}  # layer -> coordinates that some circuit head wants, and where they go
        self._place: dict[int, np.ndarray] = {}  # check -> where its coordinates are among all that are read
        self._size = 0
        if heads.columns is None:
            self._on_device = {
                i: (torch.from_numpy(heads.bias[i]).to(device), torch.from_numpy(heads.weight[i]).T.contiguous().to(device))
                for i in self._checks
            }
        else:
            wanted = np.unique(np.concatenate([heads.columns[i] for i in self._checks]))
            width, self._size = classifier.model.d_model, len(wanted)
            for layer in np.unique(wanted // width):
                low, high = np.searchsorted(wanted, [layer * width, (layer + 1) * width])
                self._read[int(layer)] = slice(low, high), torch.from_numpy(wanted[low:high] % width).to(device)
            self._place = {i: np.searchsorted(wanted, heads.columns[i]) for i in self._checks}

    def __call__(self, batch: Batch) -> Exits:
        """Exits of the batch's rows, in its order.

        Few values leave the device at a check, and a circuit head is a dozen numbers: what decides runs in NumPy, whose calls
        cost a tenth of a tensor's. At batch 1 a check would otherwise cost a twentieth of a layer of 3.5 million weights.
        """
        n, device = len(batch.rows), self._stepper.model.device
        probability = np.empty((n, self._n_classes), np.float32)
        depth = np.empty(n, np.int64)
        rows = np.arange(n)  # still there
        ends = batch.mask.numpy().sum(1) - 1  # padding is on the right
        if (ends < 0).any():
            token_index(batch, "final", None)  # which names the text
        at = torch.from_numpy(ends).to(device)
        pooling = weights(batch, "mean", None).to(device) if self._kind == "pooled" else None
        if pooling is not None:
            pooling = pooling / pooling.sum(1, keepdim=True)
        read = np.empty((n, self._size), np.float32)

        def decide(layer: int, hidden: Tensor) -> Tensor | None:
            nonlocal rows, at, pooling
            if layer in self._read:
                span, columns = self._read[layer]
                read[rows, span] = _final(hidden, at, columns)
            if layer not in self._checks:
                return None
            if self._kind == "circuit":
                said = read[rows[:, None], self._place[layer]] @ self._weight[layer] + self._bias[layer]
            else:
                if pooling is not None:
                    x = torch.bmm(pooling[:, None, : hidden.shape[1]], hidden.float())[:, 0]
                else:
                    x = hidden[torch.arange(len(rows), device=device), at].float()
                bias, weight = self._on_device[layer]
                said = torch.addmm(bias, x, weight).cpu().numpy()
            odds = np.exp(said - said.max(1, keepdims=True))  # the likeliest class has 1
            total = odds.sum(1)
            leave = np.ones(len(rows), bool) if layer == self._last else total <= self._most
            if not leave.any():
                return None
            gone = rows[leave]
            probability[gone], depth[gone] = odds[leave] / total[leave, None], layer + 1
            rows = rows[~leave]
            stay = torch.from_numpy(np.flatnonzero(~leave)).to(device)
            if len(stay):
                at = at[stay]
                pooling = pooling[stay] if pooling is not None else None
            return stay

        self._stepper.run(batch.ids, batch.mask, decide)
        return Exits(probability, depth)


def _final(hidden: Tensor, at: Tensor, columns: Tensor) -> np.ndarray:
    """(n, F) float32: coordinates ``columns`` (F,) of each row's token ``at`` (n,), of (n, T, D)."""
    if hidden.device.type == "cpu" and hidden.dtype == torch.float32:
        return np.asarray(hidden.numpy()[np.arange(len(at))[:, None], at.numpy()[:, None], columns.numpy()])
    rows = torch.arange(len(at), device=hidden.device)
    return np.asarray(hidden[rows[:, None], at[:, None], columns].float().cpu().numpy())
