"""Does a circuit change with the size of the model? The same task over models of several sizes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from moescope.errors import InputError
from moescope.models import LoadedModel, load, random_twin
from moescope.models.blueprint import blueprint
from moescope.stats import bootstrap_sums, expanded_percentiles, wilson
from moescope.studies.circuits.claims_scaling import scaling_claims
from moescope.studies.circuits.cues import read_cues
from moescope.studies.circuits.scorer import Scorer
from moescope.studies.circuits.series import Found, depths, folds_of, found_in, read
from moescope.studies.circuits.settings import ScalingSettings
from moescope.studies.circuits.trends import Trend, slopes, trend
from moescope.study.protocol import Context, TasksLike
from moescope.study.repeat import verb
from moescope.study.result import StudyResult
from moescope.study.rows import FoldRows
from moescope.study.run import Run
from moescope.types import Task

_SETTINGS, _RUN = ScalingSettings(), Run()
_DRAWS = 999
_APART = 2.0  # how many times as large the largest must be: of nearly equal sizes a slope is noise over nothing


@verb
def scaling(
    models: Sequence[str | Path | LoadedModel],
    tasks: TasksLike,
    settings: ScalingSettings = _SETTINGS,
    *,
    run: Run = _RUN,
) -> StudyResult:
    """Circuit accuracy, depth of decision and self-overlap of each task over models of several sizes.

    Size is the number of parameters beside the input embedding (Kaplan et al. 2020, "Scaling laws for neural language models",
    section 2.1), on a logarithmic scale. Five models or more are judged, by an interval over texts and models and by every
    order of the sizes; fewer are described, for no order of them could be told from chance.

    Args:
        models: at least two, of different sizes; each is judged on the same texts and folds.

    Returns:
        A result of kind ``"scaling"``: tables ``scaling``, a row for each model and task, and ``scaling_trends``, the slopes
        for a tenfold of parameters.

    Raises:
        InputError: fewer than two models, two of one name, none twice as large as another (said before any is read), or input
            that cannot be used.

    >>> import moescope
    >>> models = ["dense-tiny", "smollm2", "gemma3-270m"]
    >>> result = moescope.scaling(models, ["certainty=halueval"])  # doctest: +SKIP
    >>> result.table("scaling_trends")[["quantity", "slope", "low", "high"]]  # doctest: +SKIP
    """
    context = Context("circuits", settings, run, of=ScalingSettings, spread=True)
    if isinstance(models, str | Path) or len(models) < 2:
        raise InputError("a series of sizes needs at least two", "models")
    sizes = _sizes(models)
    loaded_tasks = context.tasks(tasks)
    folds = {task.name: context.rows(folds_of(task, settings, run)) for task in loaded_tasks}
    found: list[tuple[Size, dict[str, OfModel]]] = []
    fingerprints: dict[str, str] = {}
    for i, (given, size) in enumerate(zip(models, sizes, strict=True)):
        here, fingerprints[size.model] = _over_tasks(
            context, given, size.model, loaded_tasks, folds, settings, (i, len(models))
        )
        found.append((size, here))
    found.sort(key=lambda pair: pair[0].parameters)
    rows = [{**vars(size), "task": task.name, **here[task.name].row} for task in loaded_tasks for size, here in found]
    table = pd.DataFrame(rows)
    trends = pd.DataFrame(
        [
            row
            for task in loaded_tasks
            for row in size_trends(task.name, [size for size, _ in found], [here[task.name] for _, here in found], run.seed)
        ]
    )
    return context.result(
        model=", ".join(size.model for size, _ in found),
        title=f"Circuits over {len(found)} sizes",
        claims=scaling_claims(table, trends, settings),
        tables={"scaling": table, "scaling_trends": trends},
        kind="scaling",
        fingerprints=fingerprints,
        tasks=loaded_tasks,
        forward_tokens=context.tokens.totals(),
    )


@dataclass(frozen=True)
class Size:
    """A model and how large it is: parameters beside the input embedding, and those of it."""

    model: str
    parameters: int
    embedding: int
    layers: int


@dataclass(frozen=True, eq=False)
class OfModel:
    """One task at one model; ``twin``: (N,) bool, hits of the untrained twin's circuit."""

    found: Found
    row: dict[str, Any]
    twin: np.ndarray | None


