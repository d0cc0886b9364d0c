"""Does naming a task early decide which circuit runs? The early layer is made to say another task, and what follows is read.

Of each task A the texts that judge are run again with the residual stream after the router's layer moved, at every token that
the router reads, by the difference between the mean features of the next task B and those of A: the router then sees a mean
that is B's, and everything in which texts of A differ from each other is left as it was. All layers after it run on that.
Three things are read at the final token, none of which the skip connection carries there:

- *told*: how far A's own circuit still tells A's classes, the neurons being hidden activations of later MLPs, by the linear
  discriminant that was fitted on unmoved texts. A constant that a move adds to every text counts for nothing.
- *way*: how far B's circuit goes, from where it is unmoved, as a share of the way from its mean on texts of A to its mean on
  texts of B.
- *named*: whether a probe of what later layers have *added* to the stream names B; the move itself is not in what it sees.

Beside it, as large in the stream: the same towards a third task, and random changes that differ from each other as texts of
one task do. And the same once more with a few coordinates alone, the ones by which the two tasks are best told apart, beside as
many others.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from moescope.capture.activations import read_into
from moescope.capture.encode import Encoded, encode
from moescope.capture.position import Position
from moescope.capture.spread import Progress
from moescope.errors import InputError
from moescope.intervene import editing
from moescope.models import LoadedModel
from moescope.runtime.route.router import TaskRouter
from moescope.runtime.route.watch import after_opening, opening
from moescope.select.lda import LDA, fit_lda
from moescope.select.ranking import random_sets, top_k
from moescope.select.sums import divergence, fold_class_sums
from moescope.stats.scores import macro_auroc
from moescope.studies.route.settings import DIRECTION, NEURONS, RouteSettings
from moescope.study.paired import above_chance, balanced
from moescope.study.protocol import Context
from moescope.study.rows import Rows
from moescope.types import Site, Task

NEXT, THIRD = "next", "third"
_LEAST = 2  # texts of a class
_WAY = 0.5  # that texts of B must themselves have gone from A, or there is no way to go


@dataclass(frozen=True)
class Circuit:
    """A task's K late neurons, by their place among all of them, and what tells its classes by them."""

    columns: np.ndarray
    reader: LDA


@dataclass(frozen=True)
class Read:
    """What N texts of a task show at their final tokens."""

    told: np.ndarray
    """(N,): the log-odds that its own circuit gives a text's class over the others, class means counted alike; their mean is
    how far apart the classes are"""
    auroc: float
    """of the same, classes counted alike"""
    way: np.ndarray
    """(N,): of the next task's circuit, from this task's mean (0) to the next one's (1)"""
    rest: np.ndarray
    """(N,): the same of all other neurons of the layers in which that circuit lies; NaN where they are not read"""
    named: np.ndarray
    """(N,) float: 1 where the late probe names the next task"""
    router: float
    """share that the router itself names the next task"""


@dataclass(frozen=True)
class Moved:
    """Texts of one task with its early identification replaced."""

    early: str
    """what was moved: ``direction`` or ``neurons``"""
    task: int
    next: int
    groups: np.ndarray
    """(N,)"""
    size: float
    """Euclidean norm of the move, the same for all"""
    clean: Read
    moved: dict[str, Read]
    """``next``, and ``third`` where there is a third task"""
    random: tuple[Read, ...]
    reads: bool
    """the circuit tells its own task's classes better than chance on unmoved texts"""
    way_there: float
    """how much further unmoved texts of the next task are; below a half there is no way to go"""

    @property
    def goes(self) -> bool:
        return self.way_there >= _WAY


def causal_rows(
    rows: Rows, task: np.ndarray, label: np.ndarray, parts: Sequence[Task], settings: RouteSettings, seed: int
) -> Rows:
    """Rows that fitted the router fit circuits and probe too; of the others so many of each task judge, classes in turn.

    Raises:
        InputError: a class of a task has too few texts on one side, or a task more classes than texts may be judged.
    """
    most = max(len(part.classes) for part in parts)
    if settings.causal_texts < _LEAST * most:
        raise InputError(
            f"{settings.causal_texts} texts of {most} classes are too few; give {_LEAST * most} or more", "causal_texts"
        )
    rest = np.concatenate([rows.calibrate, rows.judge])
    chosen = []
    for t, part in enumerate(parts):
        for side in (rows.fit, rest):
            counts = np.bincount(label[side[task[side] == t]], minlength=len(part.classes))
            if counts.min() < _LEAST:
                short = part.classes[int(counts.argmin())]
                raise InputError(f"{part.name}: class {short!r} has {counts.min()} texts on one side; give more rows", "tasks")
        mine = np.random.default_rng([seed, t]).permutation(rest[task[rest] == t])
        order = np.zeros(len(mine), np.int64)
        for c in range(len(part.classes)):
            order[label[mine] == c] = np.arange(int((label[mine] == c).sum()))
        chosen.append(mine[np.argsort(order, kind="stable")])
    n = min(settings.causal_texts, *(len(mine) for mine in chosen))
    judge = np.sort(np.concatenate([mine[:n] for mine in chosen]))
    return Rows("early identification replaced", rows.groups, fit=rows.fit, select=rows.fit, judge=judge)


