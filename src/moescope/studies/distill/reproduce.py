"""The published table next to a measured one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from moescope.studies.distill import published
from moescope.studies.distill.evidence import ACTIVATIONS
from moescope.studies.distill.settings import NO_PADDING, DistillSettings
from moescope.studies.distill.study import distill
from moescope.study.protocol import Context, ModelLike
from moescope.study.repeat import verb_called
from moescope.study.result import StudyResult
from moescope.study.run import Run

EMBEDDED = "dense-tiny"
# with as many shared as active, the source's headline size of 64 active neurons
_SETTINGS = DistillSettings(
    active=(32,),
    experts=4096,
    epochs=10,
    rank=128,
    padding="keep",
    control=("gaussian", "no-padding", "no-padding-gaussian"),
)
_RUN = Run()
EPOCHS = 100
TOKENS = 4_000_000


@verb_called("reproduce_secret_moe")
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

    The source's loader pads eight lines to one length and keeps every position, padding and first tokens too; so does this,
    and sets beside it the same lines without them, where a linear map explains far less. No verdict is ``reproduced``: the
    text is shorter than the source's.

    Returns:
        As :func:`distill`; the result has a further table ``published``.
    """
    context = Context("distill", settings, run, of=DistillSettings, spread=True)
    loaded = context.load(EMBEDDED if model is None else model, head=True, required=False)
    source = next((name for name in published.MODELS if name in loaded.name.lower()), None)
    if source and settings.layer is None:
        settings = dataclasses.replace(settings, layer=published.RECORD["layers"][source]["layer"])
    result = distill(loaded, texts, settings, run=context.inner(run.as_published()))
    if not source:
        context.note(f"Note: {loaded.name} stands in for the source's models; its figures test the method, not them.")
    steps = int(result.tables["curves"]["step"].max())
    whole = EPOCHS * TOKENS // int(published.RECORD["protocol"]["batch"])
    context.note(
        f"Note: the source trains {whole:,} steps of 1,024 vectors ({EPOCHS} epochs of some 4M) with 10,000 and 100,000 "
        f"experts; this run made {steps:,} steps of {settings.batch:,} with {settings.experts:,}: "
        f"{steps * settings.batch / (EPOCHS * TOKENS):.1%} of the source's vectors."
    )
    title = f"Published students beside {loaded.name}, layer {result.meta['layer']}"
    return context.beside(result, title=title, published=published_table(result))


def published_table(result: StudyResult) -> pd.DataFrame:
    """Each published figure by source model, with this result's own in the last columns: as published, and without padding
    (NaN where not measured)."""
    rows: list[dict[str, Any]] = []
    tables, record = result.tables, published.RECORD
    summary, ratio = tables["summary"], tables["ratio"]
    sources = {"measured": {ACTIVATIONS: ACTIVATIONS, "gaussian": "gaussian"}}
    sources["no padding"] = {ACTIVATIONS: NO_PADDING, "gaussian": f"{NO_PADDING}-gaussian"}

    def add(figure: str, theirs: Mapping[str, float | None], data: str, ours: Callable[[str], float]) -> None:
        here = {column: ours(names[data]) for column, names in sources.items()}
        rows.append({"figure": figure, **{m: theirs.get(m) for m in published.MODELS}, **here})

    for data in (ACTIVATIONS, "gaussian"):
        for fact, key in _FACTS.items():
            theirs = record["inputs"].get(key, {}) if data == ACTIVATIONS else {}
            add(f"{fact}, {data}", theirs, data, partial(_fact, result, key))
        add(f"FVU, {data}, linear map", {}, data, partial(_value, tables["baselines"], "fvu", {"baseline": "linear"}))
        table = record[f"fvu_{data}"]
        here = summary[summary["data"] == data]
        for active in sorted(
            {int(a) for row in table.values() for a in row} | set(here[here["kind"] == "moe"]["active_neurons"])
        ):
            for column, kind in (("dense_mlp", "dense"), ("lowrank_10k", "moe")):
                place = record["columns"].index(column)
                theirs = {m: table[m][str(active)][place] for m in published.MODELS if str(active) in table[m]}
                own = {"active_neurons": active, "kind": kind}
                add(
                    f"FVU, {data}, {active} active, {kind}",
                    theirs,
                    data,
                    partial(_value, summary, "fvu", own),
                )
        for active in sorted(set(ratio[ratio["data"] == data]["active_neurons"])):
            theirs = {m: published.table_ratio(data, m, active) for m in published.MODELS}
            own = {"active_neurons": active, "kind": "moe"}
            add(f"dense / MoE, {data}, {active} active", theirs, data, partial(_value, ratio, "ratio", own))
    frame = pd.DataFrame(rows)
    columns = [*published.MODELS, *sources]
    frame[columns] = frame[columns].astype(float)
    return frame


_FACTS = {"vectors that train": "train", "input variance": "input_variance", "output variance": "output_variance"}


def _value(frame: pd.DataFrame, column: str, fields: Mapping[str, Any], data: str) -> float:
    """Of the first row that matches; NaN without one."""
    for name, value in {**fields, "data": data}.items():
        frame = frame[frame[name] == value]
    return float(frame[column].iloc[0]) if len(frame) else float("nan")


def _fact(result: StudyResult, key: str, data: str) -> float:
    return float(result.meta["sources"].get(data, {}).get(key, float("nan")))
