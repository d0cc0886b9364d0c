"""From a model and a task to a matrix: one row per example, one column per neuron of the chosen sites."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moescope.capture import activations
from moescope.errors import InputError
from moescope.models import LoadedModel, parse_sites
from moescope.studies.circuits.settings import CircuitSettings
from moescope.tasks import group_folds
from moescope.types import Neuron, Site, Task

Progress = Callable[[int, int], None]


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
        embed: (N, d_model) float32, what enters layer 0 at that position (the token-identity baseline).
        y: (N,) int class; groups: (N,) str; folds: (N,) int, groups whole, classes balanced.
    """

    task: Task
    columns: Columns
    x: np.ndarray
    embed: np.ndarray
    y: np.ndarray
    groups: np.ndarray
    folds: np.ndarray

    @property
    def n_classes(self) -> int:
        return len(self.task.classes)

    def subset(self, rows: np.ndarray, *, n_folds: int, seed: int) -> Features:
        """The same features on some rows, with folds made anew."""
        y, groups = self.y[rows], self.groups[rows]
        folds = group_folds(y, groups, n_folds=n_folds, seed=seed)
        return Features(self.task, self.columns, self.x[rows], self.embed[rows], y, groups, folds)


def columns_of(model: LoadedModel, sites: str | Sequence[Site]) -> Columns:
    """Resolve a site expression (``"resid"``, ``"mlp_act:0-5"``) on a model."""
    resolved = parse_sites(sites, model) if isinstance(sites, str) else tuple(sites)
    if not resolved:
        raise InputError(f"site: {sites!r} names no site of {model.name}")
    return Columns(resolved, tuple(model.width(site) for site in resolved))


def capture_features(
    model: LoadedModel,
    task: Task,
    columns: Columns,
    settings: CircuitSettings | None = None,
    *,
    progress: Progress | None = None,
) -> Features:
    """Read a task's activations at all sites of ``columns`` in one pass over its texts, and form its folds.

    Of ``settings`` count the position, the cutting and batching of texts, the number of folds and the seed.

    Raises:
        InputError: when folds cannot be formed, a text is empty, or an activation is not finite.
    """
    settings = settings or CircuitSettings()
    y = np.asarray([example.label for example in task.examples])
    groups = np.asarray([example.group for example in task.examples])
    # Before the costly part, so that a task that cannot be split fails at once.
    folds = group_folds(y, groups, n_folds=settings.n_folds, seed=settings.seed)
    texts = [example.text for example in task.examples]
    embed = Site("embed", 0)
    options: dict[str, Any] = {name: getattr(settings, name) for name in ("position", "batch_tokens", "max_tokens")}
    x = np.empty((len(texts), columns.n), dtype=np.float32)
    embedding: np.ndarray | None = None
    # Sites of one width go through the model together; a study of one kind of site is a single pass.
    for width in sorted(set(columns.widths)):
        positions = [i for i, w in enumerate(columns.widths) if w == width]
        wanted = [columns.sites[i] for i in positions]
        with_embed = embedding is None and model.width(embed) == width and embed not in wanted
        values = activations(model, texts, [embed, *wanted] if with_embed else wanted, progress=progress, **options)
        if with_embed:
            embedding, values = values[:, 0].copy(), values[:, 1:]
        for slot, i in enumerate(positions):
            x[:, columns.slice_of(i)] = values[:, slot]
    if embedding is None:
        embedding = activations(model, texts, [embed], **options)[:, 0]
    return Features(task, columns, x, embedding, y, groups, folds)
