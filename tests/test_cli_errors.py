"""A user's mistake is one line on stderr that names the place and the mend, exit code 2, and nothing half-written."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from moescope.cli import main
from moescope.models import embedded
from moescope.study import store

ROWS = [{"text": f"row number {i} is {'good' if i % 2 else 'bad'}", "label": i % 2} for i in range(40)]
QUICK = {"--permutations": "19", "--label-permutations": "0", "--random": "20", "--ks": "1,2", "--k": "2", "--folds": "3"}


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def circuits(folder: Path, task: str, *, model: str = "dense-tiny", **options: str) -> list[str]:
    chosen = QUICK | {"--" + key.replace("_", "-"): value for key, value in options.items()}
    flat = [part for pair in chosen.items() for part in pair]
    return ["circuits", model, "--task", task, "--no-twin", *flat, "--out", str(folder / "out")]


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run the command; it must end with exit code 2 and one line on stderr, which is returned."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    shown = capsys.readouterr()
    lines = [line for line in shown.err.splitlines() if line.startswith("error: ")]
    assert stop.value.code == 2, shown.err
    assert shown.out == ""
    assert len(lines) == 1
    assert "Traceback" not in shown.err
    return lines[0]


def garbled(path: Path) -> Path:
    path.write_text('{"text": "whole", "label": 0}\n{"text": "cut sho', encoding="utf-8")
    return path


def with_nan(path: Path) -> Path:
    frame = pd.DataFrame(ROWS)
    frame.loc[3, "text"] = np.nan
    frame.to_parquet(path)
    return path


TASKS: dict[str, tuple[Callable[[Path], str], list[str]]] = {
    "missing column": (lambda d: f"{write(d / 'a.jsonl', ROWS)}?text=body", ["a.jsonl", "'body'", "text, label"]),
    "one class only": (lambda d: f"{write(d / 'a.jsonl', ROWS[::2])}", ["a.jsonl", "at least two classes"]),
    "NaN text": (lambda d: f"{with_nan(d / 'a.parquet')}", ["a.parquet", "row 4", "missing"]),
    "empty file": (lambda d: f"{write(d / 'a.jsonl', [])}", ["a.jsonl", "empty"]),
    "no such file": (lambda d: f"{d / 'b.jsonl'}", ["b.jsonl", "no such file"]),
    "garbled JSON": (lambda d: f"{garbled(d / 'a.jsonl')}", ["a.jsonl", "line 2", "JSON"]),
    "a wrong label name": (lambda d: f"{write(d / 'a.jsonl', ROWS)}?positive=great", ["'great'", "labels"]),
    "one group": (lambda d: f"{write(d / 'a.jsonl', [{**r, 'q': 'one'} for r in ROWS])}?group=q", ["fold", "group"]),
    "a class with one row": (lambda d: f"{write(d / 'a.jsonl', [*ROWS[::2], ROWS[1]])}", ["fold"]),
    "an unknown preset": (lambda d: "haluevall", ["haluevall", "'halueval'"]),
    "an unknown option": (lambda d: "halueval?turns=both", ["'turns'", "'turn'"]),
}


@pytest.mark.parametrize("case", TASKS)
def test_bad_tasks(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task, words = TASKS[case]
    line = refused(circuits(tmp_path, f"t={task(tmp_path)}"), capsys)
    assert [word for word in words if word not in line] == [], line
    assert not (tmp_path / "out").exists()


OPTIONS: dict[str, tuple[dict[str, str], list[str]]] = {
    "unknown site": ({"site": "residual"}, ["'residual'", "resid"]),
    "a layer too many": ({"site": "resid:17"}, ["17", "resid"]),
    "K larger than the layer": ({"site": "resid:3", "ks": "2,500"}, ["500", "256"]),
    "K is no number": ({"ks": "two"}, ["--ks", "'two'"]),
    "K is zero": ({"k": "0"}, ["--k"]),
    "two folds": ({"folds": "2"}, ["--folds", "at least 3"]),
    "an unknown position": ({"position": "last"}, ["--position", "'last'", "final"]),
    "an unknown dtype": ({"dtype": "fp8"}, ["fp8"]),
    "no such device": ({"device": "cuda:7"}, ["cuda:7", "cpu"]),
    "an unknown word": ({"depth": "3"}, ["--depth"]),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_bad_options(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options, words = OPTIONS[case]
    line = refused(circuits(tmp_path, f"t={write(tmp_path / 'a.jsonl', ROWS)}", **options), capsys)
    assert [word for word in words if word not in line] == [], line
    assert not (tmp_path / "out").exists()


def copy_of_embedded(folder: Path) -> Path:
    return Path(shutil.copytree(embedded()["dense-tiny"], folder))


def pickled(path: Path) -> Path:
    copy_of_embedded(path)
    (path / "model.safetensors").unlink()
    torch.save({}, path / "pytorch_model.bin")
    return path


def cut_short(path: Path) -> Path:
    weights = copy_of_embedded(path) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    return path


def without_config(path: Path) -> Path:
    (copy_of_embedded(path) / "config.json").unlink()
    return path


def encoder_decoder(path: Path) -> Path:
    config = copy_of_embedded(path) / "config.json"
    config.write_text(json.dumps({"model_type": "t5", "is_encoder_decoder": True}))
    return path


MODELS: dict[str, tuple[Callable[[Path], Path], list[str]]] = {
    "a pickle checkpoint": (pickled, ["pytorch_model.bin", "pickle", "safetensors"]),
    "weights cut short": (cut_short, ["model.safetensors", "cut short"]),
    "no config": (without_config, ["config.json"]),
    "no folder": (lambda path: path, ["does not exist", "dense-tiny"]),
    "an encoder-decoder": (encoder_decoder, ["'t5'", "encoder-decoder"]),
}


@pytest.mark.parametrize("case", MODELS)
def test_bad_models(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, words = MODELS[case]
    task = write(tmp_path / "a.jsonl", ROWS)
    line = refused(circuits(tmp_path, f"t={task}", model=str(make(tmp_path / "model"))), capsys)
    assert [word for word in words if word not in line] == [], line
    assert not (tmp_path / "out").exists()


def test_a_place_that_is_taken_is_refused_before_the_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = tmp_path / "out" / "thesis.tex"
    kept.parent.mkdir()
    kept.write_text("years of work")
    line = refused(circuits(tmp_path, "t=halueval"), capsys)
    assert "not a moescope result" in line
    assert kept.read_text() == "years of work"


def test_a_full_disk_leaves_what_was_measured_and_no_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "_write", full)
    task = write(tmp_path / "a.jsonl", ROWS)
    line = refused(circuits(tmp_path, f"t={task}", site="resid:1"), capsys)
    assert "No space left" in line
    assert sorted(p.name for p in tmp_path.iterdir()) == [".out.work", "a.jsonl"]  # for the same command to go on from


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["show", "nowhere"], ["nowhere", "no such folder"]),
        (["compare", "nowhere", "--out", "figures"], ["nowhere"]),
        (["reproduce", "everything"], ["everything"]),
        (["circuits", "dense-tiny"], ["--task"]),
        (["circuit"], ["circuit"]),
    ],
)
def test_bad_commands(
    arguments: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = refused(arguments, capsys)
    assert [word for word in words if word not in line] == [], line
    assert list(tmp_path.iterdir()) == []


def test_the_command_itself_exits_with_two(tmp_path: Path) -> None:
    """As a shell sees it, in a process of its own."""
    call = [sys.executable, "-m", "moescope", *circuits(tmp_path, "t=nothing.jsonl")]
    done = subprocess.run(call, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "nothing.jsonl" in done.stderr
    assert done.stdout == ""
