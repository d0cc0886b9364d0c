"""Tables of classification: every signature variant and every trivial cue, under every split."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from moescope.routing.classify import (
    classifier,
    confusion,
    cross_validate,
    folds_by,
    length_matched,
    permuted_accuracy,
    score,
    token_counts,
)
from moescope.routing.conditional import Cues, conditional
from moescope.routing.separation import Estimate, clustered
from moescope.routing.signatures import QUANTITIES, signatures_of
from moescope.routing.subject import Subject
from moescope.routing.trace import PARTS
from moescope.stats import class_weights
from moescope.studies.signatures.separations import equal_lengths, with_part
from moescope.studies.signatures.settings import SignatureSettings
from moescope.study.protocol import Context
from moescope.study.rows import FoldRows
from moescope.tasks import group_folds, subset, surface_baselines, surface_predictions

SIGNATURE = "signature"
TOKENS = "token ids (prompt and generated)"
STREAM = "residual stream, mean over tokens, all layers"
# The surface baselines that are worth a row under grouped splits too.
MIN_MATCHED = 10  # length-matched prompts of each category, below which their accuracy says nothing
_WORDS = ("bag of words", "words and bigrams", "length in tokens")


@dataclass(frozen=True)
class Told:
    """How well the category is told under one split, and what of it is left beyond chance and beyond the best cue.

    Attributes:
        row: of ``routing_accuracy``.
        unit: what is resampled whole: cells, topics or templates.
        stream: accuracy less that of the residual stream, and of that beyond guessing; None where it was not read.
    """

    row: dict[str, Any]
    chance: Estimate
    cue: Estimate
    cue_accuracy: float
    both_accuracy: float
    chosen: tuple[str, ...]
    unit: str
    said: dict[str, np.ndarray]
    stream: tuple[Estimate, Estimate] | None = None


def classification_tables(
    subject: Subject, settings: SignatureSettings, context: Context, stream: np.ndarray | None = None
) -> tuple[dict[str, pd.DataFrame], dict[str, Told]]:
    """Tables ``routing_accuracy`` and ``confusion``, and the evidence by split.

    Args:
        stream: (N, D) the prompts' residual stream, which the signature is compared with.
    """
    y, seed = subject.y, context.run.seed
    head = signatures_of(subject.trace, quantity=settings.quantity)
    x = head.flat()
    everything = np.arange(len(y))
    # Rows of the subject, who among them judges whom, and what is resampled whole.
    splits: dict[str, tuple[np.ndarray, FoldRows, np.ndarray]] = {}
    alone = FoldRows("stratified", everything, group_folds(y, everything, settings.n_folds, seed))
    splits["stratified"] = (everything, alone, subject.cells().of)
    for name, groups in (("by topic", subject.topics), ("by template", subject.templates)):
        folds = None if groups is None else folds_by(y, groups, settings.n_folds, seed)
        if groups is not None and folds is not None:
            splits[name] = (everything, FoldRows(name, groups, folds), groups)
    matched = length_matched(head.tokens, y, seed)
    if len(matched) >= MIN_MATCHED * len(subject.categories):
        folds = group_folds(y[matched], matched, settings.n_folds, seed)
        splits["length-matched"] = (matched, FoldRows("length-matched", matched, folds), subject.cells(matched).of)
    rows: list[dict[str, Any]] = []
    tables: dict[str, pd.DataFrame] = {}
    told: dict[str, Told] = {}
    tokens = token_counts(subject.trace) if subject.trace.tokens is not None else None
    for split, (kept, found, unit) in splits.items():
        parts = context.rows(found)
        folds = parts.folds
        predicted = cross_validate(x[kept], y[kept], folds)
        row = _row(SIGNATURE, "signature", split, y[kept], predicted, unit, seed)
        rows.append(row)
        if split == "stratified":
            tables["confusion"] = pd.DataFrame(confusion(y, predicted, subject.categories))
            rows += _variants(subject, settings, folds, seed)
        if split == "length-matched":
            if tokens is not None:
                said = cross_validate(tokens[kept], y[kept], folds)
                rows.append(_row(TOKENS, "cue", split, y[kept], said, unit, seed))
            if subject.texts is not None:
                rows += _cues(subject, kept, folds, split)
            continue
        kind = {"stratified": "cells"}.get(split, split.removeprefix("by ") + "s")
        told[split] = _told(subject, x, tokens, row, predicted, parts, unit, kind, seed)
        if stream is not None:
            probed = cross_validate(stream, y, folds)
            rows.append(_row(STREAM, "probe", split, y, probed, unit, seed))
            told[split] = replace(told[split], stream=_beside(predicted == y, probed == y, y, unit))
        for name, of in told[split].said.items():
            if split == "stratified" or name in (*_WORDS, TOKENS):
                rows.append(_row(name, "cue", split, y, of, unit, seed))
        if told[split].chosen:
            names = {"chosen cue": "cue_accuracy", "chosen cue and signature": "both_accuracy"}
            shared = {"kind": "conditional", "split": split, "n": len(y)}
            rows += [{"features": name, "balanced": getattr(told[split], of), **shared} for name, of in names.items()]
    frame = pd.DataFrame(rows + _equal_lengths(subject, settings, context))
    if settings.n_label_permutations:
        null, p = permuted_accuracy(
            x,
            y,
            subject.blocks(),
            n_permutations=settings.n_label_permutations,
            n_folds=settings.n_folds,
            seed=seed,
        )
        low, high = np.quantile(null, [0.025, 0.975])
        null_row: dict[str, Any] = {"features": "signature, labels permuted", "kind": "null", "split": "stratified"}
        null_row |= {"accuracy": float(null.mean()), "low": float(low), "high": float(high), "n": len(y)}
        frame = pd.concat([frame, pd.DataFrame([null_row])], ignore_index=True)
        headline = (frame["features"] == SIGNATURE) & (frame["split"] == "stratified")
        frame["p"] = np.where(headline, p, np.nan)
        told["stratified"] = replace(told["stratified"], chance=told["stratified"].chance._replace(p=p))
    tables["routing_accuracy"] = frame
    return tables, told


def _told(
    subject: Subject,
    x: np.ndarray,
    tokens: sparse.csr_matrix | None,
    row: dict[str, Any],
    predicted: np.ndarray,
    parts: FoldRows,
    unit: np.ndarray,
    kind: str,
    seed: int,
) -> Told:
    y = subject.y
    weights = class_weights(y)
    chance = clustered(weights * (predicted == y) - 1 / len(subject.categories), unit)
    cues = _cue_predictions(subject, tokens)
    nothing = Estimate(*[float("nan")] * 4)
    if cues is None:
        return Told(row, chance, nothing, float("nan"), float("nan"), (), kind, {})
    found = conditional(x, cues, y, parts.folds, parts.groups, seed)
    alone, both = weights * (found.cue == y), weights * (found.both == y)
    beyond = clustered(both - alone, unit)
    return Told(row, chance, beyond, float(alone.mean()), float(both.mean()), found.chosen, kind, found.said)


def _beside(right: np.ndarray, probe: np.ndarray, y: np.ndarray, unit: np.ndarray) -> tuple[Estimate, Estimate]:
    """Balanced accuracy of the signature less that of a probe, and of the probe beyond guessing: from who was right (N,)."""
    weights = class_weights(y)
    return (
        clustered(weights * right - weights * probe, unit),
        clustered(weights * probe - 1 / len(np.unique(y)), unit),
    )


def _cue_predictions(subject: Subject, tokens: sparse.csr_matrix | None) -> Cues | None:
    """What token ids and the surface cues say; None where neither tokens nor texts are known."""
    if tokens is None and subject.texts is None:
        return None
    task = None if subject.texts is None else subject.task()

    def cues(train: np.ndarray, held: np.ndarray) -> dict[str, np.ndarray]:
        said = {} if task is None else surface_predictions(task, train, held, subject.tokenizer)
        if tokens is not None:
            said[TOKENS] = classifier(tokens[train], subject.y[train]).predict(tokens[held])
        return said

    return cues


def _row(
    features: str, kind: str, split: str, y: np.ndarray, predicted: np.ndarray, groups: np.ndarray | None, seed: int
) -> dict[str, Any]:
    return {"features": features, "kind": kind, "split": split, **asdict(score(y, predicted, groups, seed=seed))}


def _variants(subject: Subject, settings: SignatureSettings, folds: np.ndarray, seed: int) -> list[dict[str, Any]]:
    """Other quantities and parts, and single layers, in the headline's folds."""
    rows = []
    y = subject.y
    for quantity in QUANTITIES:
        if quantity == "weight" and subject.trace.weights is None:
            continue
        for part in PARTS:
            kept = with_part(subject, part)
            if (quantity, part) == (settings.quantity, "all") or kept is None or not _every_fold(y, folds, kept):
                continue
            x = signatures_of(subject.trace.select(kept), quantity=quantity, part=part).flat()
            name = f"{quantity}, {part} tokens"
            predicted = cross_validate(x, y[kept], folds[kept])
            rows.append(_row(name, "variant", "stratified", y[kept], predicted, None, seed))
    head = signatures_of(subject.trace, quantity=settings.quantity)
    for layer in head.layers:
        predicted = cross_validate(head.flat(layer), y, folds)
        rows.append(_row(f"layer {layer}", "layer", "stratified", y, predicted, None, seed))
    return rows


