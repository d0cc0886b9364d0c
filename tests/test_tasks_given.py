"""Tasks, prompts and texts given in Python: every usual table is taken, everything else is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import moescope
from moescope.errors import InputError
from moescope.study.protocol import Context
from moescope.study.run import Run
from moescope.study.settings import Settings
from moescope.tasks import load_prompts, load_task, load_tasks
from moescope.tasks.given import given_texts
from moescope.tasks.passages import load_passages
from moescope.types import Site, Task

TEXTS = [f"text number {i} is {'quite nice' if i % 2 else 'rather poor'}" for i in range(20)]
LABELS = [i % 2 for i in range(20)]
FRAME = pd.DataFrame({"text": TEXTS, "label": LABELS})
TABLES: dict[str, Any] = {
    "DataFrame": FRAME,
    "Dataset": datasets.Dataset.from_dict({"text": TEXTS, "label": LABELS}),
    "pyarrow": pa.table({"text": TEXTS, "label": LABELS}),
    "pairs": list(zip(TEXTS, LABELS, strict=True)),
    "pairs of numpy": list(zip(TEXTS, np.array(LABELS), strict=True)),
    "lists": (TEXTS, LABELS),
    "arrays": (np.array(TEXTS), np.array(LABELS)),
    "series": (FRAME["text"], FRAME["label"]),
    "columns": {"text": TEXTS, "label": LABELS},
    "rows": FRAME.to_dict("records"),
}


@pytest.mark.parametrize("kind", TABLES)
def test_tables_are_tasks(kind: str) -> None:
    (task,) = load_tasks(TABLES[kind])
    (named,) = load_tasks({"mine": TABLES[kind]})
    assert [e.text for e in task.examples] == TEXTS
    assert [e.label for e in task.examples] == LABELS
    assert (task.classes, task.name, named.name, named.sha256) == (("0", "1"), "task", "mine", task.sha256)


def test_texts_by_class_and_names_of_a_dataset() -> None:
    (task,) = load_tasks({"nice": TEXTS[1::2], "poor": TEXTS[::2]})
    assert task.classes == ("nice", "poor")
    assert [task.classes[e.label] for e in task.examples] == ["nice"] * 10 + ["poor"] * 10
    named = TABLES["Dataset"].cast_column("label", datasets.ClassLabel(names=["poor", "nice"]))
    assert load_task(named).classes == ("poor", "nice")


def test_several_ways_to_name_tasks(tmp_path: Path) -> None:
    path = tmp_path / "a=b?c.csv"  # would be a name and an option in a specification
    FRAME.to_csv(path, index=False)
    assert load_task(path).name == "a=b?c"
    found = load_tasks({"x": "certainty=halueval?limit=4", "y": path, "z": load_task(FRAME), "w": FRAME})
    assert [t.name for t in found] == ["x", "y", "z", "w"]
    assert [t.name for t in load_tasks(["certainty=halueval?limit=4", path])] == ["certainty", "a=b?c"]
    assert [t.name for t in load_tasks("certainty=halueval?limit=4")] == ["certainty"]
    own = load_task(
        FRAME.rename(columns={"text": "body", "label": "kind"}), name="own", text="body", label="kind", positive="0"
    )
    assert (own.name, own.classes) == ("own", ("1", "0"))


NO_TASKS: dict[str, tuple[Any, str]] = {
    "number": (5, "tasks: int is no task; give NAME=SOURCE, a path, a DataFrame"),
    "nothing": (None, "NoneType is no task"),
    "bytes": (b"x", "bytes"),
    "numbers": ([1, 2], "int: cannot be read as a table"),
    "number by name": ({"mine": 5}, "int: cannot be read as a table"),
    "name": ({3: FRAME}, "name: a task's name is a text, not 3"),
    "splits": (datasets.DatasetDict(train=TABLES["Dataset"], test=TABLES["Dataset"]), "holds several tables; choose one"),
    "stream": (TABLES["Dataset"].to_iterable_dataset(), "is a stream"),
    "uneven columns": ({"text": TEXTS, "label": LABELS[:3]}, "not equally long ('text' 20, 'label' 3)"),
    "no labels": (FRAME.drop(columns="label"), "no column 'label'; columns: text"),
    "no rows": (FRAME[:0], "has no rows"),
    "two columns of a name": (pd.concat([FRAME, FRAME], axis=1), "column 'text' appears twice"),
    "missing text": (FRAME.assign(text=[*TEXTS[:7], None, *TEXTS[8:]]), "index 7: column 'text' is missing"),
    "scores": ([("a", 1.5), ("b", 2.5)], "row 0: column 'label': label 1.5 looks continuous"),
}  # fmt: skip


@pytest.mark.parametrize("case", NO_TASKS)
def test_no_tasks(case: str) -> None:
    given, part = NO_TASKS[case]
    with pytest.raises(InputError) as caught:
        load_tasks(given)
    assert part in str(caught.value)
    with pytest.raises(InputError):
        moescope.circuits("dense-tiny", given)


def test_options_by_keyword() -> None:
    with pytest.raises(InputError, match="option 'turn' is given twice"):
        load_task("halueval?turn=both", turn="one-turn")
    with pytest.raises(InputError, match=r"unknown option 'tekst' \(did you mean 'text'"):
        load_task(FRAME, tekst="text")
    with pytest.raises(InputError, match="positive: 1 is not a text"):
        load_task(FRAME, positive=1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "given",
    [
        TEXTS,
        list(zip(TEXTS, ["a", "b"] * 10, strict=True)),
        {"a": TEXTS[:9], "b": TEXTS[9:]},
        pd.DataFrame({"text": TEXTS, "category": ["a", "b"] * 10}),
    ],
)  # fmt: skip
def test_prompts(given: Any) -> None:
    prompts = load_prompts(given)
    assert [p.text for p in prompts] == TEXTS
    assert {p.category for p in prompts} in ({None}, {"a", "b"})
    assert load_prompts(prompts) == prompts


@pytest.mark.parametrize("given", [5, [5], {}, [], FRAME.drop(columns="text")])
def test_no_prompts_and_no_passages(given: Any) -> None:
    for read in (load_prompts, load_passages, given_texts):
        with pytest.raises(InputError):
            read(given)


def test_notes_on_the_input_stay_with_the_result(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(FRAME.to_csv(index=False).replace("number 3", "café").encode("latin-1"))
    context = Context("circuits", Settings(), Run())
    (task,) = context.tasks(path)
    assert isinstance(task, Task)
    assert any("read as Windows-1252" in note for note in context.notes)


def test_sites_in_settings() -> None:
    for given in ("resid:1;mlp_act:2", ["resid:1", Site("mlp_act", 2)], (Site("resid", 1), "mlp_act:2")):
        assert moescope.CircuitSettings(site=given).site == "resid:1;mlp_act:2"  # type: ignore[arg-type]
    assert moescope.CircuitSettings(site=Site("resid", 1)).site == "resid:1"  # type: ignore[arg-type]
    for wrong in (5, [5], None, []):
        with pytest.raises(InputError, match=r"site: .* names no site"):
            moescope.CircuitSettings(site=wrong)  # type: ignore[arg-type]
