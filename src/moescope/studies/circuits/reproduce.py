"""The published protocol, next to the published figures."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pandas as pd

from moescope.errors import InputError
from moescope.models import LoadedModel
from moescope.studies.circuits import published
from moescope.studies.circuits.claims_layers import projection_case
from moescope.studies.circuits.features import capture_features, columns_of
from moescope.studies.circuits.settings import CircuitSettings
from moescope.studies.circuits.study import circuits
from moescope.studies.circuits.tables import projection_tables
from moescope.study.protocol import Context, ModelLike, TasksLike
from moescope.study.repeat import verb
from moescope.study.result import StudyResult
from moescope.study.run import Run
from moescope.study.verdicts import Case, verdicts
from moescope.tasks import load_task
from moescope.types import Claim, Published, Site, Task

EMBEDDED = "dense-tiny"
# The source's tasks, and what is shipped for those whose licence does not let us ship them.
SOURCES = {"certainty": ("halueval",), "sentiment": ("sst2", "uci-sentiment")}
PC1_ROWS = 1000
"""Of each task of table 4, unless the run limits them."""
_SHORT = {"certainty": "cert", "sentiment": "sent"}


PUBLISHED = CircuitSettings(selection="global", sigma="total")
_RUN = Run()


@verb
def reproduce_circuits(
    model: ModelLike | None = None,
    tasks: TasksLike | None = None,
    settings: CircuitSettings = PUBLISHED,
    *,
    run: Run = _RUN,
) -> StudyResult:
    """Run the published settings (global selection, total σ, LDA, final token) and set the published figures beside.

    Args:
        model: any model; None runs the embedded one, and a note says so.
        tasks: None takes the published tasks, with the shipped stand-in where the Hub is out of reach.

    Returns:
        A result of kind ``"circuits"`` with a further table ``published``.

    >>> from moescope.studies.circuits.reproduce import reproduce_circuits
    >>> result = reproduce_circuits("dense-tiny")  # doctest: +SKIP
    """
    run = run.as_published()
    context = Context("circuits", settings, run, of=CircuitSettings, spread=True)
    if model is None:
        context.note(
            f"Note: no model was named, so the embedded {EMBEDDED} stands in for Llama-2-7B, Mistral-7B and Qwen2.5-7B; "
            "its figures test the method, not the source's models."
        )
    loaded_tasks = _published_tasks(context) if tasks is None else context.tasks(tasks)
    loaded = context.load(EMBEDDED if model is None else model)
    result = circuits(loaded, loaded_tasks, settings, run=context.inner(run))
    if tasks is None:
        claims, pc1 = _projections(loaded, context, settings, run)
        tables = {**result.tables, "pc1": pd.concat([result.tables["pc1"], *pc1], ignore_index=True)}
        result = dataclasses.replace(result, claims=(*result.claims, *verdicts(claims, settings.alpha)), tables=tables)
    return context.beside(result, title=f"Published circuits beside {loaded.name}", published=published_table(result))


def _projections(
    model: LoadedModel, context: Context, settings: CircuitSettings, run: Run
) -> tuple[list[Case | Claim], list[pd.DataFrame]]:
    """Table 4: PC1 of the last layer on its three tasks, where they can be had."""
    claims: list[Case | Claim] = []
    tables: list[pd.DataFrame] = []
    for preset, name in published.PC1.items():
        reported = published.RECORD["pc1"][name]
        source = Published(f"means ± {reported['distance'] / 2:.2f}", f"{published.SOURCE}, Table 4")
        try:
            with _quiet_hub():
                task = load_task(preset, limit=run.limit or PC1_ROWS, seed=run.seed)
        except InputError:
            why = f"{name} is out of reach here"
            statement = f"{preset}: the classes differ along PC1 of the last layer"
            claims.append(Claim(statement, float("nan"), "H10", source, outcome="not tested", words=why))
            continue
        context.tell(f"{preset}: first component", 0, 1)
        columns = columns_of(model, (Site("resid", model.n_layers - 1),))
        limits: dict[str, Any] = {"batch_tokens": run.batch_tokens, "max_tokens": run.max_tokens}
        features = capture_features(model, task, columns, settings, seed=run.seed, **limits)
        tables.append(projection_tables(features, settings)["pc1"])
        claims.append(projection_case(task.name, tables[-1], settings, source))
    return claims, tables


def _published_tasks(context: Context) -> list[Task]:
    loaded = []
    for name, sources in SOURCES.items():
        for source in sources:
            try:
                with _quiet_hub():
                    loaded += context.tasks([f"{name}={source}"])
                if source != sources[0]:
                    context.note(f"Note: {sources[0]} is out of reach here; {source} stands in for the task {name}.")
                break
            except InputError:
                if source == sources[-1]:
                    raise
    return loaded


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """Without the client's line per retry: that the Hub is out of reach is expected here, and said in a note."""
    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def published_table(result: StudyResult) -> pd.DataFrame:
    """Each published figure by source model, with this result's own in the last column (NaN where not measured)."""
    rows: list[dict[str, Any]] = []
    cross = result.tables.get("cross_task", pd.DataFrame(columns=["source", "target", "method", "value"]))
    cross = cross[cross["method"] == "transfer_accuracy"].set_index(["source", "target"])["value"]
    accuracy = result.tables["accuracy"]
    accuracy = accuracy[(accuracy["selection"] == "global") & (accuracy["classifier"] == "lda")]
    own = accuracy[accuracy["k"] == 10].set_index("task")["accuracy"]

    def add(figure: str, values: dict[str, float], measured: float | None) -> None:
        rows.append({"figure": figure, **values, "measured": float("nan") if measured is None else measured})

    record = published.RECORD["cross_task_accuracy"]
    for source, a in _SHORT.items():
        for target, b in _SHORT.items():
            values = {name: cells[f"{a}_{b}"] for name, cells in record.items()}
            found = own.get(source) if source == target else cross.get((source, target))
            add(f"accuracy, {source} circuit on {target}", values, found)
    for k, (reported, coverage) in published.SIZES.items():
        here = accuracy[(accuracy["task"] == "certainty") & (accuracy["k"] == k)]
        add(f"certainty, {k} neurons: accuracy", {"Mistral": reported}, _first(here, "accuracy"))
        add(f"certainty, {k} neurons: coverage", {"Mistral": coverage}, _first(here, "coverage"))
    for task in _SHORT:
        add(f"specialization ratio, {task}", {"mean": published.RATIO[task]}, _claim(result, f"{task}: specialization"))
    add("symmetry score", {"mean": published.SYMMETRY}, _claim(result, "certainty and sentiment: symmetry"))
    pc1 = result.tables["pc1"].drop_duplicates("task").set_index("task")["distance"]
    for preset, name in published.PC1.items():
        add(f"distance of class means on PC1, {name}", {"Mistral": published.RECORD["pc1"][name]["distance"]}, pc1.get(preset))
    overlap = {name.replace("-7B", ""): value for name, value in published.RECORD["overlap_top10"].items()}
    add("overlap of top 10", overlap, _claim(result, "certainty and sentiment: the top-"))
    return pd.DataFrame(rows)


def _first(rows: pd.DataFrame, column: str) -> float | None:
    return float(rows[column].iloc[0]) if len(rows) else None


def _claim(result: StudyResult, start: str) -> float | None:
    return next((float(c.measured) for c in result.claims if c.statement.startswith(start)), None)
