"""The study on tasks whose answer is known: one that needs a layer, one that a surface cue solves, one that nobody can."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import moescope
from moescope.cli import main
from moescope.runtime.exit import load_exit
from moescope.studies.exit import ExitStudy, early_exit
from moescope.studies.exit.verdicts import recommend
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
def planted() -> ExitStudy:
    return early_exit(planted_llama(), [planted_rows(), noise_task()], risk=0.05, k=3, timed_texts=8)


def test_the_tables(planted: ExitStudy) -> None:
    frontier = planted.result.to_frame("frontier")
    assert set(frontier["curve"]) == {"threshold", "fixed depth", "circuit per depth"}
    for _, rows in frontier[frontier["curve"] == "threshold"].groupby("task"):
        assert rows["calibrated"].sum() == 1
        assert (np.diff(rows.sort_values("setting")["share"]) >= -1e-12).all()  # more confidence asked for, more layers
    speed = planted.result.to_frame("speed")
    assert set(speed["batch"]) == {1, 64}
    full = speed[speed["contender"] == "full depth"]
    assert (full["share"] == 1).all()
    assert (full["speedup"] == 1).all()
    depth = planted.result.to_frame("depth")
    assert depth.groupby("task")["rows"].sum().tolist() == [80, 120]
    heads = planted.result.to_frame("heads")
    assert heads.groupby(["task", "kind"]).size().eq(4).all()
    assert heads[(heads["task"] == "planted") & (heads["kind"] == "linear")]["test"].min() > 0.95


def test_what_the_last_word_gives_away_needs_no_layer(planted: ExitStudy) -> None:
    """The planted class is a function of the last word, so the final token alone is a cue, and the study says so."""
    claims = {c.name: c for c in planted.result.claims}
    verdict = claims["planted: recommendation"]
    assert verdict.measured == "no layer needed: a surface cue does it"
    assert verdict.verdict == "explained by a trivial cue"
    assert claims["planted: share of layers saved"].null == 1.0
    assert claims["planted: accuracy of a circuit at 28 % of the depth"].measured > 0.95


def test_noise_gets_a_no(planted: ExitStudy) -> None:
    claims = {c.name: c for c in planted.result.claims}
    assert claims["noise: recommendation"].measured != "use the early exit"
    assert abs(claims["noise: accuracy with early exit"].measured - 0.5) < 0.2


def test_a_task_that_the_model_alone_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """With every cue blinded the same task is worth an exit if it is faster, and is refused one if it is not."""
    import moescope.studies.exit.task as module
    import moescope.studies.exit.verdicts as verdicts

    def blind(task: Task, train: np.ndarray, held: np.ndarray, tokenizer: object) -> dict[str, np.ndarray]:
        return {"nothing": np.zeros(len(held), dtype=int)}

    monkeypatch.setattr(module, "surface_predictions", blind)
    found = module.exit_task(
        planted_llama(), planted_rows(), module.ExitSettings(risk=0.05, k=3, timed_texts=4), lambda *_: None
    )
    assert found.at.mean() < 1
    assert found.lost.mean() <= 0.05
    monkeypatch.setattr(verdicts, "_speed", lambda *_: {"speedup": 2.0})
    assert recommend(found)[0] == "use the early exit"
    monkeypatch.setattr(verdicts, "_speed", lambda *_: {"speedup": 1.01})
    assert recommend(found)[0] == "keep full depth"


def test_saved_whole(planted: ExitStudy, tmp_path: Path) -> None:
    folder = planted.save(tmp_path / "out")
    assert moescope.load(folder) == planted.result
    assert planted.result.figures() == ["frontier-planted", "frontier-noise"]
    assert (folder / "figures" / "frontier-planted.png").stat().st_size > 10_000
    made = planted.classifiers["planted"]
    texts = [e.text for e in planted_task(rows=20, seed=5).examples]
    back = load_exit(folder / "exit" / "planted", made.model)
    np.testing.assert_array_equal(back.predict(texts), made.predict(texts))
    assert np.mean(back.predict(texts) == [("positive", "negative")[i % 2] for i in range(20)]) > 0.9


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
