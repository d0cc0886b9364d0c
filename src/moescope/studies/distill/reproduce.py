"""The published table next to a measured one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from moescope.studies.distill import published
from moescope.studies.distill.evidence import ACTIVATIONS
from moescope.studies.distill.settings import DistillSettings
from moescope.studies.distill.study import distill
from moescope.study.protocol import Context, ModelLike
from moescope.study.result import StudyResult
from moescope.study.run import Run

EMBEDDED = "dense-tiny"
# with as many shared as active, the source's headline size of 64 active neurons
_SETTINGS, _RUN = DistillSettings(active=(32,), experts=4096, epochs=10), Run()


def reproduce(
    model: ModelLike | None = None,
    texts: Sequence[str] | str | Path | None = None,
    settings: DistillSettings = _SETTINGS,
    *,
    run: Run = _RUN,
) -> StudyResult:
    """Distil a layer by the published protocol and set the published figures beside the measured ones.

    Args:
        model: None: the embedded model, and a note says so.
        settings: the published students (s = k, softmax over the chosen, low-rank router) at a size for a laptop. Where it
            names no layer, Pythia-70M, Pythia-410M and Gemma-3-270M take the published one.

    No verdict is ``reproduced``, whatever the model: here padding and first tokens are left out, which the source keeps.

    Returns:
        As :func:`distill`; the result has a further table ``published``.
    """
    context = Context("distill", settings, run)
    loaded = context.load(EMBEDDED if model is None else model, head=model is None or isinstance(model, str))
    source = next((name for name in published.MODELS if name in loaded.name.lower()), None)
    if source and settings.layer is None:
        settings = dataclasses.replace(settings, layer=published.RECORD["layers"][source]["layer"])
    result = distill(loaded, texts, settings, run=dataclasses.replace(run.as_published(), out=None))
    if not source:
        context.note(f"Note: {loaded.name} stands in for the source's models; its figures test the method, not them.")
    context.note(
        f"Note: the source trains 100 epochs of some 4M tokens with 10,000 and 100,000 experts; this run had "
        f"{int(result.tables['curves']['step'].max())} steps of {settings.batch} with {settings.experts}."
    )
    title = f"Published students beside {loaded.name}, layer {result.meta['layer']}"
    return context.beside(result, title=title, published=published_table(result))


def published_table(result: StudyResult) -> pd.DataFrame:
    """Each published figure by source model, with this result's own in the last column (NaN where not measured)."""
    rows: list[dict[str, Any]] = []
    summary, ratio = result.tables["summary"], result.tables["ratio"]
    record = published.RECORD
    for data in (ACTIVATIONS, "gaussian"):
        table = record[f"fvu_{data}"]
        here = summary[summary["data"] == data]
        for active in sorted(
            {int(a) for row in table.values() for a in row} | set(here[here["kind"] == "moe"]["active_neurons"])
        ):
            for column, kind in (("dense_mlp", "dense"), ("lowrank_10k", "moe")):
                place = record["columns"].index(column)
                values = {
                    m: table[m][str(active)][place] if str(active) in table[m] else float("nan") for m in published.MODELS
                }
                own = here[(here["active_neurons"] == active) & (here["kind"] == kind)]["fvu"]
                rows.append({"figure": f"FVU, {data}, {active} active, {kind}", **values, "measured": _first(own)})
        for active in sorted(set(ratio[ratio["data"] == data]["active_neurons"])):
            values = {m: published.table_ratio(data, m, active) for m in published.MODELS}
            own = ratio[(ratio["data"] == data) & (ratio["active_neurons"] == active) & (ratio["kind"] == "moe")]["ratio"]
            rows.append({"figure": f"dense / MoE, {data}, {active} active", **values, "measured": _first(own)})
    frame = pd.DataFrame(rows)
    frame[[*published.MODELS, "measured"]] = frame[[*published.MODELS, "measured"]].astype(float)
    return frame


def _first(values: pd.Series) -> float:
    return float(values.iloc[0]) if len(values) else float("nan")
