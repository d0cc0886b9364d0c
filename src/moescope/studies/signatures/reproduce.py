"""The published protocol of the signatures study, next to the published figures."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from moescope.studies.signatures import published
from moescope.studies.signatures.settings import SignatureSettings
from moescope.studies.signatures.study import signatures
from moescope.study.protocol import Context, ModelLike, PromptsLike
from moescope.study.repeat import verb_called
from moescope.study.result import StudyResult
from moescope.study.run import Run

EMBEDDED = "moe-tiny"
PROMPTS = "routing-80"
_SETTINGS, _RUN = SignatureSettings(), Run()


@verb_called("reproduce_signatures")
def reproduce(
    model: ModelLike | None = None,
    prompts: PromptsLike | None = None,
    settings: SignatureSettings = _SETTINGS,
    *,
    run: Run = _RUN,
) -> StudyResult:
    """Run the published settings (80 prompts, 32 generated tokens, all layers) and set the published figures beside.

    Args:
        model: any mixture-of-experts model; None runs the embedded one, and a note says so.
        prompts: labelled prompts, a shipped set or a file; by default ``routing-80``, as many as the source has (its own
            are not at hand).

    Returns:
        The result of :func:`~moescope.studies.signatures.study.signatures` with a further table ``published``.

    Raises:
        InputError: see :func:`~moescope.studies.signatures.study.signatures`.
    """
    context = Context("signatures", settings, run, of=SignatureSettings, spread=True)
    if prompts is None or isinstance(prompts, str):
        context.note(f"Note: the source's own 80 prompts are not at hand; {prompts or PROMPTS} stands in.")
    if model is None:
        context.note(
            f"Note: no model was named, so the embedded {EMBEDDED} stands in for {published.RECORD['model']}; its figures test "
            "the method, not the source's model."
        )
    inner = signatures(model or EMBEDDED, prompts or PROMPTS, settings, run=context.inner(run.as_published()))
    title = f"Published routing signatures beside {inner.meta['model']}"
    return context.beside(inner, title=title, published=published_table(inner.tables))


def published_table(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Each published figure beside the study's own, with standard deviations where the source gives them."""
    head = tables["similarity"].iloc[0]
    accuracy = tables["routing_accuracy"].iloc[0]
    layers = tables["routing_layers"]
    means = tables["category_similarity"]
    same = means["category"] == means["other"]
    record = published.RECORD
    relative = int(layers["d"].fillna(-np.inf).to_numpy().argmax()) / max(len(layers) - 1, 1)
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
