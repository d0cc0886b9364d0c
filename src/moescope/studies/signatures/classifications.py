"""Tables of classification: every signature variant and every trivial cue, under every split."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from moescope.routing.classify import (
    confusion,
    cross_validate,
    folds_by,
    length_matched,
    permuted_accuracy,
    score,
    token_counts,
)
from moescope.routing.signatures import QUANTITIES, signatures_of
from moescope.routing.subject import Subject
from moescope.routing.trace import PARTS
from moescope.studies.signatures.separations import equal_lengths, with_part
from moescope.studies.signatures.settings import SignatureSettings
from moescope.study.protocol import Context
from moescope.study.rows import FoldRows
from moescope.tasks import group_folds, subset, surface_baselines

SIGNATURE = "signature"
TOKENS = "token ids (prompt and generated)"
# The surface baselines that are worth a row under grouped splits too.
MIN_MATCHED = 10  # length-matched prompts of each category, below which their accuracy says nothing
_WORDS = ("bag of words", "words and bigrams", "length in tokens")


def classification_tables(subject: Subject, settings: SignatureSettings, context: Context) -> dict[str, pd.DataFrame]:
    """Tables ``routing_accuracy`` and ``confusion``."""
    y, seed = subject.y, context.run.seed
    head = signatures_of(subject.trace, quantity=settings.quantity)
    x = head.flat()
    splits: dict[str, tuple[np.ndarray, FoldRows]] = {}  # rows of the subject, and who among them judges whom
    everything = np.arange(len(y))
    splits["stratified"] = (everything, FoldRows("stratified", everything, group_folds(y, everything, settings.n_folds, seed)))
    for name, groups in (("by topic", subject.topics), ("by template", subject.templates)):
        folds = None if groups is None else folds_by(y, groups, settings.n_folds, seed)
        if groups is not None and folds is not None:
            splits[name] = (everything, FoldRows(name, groups, folds))
    matched = length_matched(head.tokens, y, seed)
    if len(matched) >= MIN_MATCHED * len(subject.categories):
        folds = group_folds(y[matched], matched, settings.n_folds, seed)
        splits["length-matched"] = (matched, FoldRows("length-matched", matched, folds))
    rows: list[dict[str, Any]] = []
    tables: dict[str, pd.DataFrame] = {}
    tokens = token_counts(subject.trace) if subject.trace.tokens is not None else None
    for split, (kept, found) in splits.items():
        parts = context.rows(found)
        folds, groups = parts.folds, parts.groups
        predicted = cross_validate(x[kept], y[kept], folds)
        rows.append(_row(SIGNATURE, "signature", split, y[kept], predicted, groups, settings, seed))
        if split == "stratified":
            tables["confusion"] = pd.DataFrame(confusion(y, predicted, subject.categories))
            rows += _variants(subject, settings, folds, seed)
        if tokens is not None:
            predicted = cross_validate(tokens[kept], y[kept], folds)
            rows.append(_row(TOKENS, "cue", split, y[kept], predicted, groups, settings, seed))
        if subject.texts is not None:
            rows += _cues(subject, kept, folds, split)
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
    tables["routing_accuracy"] = frame
    return tables


def _row(
    features: str,
    kind: str,
    split: str,
    y: np.ndarray,
    predicted: np.ndarray,
    groups: np.ndarray | None,
    settings: SignatureSettings,
    seed: int,
) -> dict[str, Any]:
    found = score(y, predicted, groups, n_boot=settings.n_boot, seed=seed)
    return {"features": features, "kind": kind, "split": split, **asdict(found)}


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
            rows.append(_row(name, "variant", "stratified", y[kept], predicted, None, settings, seed))
    head = signatures_of(subject.trace, quantity=settings.quantity)
    for layer in head.layers:
        predicted = cross_validate(head.flat(layer), y, folds)
        rows.append(_row(f"layer {layer}", "layer", "stratified", y, predicted, None, settings, seed))
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
    rows = [_row(SIGNATURE, "signature", "equal lengths", y, predicted, None, settings, seed)]
    if cut.tokens is not None:
        predicted = cross_validate(token_counts(cut), y, folds)
        rows.append(_row(TOKENS, "cue", "equal lengths", y, predicted, None, settings, seed))
    return rows


def _every_fold(y: np.ndarray, folds: np.ndarray, kept: np.ndarray) -> bool:
    """Whether each fold still trains on every category when only some rows are kept."""
    return all(len(set(y[kept][folds[kept] != f])) == len(set(y)) for f in np.unique(folds[kept]))


def _cues(subject: Subject, kept: np.ndarray, folds: np.ndarray, split: str) -> list[dict[str, Any]]:
    """The surface baselines of the prompts' texts, in the same folds as the signature."""
    task = subset(subject.task(), kept)
    found = surface_baselines(task, folds, tokenizer=subject.tokenizer)
    if split != "stratified":
        found = found[found["control"].isin(_WORDS)]
    return [
        {"features": str(r["control"]), "kind": "cue", "split": split, **{k: r[k] for k in ("accuracy", "low", "high", "n")}}
        for r in found.to_dict("records")
    ]