def _sizes(models: Sequence[str | Path | LoadedModel]) -> list[Size]:
    """Of each model, by its config alone where it is not in memory yet: a series that cannot be one is refused before any of
    it is read."""
    found = [_size_of(_shape(given)) for given in models]
    names = [size.model for size in found]
    if double := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"two are called {double!r}; give each once, or rename a folder", "models")
    counts = [size.parameters for size in found]
    if max(counts) < _APART * min(counts):
        said = ", ".join(f"{size.model} has {size.parameters / 1e6:,.1f} M" for size in found)
        raise InputError(
            f"none is twice as large as another ({said} beside the input embedding); give models of different sizes, or "
            "checkpoints to `moescope dynamics`",
            "models",
        )
    return found


def _shape(given: str | Path | LoadedModel) -> LoadedModel:
    if not isinstance(given, str | Path):
        return load(given)
    made = blueprint(given)
    if not made.weighed and Path(given).expanduser().exists():  # what lies on the Hub alone is not fetched yet
        raise InputError(f"{given} is a config without weights, and is to be read; give the model's folder", "models")
    return made.model


def _size_of(model: LoadedModel) -> Size:
    if model.reads_images:
        raise InputError(f"{model.name} reads images, which a series of sizes does not; `moescope circuits` does", "models")
    if not all(p.is_floating_point() for p in model.body.parameters()):
        raise InputError(
            f"the weights of {model.name} are codes, whose number is not that of its parameters; give its name or folder",
            "models",
        )
    every = sum(p.numel() for p in model.body.parameters())
    embedding = sum(p.numel() for p in model.body.get_input_embeddings().parameters())  # type: ignore[operator]
    return Size(model.name, every - embedding, embedding, model.n_layers)


def _over_tasks(
    context: Context,
    given: str | Path | LoadedModel,
    name: str,
    tasks: Sequence[Task],
    folds: Mapping[str, FoldRows],
    settings: ScalingSettings,
    place: tuple[int, int],
) -> tuple[dict[str, OfModel], str]:
    """Every task at one model, which goes when the next comes, and its fingerprint."""
    model = context.load(given)
    context.tokens.add("batching", model.batching.tokens)
    twin = _twin(context, model) if settings.twin else None
    here = {}
    for task in tasks:
        context.tell(f"{name}: {task.name}", *place)
        one = partial(_of_model, context, model, twin, task, folds[task.name], settings)
        here[task.name] = context.stage(f"{name}: {task.name}", one)
    return here, model.fingerprint


def _twin(context: Context, model: LoadedModel) -> LoadedModel:
    twin = random_twin(model, context.run.seed)
    context.control(
        f"untrained twin of {model.name}",
        differs=twin.fingerprint != model.fingerprint,
        evidence=f"weights {twin.fingerprint[:12]}, the model's {model.fingerprint[:12]}",
    )
    return twin


def _of_model(
    context: Context, model: LoadedModel, twin: LoadedModel | None, task: Task, rows: FoldRows, settings: ScalingSettings
) -> OfModel:
    features = read(context, model, task, rows, settings, "main")
    found = found_in(features, settings)
    scorer = found.scorer
    # nothing is decided where nothing is known
    knows = scorer.gap(found.early[-1], scorer.chance)
    row = {**found.row, "depth": found.row["depth"] if knows.low > 0 else float("nan")}
    row["cue"] = scorer.balanced(read_cues(features, model.tokenizer).chosen_hits())
    if twin is None:
        return OfModel(found, row, None)
    untrained = found_in(read(context, twin, task, rows, settings, "twin"), settings)
    return OfModel(found, {**row, "twin": untrained.row["balanced"]}, untrained.hits)


