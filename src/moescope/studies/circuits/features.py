"""From a model and a task to a matrix: one row per example, one column per neuron of the chosen sites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moescope.capture import Encoded, Position, encode
from moescope.capture.activations import read_into
from moescope.capture.answers import read_tokens
from moescope.capture.places import Places, read_places, word_places
from moescope.capture.spread import Progress
from moescope.errors import InputError
from moescope.files.memory import empty_array
from moescope.models import LoadedModel, SitesLike, parse_sites
from moescope.select.nested import CVResult, nested_cv
from moescope.studies.circuits.settings import SearchSettings
from moescope.tasks import subset
from moescope.tasks.answered import Answered
from moescope.tasks.kinds import KINDS, groups_of
from moescope.types import Neuron, Site, Task


@dataclass(frozen=True)
class Columns:
    """Which neuron each column of a feature matrix is.

    ``sites`` in order; ``widths[i]`` columns belong to ``sites[i]``. Columns of one site are contiguous.
    """

    sites: tuple[Site, ...]
    widths: tuple[int, ...]

    @property
    def n(self) -> int:
        """Number of columns D."""
        return sum(self.widths)

    @property
    def site_of(self) -> np.ndarray:
        """(D,) int: position in ``sites`` of each column."""
        return np.repeat(np.arange(len(self.sites)), self.widths)

    @property
    def layer_of(self) -> np.ndarray:
        """(D,) int: true layer number of each column."""
        return np.repeat([site.layer for site in self.sites], self.widths)

    def neuron(self, column: int) -> Neuron:
        """The neuron of one column."""
        position = int(np.searchsorted(np.cumsum(self.widths), column, side="right"))
        return Neuron(self.sites[position], int(column - sum(self.widths[:position])))

    def of_layers(self, last: int) -> np.ndarray:
        """(D,) bool: columns in layers 0..last."""
        return self.layer_of <= last

    def slice_of(self, position: int) -> slice:
        """The columns of ``sites[position]``."""
        start = sum(self.widths[:position])
        return slice(start, start + self.widths[position])

    @property
    def layers(self) -> list[int]:
        """Layer numbers present, ascending."""
        return sorted({site.layer for site in self.sites})


@dataclass(frozen=True)
class Features:
    """The activations of one task at the chosen sites.

    Attributes:
        x: (N, D) float32, raw activations at the chosen position.
        embed: (N, d_model) float32, what enters layer 0 at that position (the token-identity baseline); None where it is not
            known.
        y: (N,) int class, or float where the label is graded; groups: (N,) str; folds: (N,) int, groups whole, labels balanced.
        seed: from which the folds were drawn, and every further random choice about this task.
        encoded: the texts as token ids, for whoever runs the model on them again.
        final: further sites at the final token, (N, width) float32 each, read in the same pass.
        places: of labelled words, where each is read in ``encoded``, which then has each text once.
        not_run: controls that these rows cannot have, each with why.
    """

    task: Task
    columns: Columns
    x: np.ndarray
    embed: np.ndarray | None
    y: np.ndarray
    groups: np.ndarray
    folds: np.ndarray
    seed: int = 0
    encoded: Encoded | None = None
    final: Mapping[Site, np.ndarray] = field(default_factory=dict)
    places: Places | None = None
    not_run: Mapping[str, str] = field(default_factory=dict)

    @property
    def n_classes(self) -> int:
        return len(self.task.classes)

    def subset(self, rows: np.ndarray, *, n_folds: int) -> Features:
        """The same activations at the chosen position on some rows, with folds made anew."""
        task, y, groups = subset(self.task, rows), self.y[rows], self.groups[rows]
        folds = KINDS[task.kind].folds(task, n_folds, self.seed)
        embed = None if self.embed is None else self.embed[rows]
        return Features(task, self.columns, self.x[rows], embed, y, groups, folds, self.seed, not_run=self.not_run)

    @property
    def costs(self) -> np.ndarray:
        """(N,) tokens that are read for each row; a text's are shared out over its labelled words."""
        assert self.encoded is not None
        if self.places is None:
            return self.encoded.lengths
        words = np.bincount(self.places.text, minlength=len(self.encoded))
        return np.asarray((self.encoded.lengths / np.maximum(words, 1))[self.places.text])

    def text_at(self, row: int) -> tuple[int, int]:
        """Which of the encoded texts a row is read in, and how many of its tokens end there."""
        assert self.encoded is not None
        if self.places is None:
            return row, int(self.encoded.lengths[row])
        return int(self.places.text[row]), int(self.places.token[row]) + 1


