"""The published protocol, next to the published figures."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pandas as pd

from moescope.errors import InputError
from moescope.studies.circuits import published
from moescope.studies.circuits.settings import CircuitSettings
from moescope.studies.circuits.study import circuits
from moescope.study.protocol import Context, ModelLike, TasksLike
from moescope.study.result import StudyResult
from moescope.study.run import Run
from moescope.types import Task

EMBEDDED = "dense-tiny"
# The source's tasks, and what is shipped for those whose licence does not let us ship them.
SOURCES = {"certainty": ("halueval",), "sentiment": ("sst2", "uci-sentiment")}
_SHORT = {"certainty": "cert", "sentiment": "sent"}


PUBLISHED = CircuitSettings(selection="global", sigma="total")
_RUN = Run()


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
    context = Context("circuits", settings, run)
    if model is None:
        context.note(
            f"Note: no model was named, so the embedded {EMBEDDED} stands in for Llama-2-7B, Mistral-7B and Qwen2.5-7B; "
            "its figures test the method, not the source's models."
        )
    loaded_tasks = _published_tasks(context) if tasks is None else context.tasks(tasks)
    loaded = context.load(EMBEDDED if model is None else model)
    result = circuits(loaded, loaded_tasks, settings, run=dataclasses.replace(run, out=None))
    return context.beside(result, title=f"Published circuits beside {loaded.name}", published=published_table(result))


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
    overlap = {name.replace("-7B", ""): value for name, value in published.RECORD["overlap_top10"].items()}
    add("overlap of top 10", overlap, _claim(result, "certainty and sentiment: top-10"))
    return pd.DataFrame(rows)


def _first(rows: pd.DataFrame, column: str) -> float | None:
    return float(rows[column].iloc[0]) if len(rows) else None


def _claim(result: StudyResult, start: str) -> float | None:
    return next((float(c.measured) for c in result.claims if c.statement.startswith(start)), None)
