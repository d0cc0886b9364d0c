"""Routing that acts: one pass names a text's task by its first layers and goes on with that task's classifier."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from torch import Tensor

from moescope.capture.activations import padded_batches
from moescope.capture.encode import Batch, Encoded, encode
from moescope.errors import InputError
from moescope.runtime.exit.asked import Passing
from moescope.runtime.exit.classifier import ExitClassifier
from moescope.runtime.exit.layers import Stepper, stepping
from moescope.runtime.exit.rule import Guarantee
from moescope.runtime.route.router import Named, TaskRouter
from moescope.runtime.route.watch import Watch, check_lengths, opening, watching

if TYPE_CHECKING:
    from moescope.models import LoadedModel


class Answer(NamedTuple):
    """What became of a text."""

    task: str | None
    """the task it was taken for; None: unknown"""
    nearest: str
    """the task whose classifier answered"""
    label: str
    """a class of that task"""
    probability: float
    """of that class, by the head at which the text left"""
    depth: int
    """layers that were run, 1..L: all of them where the task is unknown"""


class Dispatched(NamedTuple):
    """What came out for N texts."""

    named: list[Named]
    probability: list[np.ndarray]
    """of each text (C,) float32: by the classes of the nearest task"""
    depth: np.ndarray
    """(N,) int64: layers that were run, 1..L"""


@dataclasses.dataclass(frozen=True, eq=False)
class Dispatcher:
    """A router and the early-exit classifier of each of its tasks, which act in one pass of the model.

    After the router's layer a text's task is named, and from there on that task's heads are asked after every layer: the text
    leaves at the first that is as confident as the classifier's threshold. A text that is *unknown* runs to full depth and
    is answered by the last head of the nearest task; its :class:`Answer` says that it is unknown. ``guarantee`` is of all
    of it together, mistakes of naming included, on the mixture of tasks that calibrated it; None where thresholds were set by
    hand. It says nothing of texts of other tasks.

    Raises:
        InputError: not one classifier of the same model for each of the router's tasks, in their order, or classifiers that
            cut texts differently.
    """

    router: TaskRouter
    classifiers: tuple[ExitClassifier, ...]
    guarantee: Guarantee | None = None

    def __post_init__(self) -> None:
        names = tuple(one.task for one in self.classifiers)
        if names != self.router.tasks:
            raise InputError(f"the router knows {', '.join(self.router.tasks)}, the classifiers are of {', '.join(names)}")
        if len({(one.model.fingerprint, one.max_tokens) for one in self.classifiers}) > 1:
            raise InputError("the classifiers are of different models, or cut texts at different lengths")

    @property
    def model(self) -> LoadedModel:
        return self.router.read_by(self.classifiers[0].model)

    def classify(self, texts: Sequence[str], *, batch_tokens: int = 8192) -> list[Answer]:
        """One answer for each text; every text is read once.

        Raises:
            InputError: an empty text, or one too short to name its task.
        """
        named, probability, depth = self.run(texts, batch_tokens=batch_tokens)
        classes = {one.task: one.classes for one in self.classifiers}
        return [
            Answer(n.task, n.nearest, classes[n.nearest][int(p.argmax())], float(p.max()), int(layers))
            for n, p, layers in zip(named, probability, depth, strict=True)
        ]

    def run(self, texts: Sequence[str] | Encoded, *, batch_tokens: int = 8192) -> Dispatched:
        """All of it, as :meth:`classify`."""
        encoded = self.encode(texts)
        found: dict[int, tuple[Named, np.ndarray, int]] = {}
        with self.running() as run:
            for batch in padded_batches(self.model, encoded, batch_tokens, "right"):
                found |= dict(zip(np.asarray(batch.rows).tolist(), zip(*run(batch), strict=True), strict=True))
        named, probability, depth = zip(*(found[i] for i in range(len(encoded))), strict=True) if found else ((), (), ())
        return Dispatched(list(named), list(probability), np.array(depth, np.int64))

    def encode(self, texts: Sequence[str] | Encoded, *, first_row: int = 0) -> Encoded:
        """Token ids as the tasks' were cut, each long enough to name its task; ``first_row`` is the first text's number.

        Raises:
            InputError: an empty text, or one too short to name its task.
        """
        encoded = encode(self.model, texts, max_tokens=self.classifiers[0].max_tokens, first_row=first_row)
        check_lengths(encoded, opening(self.model))
        return encoded

    @contextmanager
    def running(self) -> Iterator[_Run]:
        """``with dispatcher.running() as run: run(batch)``: for callers who make their batches (right padding) themselves."""
        # the router's hooks come first, so that it has seen its last layer when rows are asked to leave there
        with watching(self.router, self.model) as watch, stepping(self.model) as stepper:
            yield _Run(self, watch, stepper)


class _Run:
    """Runs batches through the router's layers, then each row on by its own task's heads."""

    def __init__(self, dispatcher: Dispatcher, watch: Watch, stepper: Stepper) -> None:
        self._dispatcher, self._watch, self._stepper = dispatcher, watch, stepper
        self._asked = [one.asked() for one in dispatcher.classifiers]

    def __call__(self, batch: Batch) -> Dispatched:
        """Of the batch's rows, in its order."""
        router, model, n = self._dispatcher.router, self._stepper.model, len(batch.rows)
        passing = Passing(batch, model.device, pooled=any(one.pooled for one in self._asked))
        for one in self._asked:
            one.begin(n)
        named: list[Named] = []
        nearest, known = np.empty(n, np.int64), np.empty(n, bool)
        probability: list[np.ndarray] = [np.empty(0, np.float32)] * n
        depth = np.empty(n, np.int64)

        def decide(layer: int, hidden: Tensor) -> Tensor | None:
            for one in self._asked:
                one.see(layer, hidden, passing)
            if layer < router.layer:
                return None
            if layer == router.layer:
                named.extend(self._watch.now())
                nearest[:] = [router.tasks.index(row.nearest) for row in named]
                known[:] = [row.task is not None for row in named]
            last = layer == model.n_layers - 1
            stay = np.ones(len(passing.rows), bool)
            for task, one in enumerate(self._asked):
                mine = nearest[passing.rows] == task
                which = np.flatnonzero(mine if last else mine & known[passing.rows])
                if not len(which) or layer not in one.checks:
                    continue
                odds, total = one.odds(layer, hidden, passing, None if len(which) == len(stay) else which)
                leave = np.ones(len(which), bool) if last else total <= one.most
                stay[which[leave]] = False
                for row, said in zip(passing.rows[which[leave]], odds[leave] / total[leave, None], strict=True):
                    probability[row], depth[row] = said, layer + 1
            return None if stay.all() else passing.keep(stay)

        self._stepper.run(batch.ids, batch.mask, decide)
        return Dispatched(named, probability, depth)