def columns_of(model: LoadedModel, sites: SitesLike) -> Columns:
    """Resolve a site expression (``"resid"``, ``"mlp_act:0-5"``) on a model."""
    resolved = parse_sites(sites, model)
    if not resolved:
        raise InputError(f"site: {sites!r} names no site of {model.name}")
    return Columns(resolved, tuple(model.width(site) for site in resolved))


def capture_features(
    model: LoadedModel,
    task: Task,
    columns: Columns,
    settings: SearchSettings,
    *,
    seed: int = 0,
    final: Sequence[Site] = (),
    at: Position = "final",
    encoded: Encoded | None = None,
    folds: np.ndarray | None = None,
    batch_tokens: int = 8192,
    max_tokens: int | None = None,
    progress: Progress | None = None,
) -> Features:
    """Read a task's activations at all sites of ``columns`` in one pass over its texts, and form its folds.

    Of ``settings`` count the position and the number of folds.

    Args:
        final: sites to be read ``at`` the final token too, in the same pass; of images where an intervention is.
        encoded: the task's texts where they are encoded already.
        folds: the folds where they are settled already.

    Raises:
        InputError: when folds cannot be formed, a text is empty, or an activation is not finite.
    """
    kind, groups = KINDS[task.kind], groups_of(task)
    y = kind.y(task)
    # Before the costly part, so that a task that cannot be split fails at once.
    if folds is None:
        folds = kind.folds(task, settings.n_folds, seed)
    if task.kind == "tokens":
        limits: dict[str, Any] = {"batch_tokens": batch_tokens, "max_tokens": max_tokens, "progress": progress}
        return _at_words(model, task, columns, y, groups, folds, seed, **limits)
    if encoded is None and isinstance(task, Answered):
        encoded = read_tokens(task)
    elif encoded is None:
        encoded = encode(model, [example.text for example in task.examples], max_tokens=max_tokens)
    embed = Site("embed", 0)
    places: list[tuple[Site, Position]] = [(site, settings.position) for site in dict.fromkeys([embed, *columns.sites])]
    places += [(site, at) for site in final]
    x = empty_array(len(encoded), columns.n, f"activations of {task.name}")
    parts = {site: x[:, columns.slice_of(i)] for i, site in enumerate(columns.sites)}
    out = {
        place: parts[place[0]]
        if place[0] in parts and place[1] == settings.position
        else np.empty((len(encoded), model.width(place[0])), np.float32)
        for place in dict.fromkeys(places)
    }
    read_into(out, model, encoded, batch_tokens=batch_tokens, progress=progress)
    at_final = {site: out[site, at] for site in final}
    return Features(task, columns, x, out[embed, settings.position], y, groups, folds, seed, encoded, at_final)


def _at_words(
    model: LoadedModel,
    task: Task,
    columns: Columns,
    y: np.ndarray,
    groups: np.ndarray,
    folds: np.ndarray,
    seed: int,
    *,
    batch_tokens: int,
    max_tokens: int | None,
    progress: Progress | None,
) -> Features:
    """Each labelled word at its last token, every text read once."""
    number = {text: i for i, text in enumerate(dict.fromkeys(e.text for e in task.examples))}
    encoded = encode(model, list(number), max_tokens=max_tokens)
    spans = [e.span for e in task.examples if e.span is not None]
    places = word_places(model, list(number), encoded, [number[e.text] for e in task.examples], spans)
    embed = Site("embed", 0)
    x = empty_array(len(y), columns.n, f"activations of {task.name}")
    out = {site: x[:, columns.slice_of(i)] for i, site in enumerate(columns.sites)}
    out.setdefault(embed, np.empty((len(y), model.width(embed)), np.float32))
    read_places(out, model, encoded, places, batch_tokens=batch_tokens, progress=progress)
    return Features(task, columns, x, out[embed], y, groups, folds, seed, encoded, places=places)


def own_cv(features: Features, settings: SearchSettings, **changed: Any) -> CVResult:
    """Held-out results at the study's own K by its own protocol; ``changed``: other arguments of :func:`nested_cv`."""
    own = {"X": features.x, "y": features.y, "folds": features.folds, "ks": (settings.k,)}
    own |= {name: getattr(settings, name) for name in ("sigma", "classifier", "selection")}
    return nested_cv(**{**own, **changed})


def rows_of(encoded: Encoded, rows: np.ndarray) -> Encoded:
    """The chosen texts."""
    lengths = encoded.lengths[rows]
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    pick = np.repeat(encoded.offsets[rows] - offsets[:-1], lengths) + np.arange(offsets[-1])
    return Encoded(encoded.ids[pick], encoded.special[pick], offsets)
