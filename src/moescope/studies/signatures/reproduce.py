"""The published protocol of the signatures study, next to the published figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pandas as pd

from moescope.models import load
from moescope.studies.signatures import published
from moescope.studies.signatures.settings import SignatureSettings
from moescope.studies.signatures.study import Report, signatures
from moescope.study.result import StudyResult
from moescope.tasks.prompts import Prompt

EMBEDDED = "moe-tiny"
PROMPTS = "routing-80"


def reproduce_signatures(
    model: str | None = None,
    prompts: Sequence[Prompt] | str | None = None,
    *,
    settings: SignatureSettings | None = None,
    report: Report | None = None,
    load_options: dict[str, Any] | None = None,
) -> StudyResult:
    """Run the published settings (80 prompts, 32 generated tokens, all layers) and set the published figures beside.

    Args:
        model: any mixture-of-experts model; None runs the embedded one, and a note says so.
        prompts: labelled prompts, a shipped set or a file; by default ``routing-80``, as many as the source has (its own
            are not at hand).

    Returns:
        A result of kind ``"signatures"`` with a further table ``published`` [figure, published, measured].

    Raises:
        InputError: see :func:`signatures`.
    """
    settings = settings or SignatureSettings()
    notes = [
        f"Note: the source's own 80 prompts are not at hand; {prompts if isinstance(prompts, str) else PROMPTS} stands in."
    ]
    if prompts is not None and not isinstance(prompts, str):
        notes = []
    if model is None:
        notes.append(
            f"Note: no model was named, so the embedded {EMBEDDED} stands in for {published.RECORD['model']}; its figures test "
            "the method, not the source's model."
        )
    loaded = load(model or EMBEDDED, head=settings.new_tokens > 0, **(load_options or {}))
    result = signatures(loaded, prompts or PROMPTS, settings=settings, report=report)
    meta = {**result.meta, "title": f"Published routing signatures beside {loaded.name}"}
    meta["notes"] = [*notes, *result.meta.get("notes", [])]
    return dataclasses.replace(result, meta=meta, tables={**result.tables, "published": published_table(result)})


def published_table(result: StudyResult) -> pd.DataFrame:
    """Each published figure beside this result's own, with standard deviations where the source gives them."""
    head = result.tables["similarity"].iloc[0]
    accuracy = result.tables["routing_accuracy"].iloc[0]
    layers = result.tables["routing_layers"]
    means = result.tables["category_similarity"]
    same = means["category"] == means["other"]
    record = published.RECORD
    relative = int(layers["d_pairs"].to_numpy().argmax()) / max(len(layers) - 1, 1)
    rows = [
        ("within-category cosine: mean", record["within_cosine"][0], head["within"]),
        ("within-category cosine: sd", record["within_cosine"][1], head["within_sd"]),
        ("across-category cosine: mean", record["across_cosine"][0], head["across"]),
        ("across-category cosine: sd", record["across_cosine"][1], head["across_sd"]),
        ("within, lowest category", record["within_range"][0], means[same]["cosine"].min()),
        ("within, highest category", record["within_range"][1], means[same]["cosine"].max()),
        ("across, lowest pair", record["across_range"][0], means[~same]["cosine"].min()),
        ("across, highest pair", record["across_range"][1], means[~same]["cosine"].max()),
        ("Cohen's d over pairs", record["cohens_d"], head["d_pairs"]),
        ("accuracy, stratified 5-fold", record["accuracy"][0], accuracy["accuracy"]),
        ("macro F1", record["macro_f1"], accuracy["macro_f1"]),
        ("depth of the peak (0 first, 1 last layer)", record["peak_layer"] / (record["layers"] - 1), relative),
    ]
    return pd.DataFrame([(name, float(a), float(b)) for name, a, b in rows], columns=["figure", "published", "measured"])
