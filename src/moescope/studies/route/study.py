"""Can the first layers name the task, and do they know what they do not know? A study, with a router as its outcome."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Sequence
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import quantile_test

from moescope.capture.encode import encode
from moescope.errors import InputError
from moescope.models import LoadedModel
from moescope.runtime.choices import Source
from moescope.runtime.exit.heads import check_k
from moescope.runtime.exit.layers import check_leaving
from moescope.runtime.route.bundle import DispatchBundle
from moescope.runtime.route.router import (
    KnownPrompts,
    Named,
    TaskRouter,
    check_calibration,
    fit_router,
    source_sites,
)
from moescope.runtime.route.store import ModelRouter
from moescope.runtime.route.watch import prompt_features, watching
from moescope.stats import group_bootstrap
from moescope.stats.conformal import ltt_size
from moescope.studies.route.act import act, resplits, strangers
from moescope.studies.route.act_claims import act_claims
from moescope.studies.route.claims import route_claims
from moescope.studies.route.early import causal_rows, check_causal, replaced
from moescope.studies.route.early_claims import causal_claims, causal_tables
from moescope.studies.route.experts import check_experts, without_experts
from moescope.studies.route.experts_claims import expert_claims, expert_tables
from moescope.studies.route.settings import FOREIGN, RouteSettings, first_layers
from moescope.studies.route.stream import frontier_table, stream_table
from moescope.study.names import slug
from moescope.study.paired import balanced
from moescope.study.protocol import Context, ModelLike, TasksLike
from moescope.study.repeat import verb
from moescope.study.result import Artifact, StudyResult
from moescope.study.rows import FoldRows, Rows, calibrated
from moescope.study.run import Run
from moescope.tasks import chosen_cue, group_folds, plain_text, split_half
from moescope.types import Example, Site, Task

_SETTINGS, _RUN = RouteSettings(), Run()
_FOREIGN = "WikiText paragraphs"
_FOLDS = 3  # of the fitting rows, within which the surface cue is chosen


@verb
def route(model: ModelLike, tasks: TasksLike, settings: RouteSettings = _SETTINGS, *, run: Run = _RUN) -> StudyResult:
    """Fit a router on prompts of several tasks, and test it on others of theirs and on text that belongs to none.

    Two fifths of the groups fit it, two calibrate the rate of unknowns, one judges. Of three tasks and more, each is also
    left out in turn, and its test prompts are put to a router that does not know it.

    Args:
        model: any; its head is not needed.
        tasks: two or more, or specifications of them (``"a=halueval"``); names must differ.

    Returns:
        A result of kind ``"route"``: tables ``layers``, ``named``, ``unknown`` and ``speed``; artifact ``route``, a
        :class:`~moescope.runtime.route.store.ModelRouter`. With ``settings.act`` also tables ``stream``,
        ``stream_frontier``, ``resplits`` and, of three tasks and more, ``strangers``; the artifact is then a
        :class:`~moescope.runtime.route.bundle.DispatchBundle`. With ``settings.causal`` tables ``causal`` and
        ``causal_changes``.

    Raises:
        InputError: fewer than two tasks, too few prompts for the rate of unknowns or for the risk, a layer out of range,
            routing asked of a dense model, a risk that mistakes of naming alone exceed, or, for ``causal``, no dense layer
            after the one that is read.

    >>> import moescope
    >>> result = moescope.route("dense-tiny", ["a=halueval", "b=uci-sentiment"])  # doctest: +SKIP
    >>> result.artifacts["route"].router.tasks  # doctest: +SKIP
    ('a', 'b')
    """
    context = Context("route", settings, run, of=RouteSettings, spread=True)
    parts = context.tasks(tasks)
    if len(parts) < 2:
        raise InputError("at least two tasks with different names are needed, e.g. a=halueval and b=uci-sentiment", "tasks")
    names = [task.name for task in parts]
    together = _together(parts)
    y = np.array([e.label for e in together.examples])
    rows = calibrated("prompts", together, run.seed)
    acting = _to_act(rows, y, settings, run.seed) if settings.act else None
    classes = np.concatenate([[e.label for e in part.examples] for part in parts]).astype(np.int64)
    early = causal_rows(rows, y, classes, parts, settings, run.seed) if settings.causal else None
    rows = context.rows(rows if acting is None else dataclasses.replace(rows, calibrate=acting.select))
    fitting = rows.groups[rows.fit]
    inner = context.rows(
        FoldRows("prompts, within fit", fitting, group_folds(y[rows.fit], fitting, n_folds=_FOLDS, seed=run.seed))
    )
    for label, name in enumerate(names):  # before the model runs for minutes
        held = rows.groups[rows.calibrate[y[rows.calibrate] == label]]
        check_calibration(name, len(np.unique(held)), settings.unknown)
    if acting is not None:
        context.rows(acting)
        places = [slug(name) for name in names]
        double = next((place for place in places if places.count(place) > 1), None)
        if double:
            raise InputError(f"two would be saved in {double}; name them apart, e.g. b=SOURCE", "tasks")
    early = None if early is None else context.rows(early)
    loaded = context.load(model, head=settings.leave_out is not None)
    if acting is not None:
        check_k(settings.k, loaded.d_model)
        check_leaving(loaded)
    source, layer = _where(loaded, settings)
    if early is not None:
        check_causal(loaded, source, layer)
    if settings.leave_out is not None:
        check_experts(loaded, layer, settings.leave_out, together.examples[0].text)
    texts = [e.text for e in together.examples]
    read = partial(prompt_features, loaded, source=source, layer=layer, batch_tokens=run.batch_tokens)
    # every layer on the way, which costs no further one to run; the router reads those of its own
    steps = _steps(loaded, source, layer)
    passed = tuple(dict.fromkeys(site for sites in steps.values() for site in sites))
    reading = partial(
        read, texts, sites=passed, max_tokens=run.max_tokens, progress=context.counter("reading the first layers")
    )
    every, tokens = context.stage("reading the first layers", reading)
    ends = np.cumsum([loaded.width(site) for site in passed])
    spans = {site: np.arange(end - loaded.width(site), end) for site, end in zip(passed, ends, strict=True)}
    columns = {number: np.concatenate([spans[site] for site in sites]) for number, sites in steps.items()}
    x = every[:, columns[layer]]
    limit = int(np.quantile(encode(loaded, [texts[i] for i in rows.fit]).lengths, 0.9))
    known = set(texts)
    foreign_texts = [text for text in plain_text() if text not in known][:FOREIGN]
    shared = len(known & set(foreign_texts))
    context.control(_FOREIGN, differs=shared == 0, evidence=f"{shared} of {len(foreign_texts)} are prompts of a task")
    # as long as the tasks' own prompts: strangeness must not be length alone
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that they are cut
        foreign = context.stage(_FOREIGN, partial(read, foreign_texts, max_tokens=limit))

    def fitted(rows: Rows, kept: Sequence[int], number: int = layer) -> TaskRouter:
        return context.stage(f"fitting the router on {rows.name}, layer {number}", partial(fit_on, rows, kept, number))

    def fit_on(rows: Rows, kept: Sequence[int], number: int) -> TaskRouter:
        def of(part: np.ndarray) -> KnownPrompts:
            return KnownPrompts(
                every[part][:, columns[number]], tokens[part], np.searchsorted(kept, y[part]), rows.groups[part]
            )

        chosen = [names[i] for i in kept]
        return fit_router(of(rows.fit), of(rows.calibrate), chosen, source=source, layer=number, rate=settings.unknown)

    router = dataclasses.replace(fitted(rows, range(len(names))), reading=loaded.reading)
    named = router.name(x[rows.judge], tokens[rows.judge])
    others: dict[int, tuple[TaskRouter, list[Named]]] = {}
    strange = {"known tasks": named, _FOREIGN: router.name(*foreign)}
    for left_out in range(len(names)) if len(names) > 2 else ():
        rest = [i for i in range(len(names)) if i != left_out]
        alone = f"{names[left_out]}, left out"
        fit, calibrate = (part[y[part] != left_out] for part in (rows.fit, rows.calibrate))
        judge = rows.judge[y[rows.judge] == left_out]
        without = context.rows(Rows(alone, rows.groups, fit=fit, select=fit, calibrate=calibrate, judge=judge))
        other = fitted(without, rest)
        context.control(
            alone, differs=names[left_out] not in other.tasks, evidence=f"its router knows {', '.join(other.tasks)} only"
        )
        strange[alone] = other.name(x[judge], tokens[judge])
        if acting is not None:
            others[left_out] = other, other.name(x, tokens)
    cue = chosen_cue(together, rows.fit, rows.judge, inner.folds, loaded.tokenizer)
    nearest = {layer: [n.nearest for n in named]}
    for number in context.steps("a router after each layer", [number for number in steps if number != layer]):
        one = fitted(rows, range(len(names)), number).name(every[rows.judge][:, columns[number]], tokens[rows.judge])
        nearest[number] = [n.nearest for n in one]
    timed = [texts[i] for i in rows.judge[: settings.timed_texts]]
    tables = {
        "layers": _layers(nearest, y[rows.judge], rows.groups[rows.judge], names, cue, loaded.n_layers, run.seed),
        "named": _confusion(named, y[rows.judge], names),
        "unknown": pd.DataFrame(
            [
                {"prompts": key, "n": len(found), "unknown": float(np.mean([f.task is None for f in found]))}
                for key, found in strange.items()
            ]
        ),
        "speed": context.stage("on the clock", partial(_speed, router, loaded, timed, context)),
    }
    claims = route_claims(router, rows, y, named, cue, tables, settings, run)
    artifacts: dict[str, Artifact] = {"route": ModelRouter(router, loaded)}
    more: dict[str, Any] = {}
    if early is not None:
        moved = replaced(context, loaded, parts, texts, early, router, (x, tokens), (y, classes), settings)
        tables |= causal_tables(moved, names)
        claims = [*causal_claims(moved, layer, names, settings, run), *claims]
    if acting is not None:
        every_name = router.name(x, tokens)
        found = act(context, loaded, parts, together, acting, router, every_name, settings)
        tables["stream"] = stream_table(context, found, texts, acting.judge, settings)
        tables["stream_frontier"] = frontier_table(found, acting.judge, settings)
        tables["resplits"] = resplits(found, acting, settings, run.seed)
        if others:
            tables["strangers"] = strangers(found, acting, others, settings)
        claims = [*act_claims(found, acting, tables, settings, run), *claims]
        if settings.leave_out is not None:
            left = without_experts(context, loaded, texts, y, acting, router, every_name, settings)
            tables |= expert_tables(left, names, acting, run)
            claims = [*expert_claims(left, acting, settings, run), *claims]
            artifacts |= {f"experts/{slug(name)}": mask for name, mask in zip(names, left.masks, strict=True)}
        artifacts["route"] = DispatchBundle(router, loaded, found.dispatcher)
        assert found.dispatcher.guarantee is not None
        more["guarantee"] = found.dispatcher.guarantee.text()
    return context.result(
        model=loaded,
        tasks=parts,
        title=f"Tasks named by {loaded.name}'s first layers"
        + (", and acted on" if settings.act else "")
        + (", and replaced there" if settings.causal else ""),
        claims=claims,
        tables=tables,
        artifacts=artifacts,
        **more,
        features=source,
        layer=layer,
    )


def _to_act(rows: Rows, y: np.ndarray, settings: RouteSettings, seed: int) -> Rows:
    """For acting, the rows that calibrate are halved: one half says what is unknown, the other calibrates all of it together.

    Raises:
        InputError: too few for the risk and delta asked for.
    """
    held = rows.calibrate
    half = split_half(y[held], rows.groups[held], seed)
    acting = Rows("acting", rows.groups, fit=rows.fit, select=held[half], calibrate=held[~half], judge=rows.judge)
    need, groups = ltt_size(settings.risk, settings.delta), len(np.unique(rows.groups[acting.calibrate]))
    if groups < need:
        raise InputError(
            f"risk {settings.risk:g} at delta {settings.delta:g} needs at least {need} calibration groups, a fifth of all are "
            f"{groups}; ask for more risk or delta, or give more rows",
            "risk",
        )
    return acting


def _together(parts: Sequence[Task]) -> Task:
    """One task whose classes are the tasks."""
    examples = tuple(
        Example(e.text, label, f"{label}/{e.group}", e.language) for label, task in enumerate(parts) for e in task.examples
    )
    return Task("route", examples, tuple(t.name for t in parts), "; ".join(t.source for t in parts))


def _where(model: LoadedModel, settings: RouteSettings) -> tuple[Source, int]:
    layer = first_layers(model.n_layers, settings)
    source: Source
    if settings.features == "auto":
        source = "routing" if any(site.layer <= layer for site in model.sites("router")) else "residual"
    else:
        source = settings.features
    return source, layer


def _steps(model: LoadedModel, source: Source, layer: int) -> dict[int, tuple[Site, ...]]:
    """What a router after each layer up to ``layer`` reads, by layer: the residual stream there, or all routing so far."""
    if source == "residual":
        source_sites(model, source, layer)  # that there is such a layer
        return {number: (Site("resid", number),) for number in range(layer + 1)}
    sites = source_sites(model, source, layer)
    numbers = dict.fromkeys([*(site.layer for site in sites), layer])
    return {number: tuple(site for site in sites if site.layer <= number) for number in numbers}


def _layers(
    nearest: dict[int, list[str]],
    y: np.ndarray,
    groups: np.ndarray,
    names: Sequence[str],
    cue: tuple[str, np.ndarray],
    n_layers: int,
    seed: int,
) -> pd.DataFrame:
    beside = {"cue": cue[0], "cue_accuracy": float(balanced(cue[1] == y, y).mean()), "chance": 1 / len(names)}
    rows = []
    for number in sorted(nearest):
        right = balanced(np.array([names.index(name) for name in nearest[number]]) == y, y)
        low, high = group_bootstrap(right, groups, seed=seed)
        at = {"layer": number, "share": (number + 1) / n_layers}
        row = at | {"accuracy": float(right.mean()), "low": max(0.0, low), "high": min(1.0, high)}
        rows.append(row | {"used": number == max(nearest), **beside})
    return pd.DataFrame(rows)


def _confusion(named: list[Named], y: np.ndarray, names: Sequence[str]) -> pd.DataFrame:
    rows = []
    for t, name in enumerate(names):
        found = [n.task for n, label in zip(named, y, strict=True) if label == t]
        shares = {f"as {other}": found.count(other) / len(found) for other in names}
        rows.append({"task": name, "n": len(found), **shares, "as unknown": found.count(None) / len(found)})
    return pd.DataFrame(rows)


@torch.no_grad()
def _speed(router: TaskRouter, model: LoadedModel, texts: list[str], context: Context) -> pd.DataFrame:
    """A forward pass of one prompt bare and watched, in turns; and the naming alone."""
    encoded = encode(model, texts, max_tokens=context.run.max_tokens)
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
        context.tell("on the clock", turn, len(rows))
    x = np.repeat(router.mean[None], 1, axis=0)
    alone = []
    for _ in range(200):
        began = time.perf_counter()
        router.name(x, np.array([20]))
        alone.append(time.perf_counter() - began)
    more = np.subtract(watched, bare)
    between = quantile_test(more, p=0.5).confidence_interval()  # of the median over prompts, by ranks
    return pd.DataFrame(
        [
            {"what": "forward pass of a prompt", "microseconds": 1e6 * median(bare)},
            {
                "what": "more with the router listening",
                "microseconds": 1e6 * float(np.median(more)),
                "low": 1e6 * between.low,
                "high": 1e6 * between.high,
            },
            {"what": "naming alone", "microseconds": 1e6 * median(alone)},
        ]
    )