def check_causal(model: LoadedModel, source: str, layer: int) -> None:
    """Whether there is a stream to move and a circuit after it.

    Raises:
        InputError: routing is what names the task, the layer is the last, or no later layer has a dense MLP.
    """
    if source != "residual":
        raise InputError("it moves the residual stream, and routing is read here; add features=residual", "causal")
    if layer >= model.n_layers - 1:
        raise InputError(f"layer {layer} is the last, so nothing runs after it; choose an earlier one", "layer")
    if not late_sites(model, layer):
        raise InputError(f"{model.name} has no dense MLP after layer {layer}, so no circuit of its neurons", "causal")


def late_sites(model: LoadedModel, layer: int) -> tuple[Site, ...]:
    return tuple(site for site in model.sites("mlp_act") if site.layer > layer)


def replaced(
    context: Context,
    model: LoadedModel,
    parts: Sequence[Task],
    texts: Sequence[str],
    rows: Rows,
    router: TaskRouter,
    features: tuple[np.ndarray, np.ndarray],
    codes: tuple[np.ndarray, np.ndarray],
    settings: RouteSettings,
) -> list[Moved]:
    """Every task's texts with the identification of the next task, in the order given, the last one's being the first.

    Args:
        texts: of all N rows.
        features: what the router read of them (N, D), and of how many tokens (N,).
        codes: task and class of each row, (N,) both.
    """
    (x, tokens), (task, label) = features, codes
    judged = [rows.judge[task[rows.judge] == t] for t in range(len(parts))]
    fitting = rows.fit
    late = Late(model, router.layer, context.run.batch_tokens)
    limit = context.run.max_tokens
    fitted = encode_again(model, [texts[i] for i in fitting], limit)
    name = "neurons after the router's layer"
    acts, added = context.stage(name, lambda: late.read(fitted, context.counter(name)))
    circuits = []
    for t in range(len(parts)):
        mine = task[fitting] == t
        y = label[fitting][mine]
        score = divergence(*fold_class_sums(acts[mine], y, np.zeros(len(y), np.int64)).total(), sigma="pooled")
        columns = np.sort(top_k(score, settings.k))
        circuits.append(Circuit(columns, fit_lda(acts[mine][:, columns], y)))
    means = np.stack([acts[task[fitting] == t].mean(0, dtype=np.float64) for t in range(len(parts))])
    within = np.mean([acts[task[fitting] == t].var(0, dtype=np.float64) for t in range(len(parts))], axis=0)
    scale = np.sqrt(np.where(within > 0, within, 1.0))
    probe = make_pipeline(StandardScaler(), LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"))
    probe.fit(added, task[fitting])
    centres = np.stack([x[fitting][task[fitting] == t].mean(0, dtype=np.float64) for t in range(len(parts))])
    strays = x[fitting] - centres[task[fitting]]
    found = []
    encoded = [encode_again(model, [texts[i] for i in one], limit) for one in judged]
    unmoved = [context.stage(f"{parts[t].name}: as it is", partial(late.read, encoded[t])) for t in range(len(parts))]
    for t, part in enumerate(parts):
        after = (t + 1) % len(parts)
        towards = Towards(circuits[t], circuits[after], means[[t, after]], scale, late.layer_of, probe, after)
        y, groups = label[judged[t]], rows.groups[judged[t]]
        names = partial(_names, router, router.tasks[after], x[judged[t]], tokens[judged[t]])
        clean = towards.read(*unmoved[t], y=y, router=names(0.0))
        right = circuits[t].reader.predict(unmoved[t][0][:, circuits[t].columns]) == y
        better = above_chance(right, y, groups, settings.margin, context.run.seed)
        step = centres[after] - centres[t]
        third = centres[(t + 2) % len(parts)] - centres[t] if len(parts) > 2 else None
        for early, moves in _moves(step, third, strays, router.scale, settings, np.random.default_rng([context.run.seed, t])):
            name = f"{part.name}: {early} moved"
            _differ(context, f"{part.name}, {early}: changes beside it", moves)
            read = partial(_read_moved, late, encoded[t], towards, moves, y=y, names=names, progress=context.counter(name))
            of = context.stage(name, read)
            found.append(
                Moved(
                    early=early,
                    task=t,
                    next=after,
                    groups=groups,
                    size=float(np.linalg.norm(moves.next)),
                    clean=clean,
                    moved={kind: one for kind, one in of.items() if kind in (NEXT, THIRD)},
                    random=tuple(one for kind, one in of.items() if kind not in (NEXT, THIRD)),
                    reads=better.low > 0 and float(clean.told.mean()) > 0,
                    way_there=float(towards.way(unmoved[after][0], towards.there.columns).mean() - clean.way.mean()),
                )
            )
    return found


def encode_again(model: LoadedModel, texts: Sequence[str], limit: int | None) -> Encoded:
    """Texts that were read before, when it was said that some were cut."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return encode(model, texts, max_tokens=limit)


def _names(router: TaskRouter, task: str, x: np.ndarray, tokens: np.ndarray, move: np.ndarray | float) -> float:
    """The share of texts that the router is nearest to ``task`` with, what it reads (N, D) being moved."""
    return float(np.mean([one.nearest == task for one in router.name(x + move, tokens)]))


def _read_moved(
    late: Late,
    encoded: Encoded,
    towards: Towards,
    moves: Moves,
    *,
    y: np.ndarray,
    names: Callable[[np.ndarray], float],
    progress: Progress,
) -> dict[str, Read]:
    told, every = {}, moves.every()
    for done, (kind, move) in enumerate(every.items()):
        # all late neurons for the next task's sake alone
        columns = None if kind == NEXT else towards.columns
        told[kind] = towards.read(*late.read(encoded, shift=move, columns=columns), y=y, router=names(move))
        progress(done + 1, len(every))
    return told


@dataclass(frozen=True)
class Moves:
    """Changes of the stream (D,), all of one Euclidean norm: towards the next task, a third one, and at random (R, D)."""

    next: np.ndarray
    third: np.ndarray | None
    random: np.ndarray

    def every(self) -> dict[str, np.ndarray]:
        third = {} if self.third is None else {THIRD: self.third}
        return {NEXT: self.next, **third, **{f"random {r}": move for r, move in enumerate(self.random)}}


def _moves(
    step: np.ndarray,
    third: np.ndarray | None,
    strays: np.ndarray,
    scale: np.ndarray,
    settings: RouteSettings,
    rng: np.random.Generator,
) -> Iterator[tuple[str, Moves]]:
    """The whole direction beside random ones, and its strongest coordinates beside as many others.

    A random direction is a sum of texts' own deviations from their task's mean (``strays``, (N, D)) with normal weights: it
    lies where texts of one task differ, so that the stream is not moved to where no text ever is.
    """
    size = np.linalg.norm(step)

    def sized(move: np.ndarray, like: float) -> np.ndarray:
        return np.asarray(move * (like / np.maximum(np.linalg.norm(move, axis=-1, keepdims=True), 1e-12)))

    drawn = rng.standard_normal((settings.n_changes, len(strays))) @ strays
    yield DIRECTION, Moves(step, None if third is None else sized(third, float(size)), sized(drawn, float(size)))

    if settings.early_neurons == 0:
        return

    def only(move: np.ndarray, columns: np.ndarray) -> np.ndarray:
        kept = np.zeros_like(move)
        kept[columns] = move[columns]
        return kept

    n = min(settings.early_neurons, len(step) // 2)
    own = top_k(np.abs(step) / scale, n)
    others = random_sets(rng, len(step), n, settings.n_changes, ~np.isin(np.arange(len(step)), own))
    few = only(step, own)
    least = float(np.linalg.norm(few))
    strongest = None if third is None else sized(only(third, top_k(np.abs(third) / scale, n)), least)
    yield NEURONS, Moves(few, strongest, sized(np.stack([only(step, columns) for columns in others]), least))


def _differ(context: Context, name: str, moves: Moves) -> None:
    """That changes at random and towards a third task are as large as the one they stand beside, and not it."""
    beside = moves.random if moves.third is None else np.concatenate([moves.random, moves.third[None]])
    unit = moves.next / np.linalg.norm(moves.next)
    sizes = np.linalg.norm(beside, axis=1) / np.linalg.norm(moves.next)
    cosines = np.abs(beside @ unit) / np.linalg.norm(beside, axis=1)
    context.control(
        name,
        differs=bool(cosines.max() < 1 - 1e-6 and np.abs(sizes - 1).max() < 1e-6),
        evidence=f"{len(sizes)} of {sizes.min():.3f} to {sizes.max():.3f} times its size; cosine with it at most "
        f"{cosines.max():.2f}, {cosines.mean():.2f} on average",
    )


class Late:
    """Reads what stands behind the router's layer at texts' final tokens, where asked with the stream at that layer moved."""

    def __init__(self, model: LoadedModel, layer: int, batch_tokens: int) -> None:
        self._model, self._batch = model, batch_tokens
        self._at = Site("resid", layer)
        self.sites = late_sites(model, layer)
        self.layer_of = np.concatenate([np.full(model.width(site), site.layer) for site in self.sites])
        """(M,): of all late neurons"""
        self._left_out = opening(model)

    def read(
        self,
        encoded: Encoded,
        progress: Progress | None = None,
        *,
        shift: np.ndarray | None = None,
        columns: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """(N, M) float32, the late neurons (NaN but in ``columns``), and (N, D) what layers after the router's have added.

        Args:
            shift: (D,), added to the residual stream after the router's layer at every token behind the text's opening.
        """
        model, ends = self._model, np.cumsum([self._model.width(site) for site in self.sites])
        neurons = np.full((len(encoded), int(ends[-1])), np.nan, np.float32)
        spans = {site: slice(int(end) - model.width(site), int(end)) for site, end in zip(self.sites, ends, strict=True)}
        wanted = self.sites if columns is None else [s for s in self.sites if np.isin(self.layer_of[columns], s.layer).any()]
        last = Site("resid", model.n_layers - 1)
        stream = {site: np.empty((len(encoded), model.d_model), np.float32) for site in (self._at, last)}
        out: dict[tuple[Site, Position], np.ndarray] = {(site, "final"): neurons[:, spans[site]] for site in wanted}
        out |= {(site, "final"): array for site, array in stream.items()}
        with nullcontext() if shift is None else editing(model, {self._at: partial(self._move, torch.from_numpy(shift))}):
            read_into(out, model, encoded, batch_tokens=self._batch, progress=progress)
        return neurons, stream[last] - stream[self._at]

    def _move(self, shift: Tensor, x: Tensor, chosen: Tensor) -> Tensor:
        """The stream (B, T, D), moved at the tokens that the router reads."""
        return x + after_opening(self._left_out, chosen)[:, :, None] * shift.to(x)


@dataclass(frozen=True)
class Towards:
    """From one task to the next: both circuits, the mean of every late neuron on each, and what names a task late."""

    here: Circuit
    there: Circuit
    means: np.ndarray
    """(2, M)"""
    scale: np.ndarray
    """(M,): standard deviation within tasks"""
    layer_of: np.ndarray
    probe: Pipeline
    next: int

    @property
    def columns(self) -> np.ndarray:
        return np.union1d(self.here.columns, self.there.columns)

    @property
    def rest(self) -> np.ndarray:
        """All other neurons of the layers in which the next task's circuit lies."""
        beside = np.isin(self.layer_of, self.layer_of[self.there.columns])
        beside[self.there.columns] = False
        return np.flatnonzero(beside)

    def way(self, neurons: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """(N,): how far texts (N, M) have gone in ``columns`` from the first mean to the second, each neuron by its spread."""
        scale = self.scale[columns]
        between = (self.means[1, columns] - self.means[0, columns]) / scale
        gone = (neurons[:, columns] - self.means[0, columns]) / scale
        return np.asarray(gone @ between / max(float(between @ between), 1e-12))

    def read(self, neurons: np.ndarray, added: np.ndarray, *, y: np.ndarray, router: float) -> Read:
        """What texts of classes ``y`` (N,) show by their late neurons (N, M) and what was added to their stream (N, D)."""
        own, reader = neurons[:, self.here.columns], self.here.reader
        odds = reader.decision(own)  # (N, C)
        mine = odds[np.arange(len(y)), y]
        others = (odds.sum(1) - mine) / (odds.shape[1] - 1)
        return Read(
            told=balanced(mine - others, y),
            auroc=macro_auroc(reader.predict_proba(own), y),
            way=self.way(neurons, self.there.columns),
            rest=self.way(neurons, self.rest),
            named=(self.probe.predict(added) == self.next).astype(float),
            router=router,
        )