def _equal_lengths(subject: Subject, settings: SignatureSettings, context: Context) -> list[dict[str, Any]]:
    """Signature and token ids of the first tokens only, as many of every prompt."""
    kept, cut = equal_lengths(subject)
    y = subject.y[kept]
    seed = context.run.seed
    found = folds_by(y, kept, settings.n_folds, seed)
    if found is None:
        return []
    folds = context.rows(FoldRows("equal lengths", kept, found)).folds
    predicted = cross_validate(signatures_of(cut, quantity=settings.quantity).flat(), y, folds)
    rows = [_row(SIGNATURE, "signature", "equal lengths", y, predicted, None, seed)]
    if cut.tokens is not None:
        predicted = cross_validate(token_counts(cut), y, folds)
        rows.append(_row(TOKENS, "cue", "equal lengths", y, predicted, None, seed))
    return rows


def _every_fold(y: np.ndarray, folds: np.ndarray, kept: np.ndarray) -> bool:
    """Whether each fold still trains on every category when only some rows are kept."""
    return all(len(set(y[kept][folds[kept] != f])) == len(set(y)) for f in np.unique(folds[kept]))


def _cues(subject: Subject, kept: np.ndarray, folds: np.ndarray, split: str) -> list[dict[str, Any]]:
    """The surface baselines of the prompts' texts, in the same folds as the signature."""
    found = surface_baselines(subset(subject.task(), kept), folds, tokenizer=subject.tokenizer)
    return [
        {"features": str(r["control"]), "kind": "cue", "split": split, **{k: r[k] for k in ("accuracy", "low", "high", "n")}}
        for r in found[found["control"].isin(_WORDS)].to_dict("records")
    ]
