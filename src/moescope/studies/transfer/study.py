"""The transfer study: what two models' routing of the same prompts has in common, from likeness to a shared classifier."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from moescope.errors import InputError
from moescope.routing.classify import cross_validate, folds_by, token_counts
from moescope.routing.signatures import Signatures, signatures_of
from moescope.routing.subject import Subject, subject_of
from moescope.routing.trace import RoutingTrace
from moescope.stats import group_bootstrap, permutation_p, wilson
from moescope.studies.transfer.alignment import Held, Rsa, held_out, reduced, rsa, signature_similarity
from moescope.studies.transfer.counterparts import counterparts, same_shape
from moescope.study.provenance import provenance
from moescope.study.result import StudyResult
from moescope.tasks import group_folds
from moescope.types import Claim, Verdict

if TYPE_CHECKING:
    from moescope.models import LoadedModel
    from moescope.tasks.prompts import Prompt

Report = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransferSettings:
    """How two models are compared.

    Attributes:
        dimensions: principal components that are rotated onto each other.
        n_permutations: shuffles of the prompts for the similarity of similarities.
        n_alignments: shuffles of A's prompts, and as many of B's, for which rotation and classifier are fitted anew; p is
            the larger of the two.
    """

    dimensions: int = 16
    n_folds: int = 5
    n_permutations: int = 999
    n_alignments: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        for option, value, low in (
            ("--dimensions", self.dimensions, 1),
            ("--folds", self.n_folds, 2),
            ("--permutations", self.n_permutations, 19),
            ("--alignments", self.n_alignments, 19),
        ):
            if value < low:
                raise InputError(f"{option}: must be at least {low}, got {value}")


def transfer_study(
    trace_a: RoutingTrace,
    trace_b: RoutingTrace,
    prompts: Sequence[Prompt] | None = None,
    *,
    models: Sequence[LoadedModel] = (),
    settings: TransferSettings | None = None,
    report: Report | None = None,
) -> StudyResult:
    """Compare two traces of the same prompts; the models need share neither experts, layers nor tokenizer.

    Args:
        prompts: those that were traced; needed where the traces themselves have no categories.
        models: both, for the result's provenance.

    Returns:
        Kind ``"transfer"``; tables ``similarity`` (overall and for every pair of layers), ``alignment``, and, for two
        versions of one model, ``counterparts``.

    Raises:
        InputError: the traces are of different prompts, or these have no categories.
    """
    settings = settings or TransferSettings()
    began = time.time()
    a, b = _paired(trace_a, trace_b, prompts)
    y = a.y
    left, right = signatures_of(a.trace), signatures_of(b.trace)
    tokens = signature_similarity(token_counts(a.trace).toarray()) if a.trace.tokens is not None else None
    tell = report or (lambda stage, done, total: None)
    tell("similarity", 0, 2)
    options: dict[str, Any] = {"n_permutations": settings.n_permutations, "seed": settings.seed}
    overall = rsa(signature_similarity(left.flat()), signature_similarity(right.flat()), y, tokens=tokens, **options)
    tell("similarity", 1, 2)
    by_layer = _layer_rows(left, right)
    folds = _folds(a, settings)
    # the spaces are cut to more dimensions than are rotated, once for all, without categories or pairing: it is for speed
    space_a, space_b = (reduced(s.flat(), 4 * settings.dimensions) for s in (left, right))
    held = held_out(space_a, space_b, y, folds, dimensions=settings.dimensions)
    null: dict[str, list[dict[str, float]]] = {"a": [], "b": []}
    rng = np.random.default_rng(settings.seed)
    for i in range(settings.n_alignments):
        # exact where one of the models says nothing of the prompts: its rows may then stand in any order
        order = rng.permutation(len(y))
        null["a"].append(_scores(held_out(space_a[order], space_b, y, folds, dimensions=settings.dimensions), y))
        null["b"].append(_scores(held_out(space_a, space_b[order], y, folds, dimensions=settings.dimensions), y))
        tell("aligning", i + 1, settings.n_alignments)
    native = {name: cross_validate(s.flat(), y, folds) == y for name, s in (("a", left), ("b", right))}
    alignment = _alignment_table(held, null, native, y, settings.seed)
    tables = {
        "similarity": pd.DataFrame([{"layer_a": None, "layer_b": None, **dataclasses.asdict(overall)}, *by_layer]),
        "alignment": alignment,
    }
    names = [str(t.meta.get("model", n)) for t, n in ((trace_a, "A"), (trace_b, "B"))]
    claims = [*_similarity_claims(overall), *_alignment_claims(alignment, held)]
    if same_shape(trace_a, trace_b):
        found = counterparts(trace_a, trace_b, seed=settings.seed)
        tables["counterparts"] = pd.DataFrame({"layer": trace_a.layers, **dataclasses.asdict(found)})
        claims += _counterpart_claims(tables["counterparts"])
    meta: dict[str, Any] = {"settings": dataclasses.asdict(settings), "seed": settings.seed}
    if models:
        meta = provenance(models[0], [], seed=settings.seed, settings=dataclasses.asdict(settings))
        meta["model_b"] = {"name": models[1].name, "revision": models[1].revision, "fingerprint": models[1].fingerprint}
    meta |= {"title": f"Routing of {names[0]} and of {names[1]}", "seconds": round(time.time() - began, 1), "prompts": len(y)}
    tell("done", 1, 1)
    return StudyResult("transfer", meta, tuple(claims), tables=tables)


def _paired(trace_a: RoutingTrace, trace_b: RoutingTrace, prompts: Sequence[Prompt] | None) -> tuple[Subject, Subject]:
    ids = [s.id for s in trace_a.sequences]
    missing = sorted(set(ids) ^ {s.id for s in trace_b.sequences})
    if missing:
        raise InputError(f"the two traces are not of the same prompts: {missing[0]!r} is in one alone; trace the same prompts")
    return subject_of(trace_a, prompts), subject_of(trace_b.select(ids), prompts)


def _folds(subject: Subject, settings: TransferSettings) -> np.ndarray:
    """Folds that keep topics whole where prompts have them: prompts on one topic are no test of each other."""
    if subject.topics is not None:
        by_topic = folds_by(subject.y, subject.topics, settings.n_folds, settings.seed)
        if by_topic is not None:
            return by_topic
    return group_folds(subject.y, np.arange(len(subject.y)), settings.n_folds, settings.seed)


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
    held: Held, null: dict[str, list[dict[str, float]]], native: dict[str, np.ndarray], y: np.ndarray, seed: int
) -> pd.DataFrame:
    """Rows explained, matched, cross_model (value, low, high, chance, null, p), native_a and native_b (accuracies)."""
    majority = float(np.bincount(y).max() / len(y))
    chance = {"explained": 0.0, "matched": held.chance, "cross_model": majority}
    hits = {"matched": held.matched, "cross_model": held.predicted == y}
    rows: list[dict[str, Any]] = []
    for name, value in _scores(held, y).items():
        low, high = wilson(int(hits[name].sum()), len(y)) if name in hits else (np.nan, np.nan)
        shuffled = {model: np.array([scores[name] for scores in found]) for model, found in null.items()}
        # that neither model's order is idle: the larger p (an intersection-union test)
        p = max(float(permutation_p(value - 1e-9, values)) for values in shuffled.values())
        row = {"measure": name, "value": value, "low": low, "high": high, "chance": chance[name]}
        rows.append(row | {"null": float(np.mean([*shuffled.values()])), "p": p})
    for name, correct in native.items():
        low, high = group_bootstrap(correct.astype(float), seed=seed)
        rows.append({"measure": f"native_{name}", "value": float(correct.mean()), "low": low, "high": high, "chance": majority})
    return pd.DataFrame(rows)


def _verdict(p: float) -> Verdict:
    return "measured" if p <= 0.05 else "explained by chance"


def _similarity_claims(found: Rsa) -> list[Claim]:
    known = not np.isnan(found.partial)
    trivial = known and found.p_partial >= 0.05 and found.p < 0.05
    note = f"Spearman of the prompts' similarities (Mantel test); within a category p = {found.p_within:.3g}"
    if known:
        note += f"; with shared tokens held fixed {found.partial:.3f} (p = {found.p_partial:.3g})"
    return [
        Claim(
            name="prompts that route alike in A route alike in B",
            measured=found.rho,
            null=found.null,
            p=found.p,
            verdict="explained by a trivial cue" if trivial else _verdict(found.p),
            note=note,
        )
    ]


def _alignment_claims(table: pd.DataFrame, held: Held) -> list[Claim]:
    by = {row["measure"]: row for row in table.to_dict("records")}
    cross, own = by["cross_model"], by["native_a"]
    return [
        Claim(
            name="a rotation carries held-out prompts from A to B",
            measured=by["matched"]["value"],
            interval=(by["matched"]["low"], by["matched"]["high"]),
            null=by["matched"]["null"],
            p=by["matched"]["p"],
            verdict=_verdict(by["matched"]["p"]),
            note=f"nearest B prompt is the right one, chance {held.chance:.3f}; explains {held.explained:.1%} of B's variance",
        ),
        Claim(
            name="B's classifier reads A's prompts through the rotation",
            measured=cross["value"],
            interval=(cross["low"], cross["high"]),
            null=cross["null"],
            p=cross["p"],
            verdict=_verdict(cross["p"]),
            note=f"accuracy, topics held out; A's own classifier {own['value']:.1%}, B's own {by['native_b']['value']:.1%}; "
            "null: the prompts of A or of B shuffled",
        ),
    ]


def _counterpart_claims(table: pd.DataFrame) -> list[Claim]:
    mean = table.mean()
    return [
        Claim(
            name="a token keeps its experts from A to B",
            measured=float(mean["overlap"]),
            null=float(mean["chance"]),
            note=f"share of a token's experts; the whole set stays for {mean['same_set']:.1%} of tokens, least in layer "
            f"{int(table.loc[table['same_set'].idxmin(), 'layer'])}; {mean['own_match']:.1%} of experts match themselves best",
        ),
        Claim(
            name="a prompt keeps its signature from A to B",
            measured=float(mean["cosine"]),
            null=float(mean["permuted_cosine"]),
            note="cosine, mean over prompts and layers; null: B's experts renumbered at random",
        ),
    ]
