"""The study on tasks whose answer is known: one that needs a layer, one that a surface cue solves, one that nobody can."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

import moescope
from moescope.cli import main
from moescope.files import checkpoint
from moescope.runtime.exit.classifier import ExitClassifier
from moescope.runtime.exit.store import load_exit
from moescope.studies.exit.claims import exit_claims, recommend
from moescope.study.protocol import Context
from moescope.study.result import StudyResult
from moescope.study.rows import calibrated
from moescope.study.run import Run
from moescope.types import Example, Task
from tests.planted_llama import planted_llama, planted_task


def noise_task(n: int = 400) -> Task:
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{i}" for i in rng.integers(40, size=6)) for _ in range(n)]
    return Task("noise", tuple(Example(t, int(rng.integers(2)), str(i)) for i, t in enumerate(texts)), ("a", "b"), "made here")


def planted_rows(n: int = 600) -> Task:
    """The class is a function of the last word, which the model holds in one coordinate from its first layer on."""
    return planted_task(rows=n)


@pytest.fixture(scope="module")
def planted() -> StudyResult:
    settings = moescope.ExitSettings(risk=0.05, k=3, timed_texts=8, margin=0.06)  # sixty groups exclude no less
    return moescope.exit(planted_llama(), [planted_rows(), noise_task()], settings)


def test_the_tables(planted: StudyResult) -> None:
    frontier = planted.table("frontier")
    assert set(frontier["curve"]) == {"threshold", "fixed depth", "circuit per depth"}
    for _, rows in frontier[frontier["curve"] == "threshold"].groupby("task"):
        assert rows["calibrated"].sum() == 1
        assert (np.diff(rows.sort_values("setting")["share"]) >= -1e-12).all()  # more confidence asked for, more layers
    speed = planted.table("speed")
    assert set(speed["batch"]) == {1, 64}
    full = speed[speed["contender"] == "full depth"]
    assert (full["share"] == 1).all()
    assert (full["speedup"] == 1).all()
    depth = planted.table("depth")
    assert depth.groupby("task")["rows"].sum().tolist() == [80, 120]
    heads = planted.table("heads")
    assert heads.groupby(["task", "kind"]).size().eq(4).all()
    assert heads[(heads["task"] == "planted") & (heads["kind"] == "linear")]["test"].min() > 0.95


def test_what_the_last_word_gives_away_needs_no_layer(planted: StudyResult) -> None:
    """The planted class is a function of the last word, so the final token alone is a cue, and the study says so."""
    claims = {c.statement: c for c in planted.claims}
    advice = claims["planted: recommendation, that an early exit is worth having"]
    assert advice.measured == "no layer needed: a surface cue does it"
    assert (advice.id, advice.outcome, advice.explanation) == ("H16", "contradicted", "trivial cue")
    known = claims["planted: the model at full depth knows more of the task than a surface cue"]
    assert (known.outcome, known.explanation) == ("holds", "trivial cue")
    circuit = claims["planted: 3 neurons from the first 28 % of the layers do as well as 3 neurons of all layers"]
    assert circuit.id == "H12"
    assert circuit.measured > 0.95
    assert (circuit.outcome, circuit.explanation) == ("holds", "trivial cue")


def test_noise_gets_a_no(planted: StudyResult) -> None:
    claims = {c.statement: c for c in planted.claims}
    advice = claims["noise: recommendation, that an early exit is worth having"]
    assert advice.outcome != "holds"
    assert advice.measured not in ("use the early exit", "no layer needed: a surface cue does it")
    known = claims["noise: the model at full depth knows more of the task than a surface cue"]
    assert known.outcome in ("inconclusive", "contradicted")
    assert abs(known.measured - 0.5) < 0.2


def test_a_task_that_the_model_alone_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """With every cue blinded the same task is worth an exit if it is faster, and is refused one if it is not."""
    import moescope.studies.exit.claims as claims
    import moescope.studies.exit.task as module
    import moescope.tasks.surface as surface

    def blind(task: Task, train: np.ndarray, held: np.ndarray, tokenizer: object) -> dict[str, np.ndarray]:
        return {"nothing": np.zeros(len(held), dtype=int)}

    monkeypatch.setattr(surface, "surface_predictions", blind)
    task, settings = planted_rows(), moescope.ExitSettings(risk=0.05, k=3, timed_texts=4)
    rows = calibrated(task.name, task, 0)
    found = module.exit_task(Context("exit", settings, Run()), planted_llama(), task, rows, settings)
    assert found.at.mean() < 1
    assert found.lost.mean() <= 0.05
    known = next(c for c in exit_claims(found, settings, Run()) if "knows more" in c.statement)
    assert (known.outcome, known.explanation) == ("holds", "none found")
    monkeypatch.setattr(claims, "_speed", lambda *_: {"speedup": 2.0})
    assert (recommend(found, known).measured, recommend(found, known).outcome) == ("use the early exit", "holds")
    monkeypatch.setattr(claims, "_speed", lambda *_: {"speedup": 1.01})
    assert (recommend(found, known).measured, recommend(found, known).outcome) == ("keep full depth", "contradicted")


def test_saved_whole(planted: StudyResult, tmp_path: Path) -> None:
    folder = planted.save(tmp_path / "out")
    assert moescope.load(folder) == planted
    assert planted.figures == ["frontier-planted", "frontier-noise"]
    assert (folder / "figures" / "frontier-planted.png").stat().st_size > 10_000
    made = planted.artifacts["exit/planted"]
    assert isinstance(made, ExitClassifier)
    texts = [e.text for e in planted_task(rows=20, seed=5).examples]
    back = load_exit(folder / "exit" / "planted", made.model)
    np.testing.assert_array_equal(back.predict(texts), made.predict(texts))
    assert np.mean(back.predict(texts) == [("positive", "negative")[i % 2] for i in range(20)]) > 0.9


def test_a_save_that_is_killed_leaves_the_old_result_whole(
    planted: StudyResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = planted.save(tmp_path / "out", figures=False)
    made = planted.artifacts["exit/planted"]
    assert isinstance(made, ExitClassifier)
    other = dataclasses.replace(made, heads=dataclasses.replace(made.heads, weight=tuple(-w for w in made.heads.weight)))
    again = dataclasses.replace(planted, artifacts=planted.artifacts | {"exit/planted": other})
    whole = checkpoint.write_atomic

    def killed(path: Path, parts: Iterable[bytes]) -> int:
        whole(path, parts)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_atomic", killed)
        with pytest.raises(KeyboardInterrupt):
            again.save(folder, overwrite=True, figures=False)
    assert moescope.load(folder) == planted
    texts = [e.text for e in planted_task(rows=20, seed=5).examples]
    np.testing.assert_array_equal(load_exit(folder / "exit" / "planted", made.model).predict(texts), made.predict(texts))


def test_rows_and_heads_on_record(planted: StudyResult) -> None:
    """Who fits, calibrates and judges is in the result, and the table of depths counts the judges."""
    by_name = {rows["name"]: rows for rows in planted.rows}
    assert set(by_name) == {"planted", "noise", "planted: within fit", "noise: within fit"}
    assert [by_name["noise"][role]["rows"] for role in ("fit", "calibrate", "judge")] == [160, 160, 80]
    assert by_name["noise: within fit"]["judge"]["rows"] == 160
    depth = planted.table("depth")
    assert depth[depth["task"] == "planted"]["rows"].sum() == by_name["planted"]["judge"]["rows"]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    given = ["--task", "certainty=halueval", "--limit", "400", "--risk", "0.05", "--timed-texts", "4", "--layers", "1,3"]
    main(["exit", "dense-tiny", *given, "--out", str(out), "--json"])
    shown = json.loads(capsys.readouterr().out)
    assert shown["kind"] == "exit"
    back = load_exit(out / "exit" / "certainty")
    assert set(back.exit_depth(["Question: Who?\nAnswer: Me.", "Question: What is it\nAnswer: no"])) <= {2, 4, 6}
    assert back.guarantee is not None
    assert back.guarantee.groups == 80


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--limit", "200"], ["risk 0.02", "at least 114 calibration groups", "40"]),
        (["--limit", "100", "--method", "crc"], ["at least 49 calibration groups"]),
        (["--layers", "2,6"], ["--layers", "layer 6", "0 to 5"]),
        (["--risk", "1"], ["--risk"]),
        (["--k", "1000", "--risk", "0.1"], ["K = 1000", "256"]),
        (["--head", "tree"], ["tree"]),
        (["--random", "5"], ["--random", "at least 119"]),
    ],
)
def test_bad_input(given: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["exit", "dense-tiny", "--task", "certainty=halueval", *given, "--out", str(tmp_path / "out")])
    assert stop.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert [w for w in words if w not in lines[0]] == [], lines[0]
    assert not (tmp_path / "out").exists()
