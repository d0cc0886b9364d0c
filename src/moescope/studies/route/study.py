"""Can the first layers name the task, and do they know what they do not know? A study, with a router as its outcome."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from moescope.capture.encode import encode
from moescope.errors import InputError
from moescope.models import LoadedModel, load
from moescope.runtime.route.router import Named, Rows, Source, TaskRouter, fit_router
from moescope.runtime.route.store import save_router
from moescope.runtime.route.watch import prompt_features, watching
from moescope.stats import group_bootstrap
from moescope.study.provenance import provenance
from moescope.study.result import StudyResult
from moescope.tasks import load_task, plain_text, surface_predictions
from moescope.tasks.folds import Split, split_rows
from moescope.types import Claim, Example, Task

Report = Callable[[str, int, int], None]
_FOREIGN = "WikiText paragraphs"


@dataclass(frozen=True, kw_only=True)
class RouteSettings:
    """``layer`` None: a quarter of the way up; ``features`` auto: routing where there are routers, else residual."""

    unknown: float = 0.05
    layer: int | None = None
    features: Source | Literal["auto"] = "auto"
    max_tokens: int | None = None
    batch_tokens: int = 8192
    timed_texts: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.unknown < 1:
            raise InputError(f"--unknown: {self.unknown:g} is not between 0 and 1")
        if self.features not in ("auto", "residual", "routing"):
            raise InputError(f"--features: {self.features!r} is none of auto, residual, routing")


@dataclass(frozen=True, eq=False)
class RouteStudy:
    """The result, and the router."""

    result: StudyResult
    router: TaskRouter
    model: LoadedModel

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """The result as :meth:`StudyResult.save` writes it, and the router in ``folder/route``."""
        saved = self.result.save(folder, overwrite=overwrite)
        save_router(self.router, self.model, saved / "route")
        return saved


def route(
    model: str | LoadedModel,
    tasks: Sequence[Task | str],
    *,
    settings: RouteSettings | None = None,
    report: Report | None = None,
    **options: Any,
) -> RouteStudy:
    """Fit a router on prompts of several tasks, and test it on others of theirs and on text that belongs to none.

    Returns:
        The result of kind ``"route"`` (tables ``named``, ``unknown``, ``speed``) and the router.

    Raises:
        InputError: fewer than two tasks, too few prompts for the rate of unknowns, a layer out of range, or routing asked of
            a dense model; one line.
    """
    settings = dataclasses.replace(settings or RouteSettings(), **options)
    began = time.time()
    parts = [load_task(task, seed=settings.seed) if isinstance(task, str) else task for task in tasks]
    names = [task.name for task in parts]
    if len(set(names)) < 2 or len(set(names)) < len(names):
        raise InputError(
            "--task: at least two tasks with different names are needed, e.g. --task a=halueval --task b=uci-sentiment"
        )
    together = _together(parts)
    y = np.array([e.label for e in together.examples])
    groups = np.array([e.group for e in together.examples])
    split = split_rows(together, settings.seed)
    loaded = load(model) if isinstance(model, str) else model
    source, layer = _where(loaded, settings)

    def tell(stage: str) -> Callable[[int, int], None]:
        return lambda done, total: report(stage, done, total) if report is not None else None

    reading: dict[str, Any] = {"max_tokens": settings.max_tokens, "batch_tokens": settings.batch_tokens}
    texts = [e.text for e in together.examples]
    x, tokens = prompt_features(loaded, texts, source, layer, progress=tell("reading the first layers"), **reading)
    limit = int(np.quantile(encode(loaded, [texts[i] for i in split.train]).lengths, 0.9))
    foreign_texts = plain_text()[:200]
    # as long as the tasks' own prompts: strangeness must not be length alone
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that they are cut
        foreign = prompt_features(loaded, foreign_texts, source, layer, **(reading | {"max_tokens": limit}))

    def fitted(kept: Sequence[int]) -> TaskRouter:
        def of(rows: np.ndarray) -> Rows:
            rows = rows[np.isin(y[rows], kept)]
            return Rows(x[rows], tokens[rows], np.searchsorted(kept, y[rows]), groups[rows])

        chosen = [names[i] for i in kept]
        train, held = of(split.train), of(split.calibration)
        return fit_router(train, held, chosen, source=source, layer=layer, rate=settings.unknown)

    router = fitted(range(len(names)))
    named = router.name(x[split.test], tokens[split.test])
    strange = {"known tasks": named, _FOREIGN: router.name(*foreign)}
    if len(names) > 2:
        for left_out in range(len(names)):
            rest = [i for i in range(len(names)) if i != left_out]
            rows = split.test[y[split.test] == left_out]
            strange[f"{names[left_out]}, left out"] = fitted(rest).name(x[rows], tokens[rows])
    tables = {
        "named": _confusion(named, y[split.test], names),
        "unknown": pd.DataFrame(
            [
                {"prompts": key, "n": len(found), "unknown": float(np.mean([f.task is None for f in found]))}
                for key, found in strange.items()
            ]
        ),
        "speed": _speed(router, loaded, [texts[i] for i in split.test[: settings.timed_texts]], settings, tell("on the clock")),
    }
    if report is not None:
        report("done", 1, 1)
    meta = provenance(loaded, list(parts), seed=settings.seed, settings=dataclasses.asdict(settings))
    meta |= {"title": f"Tasks named by {loaded.name}'s first layers", "features": source, "layer": layer}
    meta["seconds"] = round(time.time() - began, 1)
    claims = _claims(router, loaded, together, split, named, tables, settings)
    return RouteStudy(StudyResult("route", meta, tuple(claims), {}, tables), router, loaded)


def _together(parts: Sequence[Task]) -> Task:
    """One task whose classes are the tasks."""
    examples = tuple(
        Example(e.text, label, f"{label}/{e.group}", e.language) for label, task in enumerate(parts) for e in task.examples
    )
    return Task("route", examples, tuple(t.name for t in parts), "; ".join(t.source for t in parts))


def _where(model: LoadedModel, settings: RouteSettings) -> tuple[Source, int]:
    layer = settings.layer if settings.layer is not None else max(0, model.n_layers // 4)
    source: Source
    if settings.features == "auto":
        source = "routing" if any(site.layer <= layer for site in model.sites("router")) else "residual"
    else:
        source = settings.features
    return source, layer


def _confusion(named: list[Named], y: np.ndarray, names: Sequence[str]) -> pd.DataFrame:
    rows = []
    for t, name in enumerate(names):
        found = [n.task for n, label in zip(named, y, strict=True) if label == t]
        shares = {f"as {other}": found.count(other) / len(found) for other in names}
        rows.append({"task": name, "n": len(found), **shares, "as unknown": found.count(None) / len(found)})
    return pd.DataFrame(rows)


@torch.no_grad()
def _speed(
    router: TaskRouter, model: LoadedModel, texts: list[str], settings: RouteSettings, progress: Callable[[int, int], None]
) -> pd.DataFrame:
    """A forward pass of one prompt bare and watched, in turns; and the naming alone."""
    encoded = encode(model, texts, max_tokens=settings.max_tokens)
    rows = [torch.from_numpy(encoded[i].astype(np.int64))[None].to(model.device) for i in range(len(encoded))]
    bare: list[float] = []
    watched: list[float] = []
    for turn, ids in enumerate([rows[0], *rows]):  # the first warms up
        spent = []
        for _ in range(2):
            began = time.perf_counter()
            model.body(input_ids=ids)
            spent.append(time.perf_counter() - began)
            with watching(router, model, lambda _: None):
                began = time.perf_counter()
                model.body(input_ids=ids)
                spent.append(time.perf_counter() - began)
        if turn:
            bare.append(min(spent[0], spent[2]))
            watched.append(min(spent[1], spent[3]))
        progress(turn, len(rows))
    x = np.repeat(router.mean[None], 1, axis=0)
    alone = []
    for _ in range(200):
        began = time.perf_counter()
        router.name(x, np.array([20]))
        alone.append(time.perf_counter() - began)
    extra = median(b - a for a, b in zip(bare, watched, strict=True))
    return pd.DataFrame(
        [
            {"what": "forward pass of a prompt", "microseconds": 1e6 * median(bare)},
            {"what": "more with the router listening", "microseconds": 1e6 * extra},
            {"what": "naming alone", "microseconds": 1e6 * median(alone)},
        ]
    )


def _claims(
    router: TaskRouter,
    model: LoadedModel,
    together: Task,
    split: Split,
    named: list[Named],
    tables: dict[str, pd.DataFrame],
    settings: RouteSettings,
) -> list[Claim]:
    y = np.array([together.examples[i].label for i in split.test])
    groups = np.array([together.examples[i].group for i in split.test])
    right = np.array([n.nearest == together.classes[label] for n, label in zip(named, y, strict=True)])
    strange = np.array([n.task is None for n in named], dtype=float)
    cues = surface_predictions(together, split.train, split.test, model.tokenizer)
    accuracy = {cue: float((said == y).mean()) for cue, said in cues.items()}
    best = max(accuracy, key=lambda cue: accuracy[cue])
    interval = group_bootstrap(right.astype(float), groups, seed=settings.seed)
    trivial = accuracy[best] >= interval[0]
    cost = tables["speed"].set_index("what")["microseconds"]
    more, whole = cost["more with the router listening"], cost["forward pass of a prompt"]
    claims = [
        Claim(
            f"the task is named from {router.source} features of layer {router.layer}",
            float(right.mean()),
            interval=interval,
            null=accuracy[best],
            verdict="explained by a trivial cue" if trivial else "measured",
            note=f"nearest of {len(router.tasks)} tasks on {len(y)} test prompts; null is their best surface cue, {best!r}",
        ),
        Claim(
            "prompts of known tasks called unknown",
            float(strange.mean()),
            interval=group_bootstrap(strange, groups, seed=settings.seed),
            note=f"asked for {router.rate:g}; {len(router.strangeness)} calibration groups",
        ),
    ]
    for row in tables["unknown"].itertuples():
        if row.prompts != "known tasks":
            claims.append(Claim(f"called unknown: {row.prompts}", row.unknown, null=router.rate, note=f"{row.n} prompts"))
    note = f"{cost['naming alone']:.0f} of them for naming; a bare forward pass takes {whole:.0f}; wall clock, this machine"
    claims.append(Claim("microseconds over the forward pass that runs anyway", float(more), note=note))
    return claims