def size_trends(task: str, sizes: Sequence[Size], models: Sequence[OfModel], seed: int) -> list[dict[str, Any]]:
    """Rows of the table ``scaling_trends``: the slope of each quantity; of the accuracy also beyond that of the twins."""
    x = np.log10([size.parameters for size in sizes])
    judge = _Texts.of([m.found.scorer for m in models], seed)
    hits = [m.found.hits for m in models]
    found = {"accuracy": judge.accuracy(x, hits)}
    deciding = [i for i, m in enumerate(models) if not math.isnan(m.row["depth"])]
    if len(deciding) > 1 and np.ptp(x[deciding]) >= np.log10(_APART):
        found["depth"] = judge.depth(x[deciding], [models[i].found for i in deciding])
    found["self_overlap"] = _repeats(x, np.stack([m.found.repeats for m in models], 1))
    if all(m.twin is not None for m in models):
        twins = [m.twin for m in models if m.twin is not None]
        found["beyond_twin"] = judge.accuracy(x, hits, twins)
    counts = {name: len(deciding) if name == "depth" else len(models) for name in found}
    return [{"task": task, "quantity": name, "models": counts[name], **one._asdict()} for name, one in found.items()]


@dataclass(frozen=True, eq=False)
class _Texts:
    """Resamples groups of texts, the same for every model.

    Attributes:
        code: (N,) int, the group of each row.
        widening: of intervals, the largest of any model (:func:`moescope.select.widening.interval_widening`).
    """

    scorer: Scorer
    code: np.ndarray
    widening: float

    @classmethod
    def of(cls, scorers: Sequence[Scorer], seed: int) -> _Texts:
        first = replace(scorers[0], seed=seed)
        code = np.unique(first.groups, return_inverse=True)[1].ravel()
        return cls(first, code, max(scorer.widening for scorer in scorers))

    def means(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of ``rows`` (C, N) the means (C,), and those of resampled groups (draws, C)."""
        sums = np.zeros((int(self.code.max()) + 1, len(rows) + 1))
        np.add.at(sums, self.code, np.column_stack([rows.T, np.ones(len(self.code))]))
        drawn = bootstrap_sums(sums, n_boot=_DRAWS, seed=self.scorer.seed)
        return rows.mean(1), drawn[:, :-1] / drawn[:, -1:]

    def accuracy(self, x: np.ndarray, hits: Sequence[np.ndarray], less: Sequence[np.ndarray] | None = None) -> Trend:
        rows = np.stack([self.scorer.weighed(h) for h in hits])
        if less is not None:
            rows = rows - np.stack([self.scorer.weighed(h) for h in less])
        return self.trend(x, *self.means(rows))

    def depth(self, x: np.ndarray, found: Sequence[Found]) -> Trend:
        mean, drawn = self.means(np.concatenate([self.scorer.weighed(one.early) for one in found]))
        ends = np.cumsum([0, *(len(one.early) for one in found)])
        parts = [slice(a, b) for a, b in itertools.pairwise(ends)]
        chance = self.scorer.chance
        curves = np.stack([depths(drawn[:, part], chance) for part in parts], 1)
        return self.trend(x, np.array([depths(mean[part], chance) for part in parts]), curves)

    def trend(self, x: np.ndarray, values: np.ndarray, drawn: np.ndarray) -> Trend:
        """From a value a model (M,) and those of resampled texts (draws, M)."""
        n_groups, slope = int(self.code.max()) + 1, float(slopes(x, values))
        low, high = expanded_percentiles(slopes(x, drawn), n_groups)
        if low == high:  # resampling what does not vary claims certainty
            half = wilson(0, n_groups)[1] / float(np.ptp(x))
            low, high = slope - half, slope + half
        return trend(x, values, (slope - self.widening * (slope - low), slope + self.widening * (high - slope)))


def _repeats(x: np.ndarray, overlaps: np.ndarray) -> Trend:
    """Of self-overlaps (1 + F, M), the interval over texts by the jackknife over folds (Student's t)."""
    slope, out = float(slopes(x, overlaps[0])), slopes(x, overlaps[1:])
    n = len(out)
    half = float(np.sqrt((n - 1) * out.var()) * student.ppf(0.975, n - 1))
    return trend(x, overlaps[0], (slope - half, slope + half))
