"""What is kept of a stage is what it gave, and is given again to the same run alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from moescope import PruneSettings, Run
from moescope.errors import InputError
from moescope.routing.trace import TracedSequence
from moescope.stats import Difference
from moescope.study import stages
from moescope.study.protocol import Context
from moescope.study.tree import Trees, value_of
from moescope.types import Neuron, Site
from tests.seals import flip


def test_values_come_back_bit_for_bit(tmp_path: Path) -> None:
    mapped = np.memmap(tmp_path / "m", np.float32, "w+", shape=(3, 2))
    table = pd.DataFrame({"a": [1, 2], "b": [0.1, np.nan], "c": ["x", None], "d": [[1], [2, 3]], "e": [True, False]})
    by_column = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    value = {
        Site("resid", 1): (Neuron(Site("mlp_act", 0), 3), TracedSequence("p", None, "g"), Difference(0.1, 0.0, 1.0, 0.5)),
        "arrays": [np.arange(4, dtype=np.int16), by_column, mapped, np.array(["a", "bc"]), np.zeros((0, 3))],
        "numbers": [np.float32(0.1), float("nan"), float("-inf"), 10**30, True, None, "\ud800"],
        "tensors": (torch.arange(3, dtype=torch.bfloat16), torch.ones(2, 2).T, torch.zeros((), dtype=torch.int64)),
        "table": table,
        "set": frozenset({Site("resid", 0)}),
    }
    trees = Trees({})
    found = value_of(trees.tree(value), trees.arrays, {})
    assert str(found) == str(value)
    assert [a.flags.f_contiguous for a in found["arrays"][:3]] == [True, True, False]
    assert isinstance(found["arrays"][2], np.memmap)
    assert found["numbers"][0].dtype == np.float32
    pd.testing.assert_frame_equal(found["table"], table)
    assert [t.dtype for t in found["tensors"]] == [t.dtype for t in value["tensors"]]  # type: ignore[attr-defined]


def test_nothing_but_our_records_is_made() -> None:
    with pytest.raises(TypeError, match="cannot be kept"):
        Trees({}).tree(lambda: 0)
    for name in (["os", "system"], ["moescope.study.tree", "import_module"], ["moescope.study.tree", "Trees"]):
        with pytest.raises(ValueError, match="no record"):
            value_of({"record": name, "fields": {}}, {}, {})


class Said:
    """Progress of a context, and how often its stage was computed."""

    def __init__(self) -> None:
        self.computed = 0
        self.stages: list[str] = []

    def context(self, out: Path, seed: int = 0) -> Context:
        progress: Callable[[str, int, int], None] = lambda stage, done, total: self.stages.append(stage)  # noqa: E731
        return Context("prune", PruneSettings(), Run(out=out, seed=seed, progress=progress))

    def stage(self, context: Context, name: str = "measuring") -> Any:
        def compute() -> Any:
            self.computed += 1
            context.note("a note")
            context.control("other", differs=True, evidence="seen")
            context.tokens.add("main", 3.5)
            return {"x": np.arange(5.0), "self": context.settings}

        return context.stage(name, compute, settings=context.settings)


def begun(out: Path) -> Said:
    """A run that was cut off after its first stage."""
    said = Said()
    context = said.context(out)
    said.stage(context)
    context._held.close()
    return said


def test_a_stage_is_computed_once(tmp_path: Path) -> None:
    said = begun(tmp_path / "out")
    context = said.context(tmp_path / "out")
    found = said.stage(context)
    assert said.computed == 1
    assert said.stages == ["resumed: measuring"]
    assert found["x"].tolist() == [0, 1, 2, 3, 4]
    assert found["self"] is context.settings
    assert context.tokens.totals() == {"main": 4}
    assert stages.kept_stages(tmp_path / "out") == 1
    result = context.result(title="t", claims=(), tables={})
    assert result.meta["notes"] == ["a note"]
    assert result.meta["controls"] == [{"control": "other", "evidence": "seen"}]
    assert os.listdir(tmp_path) == ["out"]  # what was kept is of no use any more


def test_two_stages_called_alike_are_two(tmp_path: Path) -> None:
    for _ in range(2):
        context = Said().context(tmp_path / "out")
        assert [context.stage("edit", lambda i=i: i) for i in range(3)] == [0, 1, 2]  # type: ignore[misc]
        context._held.close()
    assert stages.kept_stages(tmp_path / "out") == 3


def test_what_is_of_another_run_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for case in ("seed", "code", "inputs", "name"):
        said = begun(tmp_path / case)
        with monkeypatch.context() as patch:
            if case == "code":
                patch.setattr(stages, "_code", lambda: ("changed",))
            context = said.context(tmp_path / case, seed=1 if case == "seed" else 0)
        if case == "inputs":
            context.stages.read(np.arange(3))
        said.stage(context, "measured" if case == "name" else "measuring")
        assert said.computed == 2, case
        assert stages.kept_stages(tmp_path / case) == (1 if case in ("seed", "code") else 2)


def test_a_damaged_stage_is_computed_again(tmp_path: Path) -> None:
    said = begun(tmp_path / "out")
    (file,) = (tmp_path / ".out.work").iterdir()
    flip(file, at=0.8)
    assert said.stage(said.context(tmp_path / "out"))["x"].tolist() == [0, 1, 2, 3, 4]
    assert said.computed == 2


def test_a_full_disk_keeps_nothing_and_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise InputError("cannot write: the disk is full")

    said = begun(tmp_path / "out")
    context = said.context(tmp_path / "out")
    monkeypatch.setattr(stages, "save_arrays", full)
    assert said.stage(context, "more")["x"].tolist() == [0, 1, 2, 3, 4]
    assert said.stage(context, "and more")["x"].tolist() == [0, 1, 2, 3, 4]
    assert not (tmp_path / ".out.work").exists()


def test_a_link_in_the_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine").write_text("years of work")
    (tmp_path / ".out.work").symlink_to("elsewhere")
    said = begun(tmp_path / "out")
    said.context(tmp_path / "out").result(title="t", claims=(), tables={})
    assert os.listdir(tmp_path / "elsewhere") == ["mine"]


def test_without_a_place_nothing_is_kept() -> None:
    context = Context("prune", PruneSettings(), Run())
    assert context.stage("x", lambda: object) is object
