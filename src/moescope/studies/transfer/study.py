"""The transfer study: what two models' routing of the same prompts has in common, from likeness to a shared classifier."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from moescope.errors import InputError
from moescope.models import LoadedModel
from moescope.routing.classify import cross_validate, prompt_folds, token_counts
from moescope.routing.dense import any_trace
from moescope.routing.signatures import Signatures, signatures_of
from moescope.routing.subject import Subject, subject_of
from moescope.routing.trace import RoutingTrace
from moescope.stats import group_bootstrap
from moescope.studies.transfer.alignment import Held, held_out, pairing, reduced, rsa, signature_similarity
from moescope.studies.transfer.claims import alignment_claims, counterpart_claims, similarity_claims
from moescope.studies.transfer.counterparts import counterparts, same_shape
from moescope.studies.transfer.settings import TransferSettings
from moescope.study.protocol import Context, ModelLike, PromptsLike
from moescope.study.repeat import verb
from moescope.study.result import StudyResult
from moescope.study.rows import FoldRows
from moescope.study.run import Run
from moescope.study.verdicts import Case, beyond_draws
from moescope.tasks import Prompt
from moescope.types import Claim

_SETTINGS, _RUN = TransferSettings(), Run()


@verb
def transfer(
    model_a: ModelLike | RoutingTrace,
    model_b: ModelLike | RoutingTrace,
    prompts: PromptsLike | None = None,
    settings: TransferSettings = _SETTINGS,
    *,
    run: Run = _RUN,
) -> StudyResult:
    """Compare the routing of the same prompts in two models, which need share neither experts, layers nor tokenizer.

    A dense model is read by groups of its MLPs' neurons (:mod:`moescope.routing.dense`).

    Args:
        model_a, model_b: models, or traces of the same prompts.
        prompts: with categories; None: ``routing-480``, and of traces what they say of their prompts themselves.

    Returns:
        A result of kind ``"transfer"``: tables ``similarity``, ``alignment`` and, for two versions of one model,
        ``counterparts``.

    Raises:
        InputError: the traces are of different prompts, or these have no categories.

    >>> import moescope
    >>> result = moescope.transfer("moe-tiny", "dense-tiny", "routing-80")  # doctest: +SKIP
    >>> result.table("alignment")[["measure", "value", "null", "p"]]  # doctest: +SKIP
    """
    context = Context("transfer", settings, run, of=TransferSettings)
    if settings.dtype_b is not None and not isinstance(model_b, str | Path):
        raise InputError("the second model is in memory already; load it in the precision that is wanted", "dtype_b")
    if prompts is None and not (isinstance(model_a, RoutingTrace) and isinstance(model_b, RoutingTrace)):
        prompts = "routing-480"
    asked = None if prompts is None else context.prompts(prompts)
    other: dict[str, Any] = {} if settings.dtype_b is None else {"dtype": settings.dtype_b}
    both = [
        one.validate() if isinstance(one, RoutingTrace) else context.load(one, **options)
        for one, options in ((model_a, {}), (model_b, other))
    ]
    traces = []
    for name, one in zip("AB", both, strict=True):
        if isinstance(one, RoutingTrace):
            context.stages.read(one)
            traces.append(one)
            continue
        reading = partial(
            any_trace,
            one,
            asked or (),
            n_experts=settings.n_experts,
            k=settings.active,
            seed=run.seed,
            max_tokens=run.max_tokens,
            batch_tokens=run.batch_tokens,
            progress=context.counter(f"reading model {name}"),
        )
        traces.append(context.stage(f"reading model {name}", reading))
    a, b = _paired(traces[0], traces[1], asked)
    y, left, right = a.y, signatures_of(a.trace), signatures_of(b.trace)
    tokens = signature_similarity(token_counts(a.trace).toarray()) if a.trace.tokens is not None else None
    context.tell("similarity", 0, 2)
    likeness = partial(
        rsa,
        signature_similarity(left.flat()),
        signature_similarity(right.flat()),
        y,
        topics=a.topics,
        tokens=tokens,
        n_permutations=settings.n_permutations,
        seed=run.seed,
    )
    overall = context.stage("similarity", likeness)
    context.tell("similarity", 1, 2)
    tables = {
        "similarity": pd.DataFrame(
            [{"layer_a": None, "layer_b": None, **dataclasses.asdict(overall)}, *_layer_rows(left, right)]
        )
    }
    rows = context.rows(prompt_folds(y, a.topics, settings.n_folds, run.seed))
    aligned = partial(_aligned, context, settings, left, right, a, rows)
    tables["alignment"], held = context.stage("alignment", aligned)
    claims: list[Claim | Case] = [
        *similarity_claims(overall, settings.rho_margin),
        *alignment_claims(tables["alignment"], held, settings.margin),
    ]
    if same_shape(traces[0], traces[1]):
        found = context.stage("counterparts", lambda: counterparts(traces[0], traces[1], seed=run.seed))
        tables["counterparts"] = pd.DataFrame({"layer": traces[0].layers, **dataclasses.asdict(found)})
        claims += counterpart_claims(tables["counterparts"])
        context.control(
            "renumbered experts",
            differs=bool((found.kept < 1).all()),
            evidence=f"{found.kept.mean():.1%} of B's experts keep their number, and so their pairing with A's",
        )
    names = [str(t.meta.get("model", n)) for t, n in zip(traces, "AB", strict=True)]
    return context.result(
        model=_model(both[0]),
        title=f"Routing of {names[0]} and of {names[1]}",
        claims=claims,
        tables=tables,
        prompts=len(y),
        model_b=None if (second := _model(both[1])) is None else _about(second),
    )


def _model(one: LoadedModel | RoutingTrace) -> LoadedModel | None:
    return one if isinstance(one, LoadedModel) else None


def _about(model: LoadedModel) -> dict[str, Any]:
    return {"name": model.name, "revision": model.revision, "fingerprint": model.fingerprint}


def _paired(trace_a: RoutingTrace, trace_b: RoutingTrace, prompts: Sequence[Prompt] | None) -> tuple[Subject, Subject]:
    ids = [s.id for s in trace_a.sequences]
    missing = sorted(set(ids) ^ {s.id for s in trace_b.sequences})
    if missing:
        raise InputError(f"the two traces are not of the same prompts: {missing[0]!r} is in one alone; trace the same prompts")
    return subject_of(trace_a, prompts), subject_of(trace_b.select(ids), prompts)


def _aligned(
    context: Context, settings: TransferSettings, left: Signatures, right: Signatures, subject: Subject, rows: FoldRows
) -> tuple[pd.DataFrame, Held]:
    """The table ``alignment``, and what held-out prompts gave."""
    # the spaces are cut to more dimensions than are rotated, once for all, without categories or pairing: it is for speed
    space_a, space_b = (reduced(s.flat(), 4 * settings.dimensions) for s in (left, right))
    y, topics = subject.y, subject.topics
    held = held_out(space_a, space_b, y, rows, dimensions=settings.dimensions)
    null: dict[str, list[dict[str, float]]] = {"a": [], "b": []}
    rng = np.random.default_rng(context.run.seed)
    kept = []
    for i in range(settings.n_alignments):
        # exact where one of the models says nothing of the prompts beyond their topics: its rows may then stand in any order
        order = pairing(y, topics, rng)
        kept.append(float((order == np.arange(len(y))).mean()))
        null["a"].append(_scores(held_out(space_a[order], space_b, y, rows, dimensions=settings.dimensions), y))
        null["b"].append(_scores(held_out(space_a, space_b[order], y, rows, dimensions=settings.dimensions), y))
        context.tell("aligning", i + 1, settings.n_alignments)
    context.control(
        "shuffled pairings",
        differs=max(kept) < 1,
        evidence=f"{np.mean(kept):.1%} of prompts keep their place, at most {max(kept):.1%}",
    )
    native = {name: cross_validate(s.flat(), y, rows.folds) == y for name, s in (("a", left), ("b", right))}
    return _alignment_table(held, null, native, y, rows.groups, context.run.seed), held


def _scores(held: Held, y: np.ndarray) -> dict[str, float]:
    return {
        "explained": held.explained,
        "matched": float(held.matched.mean()),
        "cross_model": float((held.predicted == y).mean()),
    }


def _layer_rows(left: Signatures, right: Signatures) -> list[dict[str, Any]]:
    """Likeness of every layer of A with every layer of B (rho alone: a map, not a test)."""
    upper = np.triu_indices(len(left.values), 1)
    similar_a = {layer: signature_similarity(left.flat(layer))[upper] for layer in left.layers}
    similar_b = {layer: signature_similarity(right.flat(layer))[upper] for layer in right.layers}
    table_a = pd.DataFrame(similar_a).rank()
    table_b = pd.DataFrame(similar_b).rank()
    return [
        {"layer_a": i, "layer_b": j, "rho": float(np.corrcoef(table_a[i], table_b[j])[0, 1])}
        for i in left.layers
        for j in right.layers
    ]


def _alignment_table(
    held: Held,
    null: dict[str, list[dict[str, float]]],
    native: dict[str, np.ndarray],
    y: np.ndarray,
    groups: np.ndarray,
    seed: int,
) -> pd.DataFrame:
    """Table ``alignment``."""
    majority = float(np.bincount(y).max() / len(y))
    chance = {"explained": 0.0, "matched": held.chance, "cross_model": majority}
    hits = {"matched": held.matched, "cross_model": held.predicted == y}
    rows: list[dict[str, Any]] = []
    for name, value in _scores(held, y).items():
        low, high = group_bootstrap(hits[name].astype(float), groups, seed=seed) if name in hits else (np.nan, np.nan)
        shuffled = [np.array([scores[name] for scores in found]) for found in null.values()]
        # that neither model's order is idle: the larger p (an intersection-union test)
        p, mean, draws = max((beyond_draws(value, draws, "", 0.0).p, draws.mean(), i) for i, draws in enumerate(shuffled))
        ends = np.quantile(shuffled[draws], [0.025, 0.975])
        row = {"measure": name, "value": value, "low": low, "high": high, "chance": chance[name], "null": float(mean)}
        rows.append(row | {"null_low": float(ends[0]), "null_high": float(ends[1]), "p": p})
    for name, correct in native.items():
        low, high = group_bootstrap(correct.astype(float), groups, seed=seed)
        rows.append({"measure": f"native_{name}", "value": float(correct.mean()), "low": low, "high": high, "chance": majority})
    return pd.DataFrame(rows)
