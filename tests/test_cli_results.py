"""Results that are never overwritten unasked, listed, set side by side and made again from the file that they carry."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import moescope
from moescope import Run
from moescope.cli import _COMMANDS, app, main
from moescope.cli.verbs import VERBS
from moescope.files.lock import locked
from moescope.routing.store import save_trace
from moescope.study.repeat import record_of, study_yaml
from tests.same_result import difference
from tests.wiring.requests import requests

Said = Callable[[list[str]], str]


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Said:
    """What a command prints, in an empty folder; of one that ends with an error its line on stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(moescope.StudyResult, "_show", lambda self, folder: None)

    def run(line: list[str]) -> str:
        capsys.readouterr()
        try:
            main(line)
        except SystemExit as end:
            if end.code:
                lines = capsys.readouterr().err.strip().splitlines()
                return lines[-1]
        return capsys.readouterr().out

    return run


@pytest.fixture
def line(said: Said) -> list[str]:
    save_trace(requests(24, 20), "t")
    return ["residency", "t", "--capacity", "4", "--tokens", "64", "--quiet"]


def test_two_runs_leave_two_results_which_are_listed(said: Said, line: list[str]) -> None:
    for _ in range(2):
        said(line)
    assert sorted(os.listdir("moescope-out")) == ["residency-t", "residency-t-2"]
    rows = json.loads(said(["list", "--json"]))
    assert {row["path"] for row in rows} == {"moescope-out/residency-t", "moescope-out/residency-t-2"}
    made = moescope.load("moescope-out/residency-t")
    for row in rows:
        assert row["command"] == "residency"
        assert row["date"]
        assert sum(row["claims"].values()) == len(made.claims)
        assert row["claims"]["descriptive"] == sum(claim.outcome == "descriptive" for claim in made.claims)
    Path("moescope-out/residency-t/tables/policies.parquet").write_bytes(b"")
    Path("moescope-out/residency-t-2/results.json").write_text("{")
    damaged = json.loads(said(["list", "--json"]))
    assert [row["damaged"].split(" ")[0].rsplit("/", 1)[-1] for row in sorted(damaged, key=lambda row: row["path"])] == [
        "policies.parquet",
        "results.json",
    ]
    assert "no such folder" in said(["list", "nowhere"])


def test_a_result_carries_the_file_that_repeats_it(said: Said, line: list[str]) -> None:
    said([*line, "--seed", "3"])
    first = Path("moescope-out/residency-t")
    told = said(["run", str(first / "study.yaml"), "--dry-run"])
    assert "moescope-out/residency-t-2" in told
    assert "--capacity 4" in told
    assert os.listdir("moescope-out") == ["residency-t"]
    said(["run", str(first / "study.yaml"), "--quiet"])
    a, b = moescope.load(first), moescope.load("moescope-out/residency-t-2")
    assert difference(b, a) is None
    assert a.study == b.study == (first / "study.yaml").read_text()
    file = yaml.safe_load(a.study)
    assert (file["run"]["seed"], file["settings"]["capacity"], file["trace"]) == (3, 4, "t")


def test_python_runs_carry_it_too(said: Said) -> None:
    model = moescope.load_model("dense-tiny", dtype="fp32")
    settings = moescope.ExitSettings(risk=0.2, k=4)
    made = moescope.exit(model, ["certainty=halueval"], settings, run=Run(limit=120, seed=5))
    Path("study.yaml").write_text(made.study or "")
    said(["run", "study.yaml", "--out", "again", "--quiet"])
    told = made.meta | {"run": made.meta["run"] | {"dtype": "fp32"}}  # as the model was loaded
    assert difference(moescope.load("again"), dataclasses.replace(made, meta=told)) is None
    assert yaml.safe_load(made.study or "")["run"]["dtype"] == "fp32"


@pytest.mark.parametrize("name", list(VERBS))
def test_every_verb_is_on_record_and_its_file_is_read_again(name: str, said: Said, tmp_path: Path) -> None:
    verb = VERBS[name]
    series = ["one", "two"]
    inputs = {"tasks": ["a=halueval", "b=uci-sentiment"], "checkpoints": series, "models": series}
    given = [
        inputs.get(i.name, f"{i.name}.txt") for i in verb.inputs if i.name not in ("trace", "revisions") or name == "residency"
    ]
    settings = verb.settings_class()(**verb.defaults, **verb.fixed)
    positional, named = given[: len(given)], {}
    if name in ("convert", "distill", "sparsify", "steer"):
        named = {i.name: value for i, value in zip(verb.inputs, given, strict=True) if i.name not in ("model", "texts")}
        positional = given[:2]
    record = record_of(verb.verb(), *positional, settings=settings, **named, run=Run(seed=7, limit=50))
    Path("study.yaml").write_text(study_yaml(record))
    again = json.loads(said(["run", "study.yaml", "--dry-run", "--json"]))
    assert again.pop("folder").startswith("moescope-out/")
    assert again == json.loads(json.dumps(record))
    assert record["study"] == name


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"study": "circuit"}, ["study:", "'circuit' is none of", "circuits"]),
        ({"modle": "x"}, ["modle: unknown", "model"]),
        ({"settings": {"n_fold": 3}}, ["settings.n_fold: unknown", "n_folds"]),
        ({"settings": {"n_folds": "three"}}, ["settings.n_folds: 'three' is not a whole number"]),
        ({"settings": {"n_folds": 1}}, ["settings.n_folds: must be at least 3"]),
        ({"settings": [1]}, ["settings: [1] is not a mapping"]),
        ({"run": {"seed": "a"}}, ["run.seed: 'a' is not a whole number"]),
        ({"run": {"progress": 1}}, ["run.progress: unknown"]),
        ({"model": 3}, ["model: 3 is not a text"]),
        ({"model": None}, ["model: is missing"]),
        ({"tasks": [3]}, ["tasks: 3 is not a text"]),
        ({"tasks": {"mine": {"in memory": "DataFrame"}}}, ["tasks.mine: was in memory, DataFrame"]),
    ],
)
def test_what_is_wrong_in_a_file_is_one_line_with_its_key(said: Said, change: dict[str, object], words: list[str]) -> None:
    study = {"study": "circuits", "model": "dense-tiny", "tasks": ["certainty=halueval"], **change}
    Path("mine.yaml").write_text(yaml.safe_dump(study))
    told = said(["run", "mine.yaml"])
    assert told.startswith("error: mine.yaml: ")
    assert [word for word in words if word not in told] == [], told
    assert not os.path.exists("moescope-out")


def test_a_file_that_is_none_is_named(said: Said) -> None:
    Path("a.yaml").write_text("study: [")
    assert said(["run", "a.yaml"]).startswith("error: a.yaml: line ")
    Path("a.yaml").write_text("- 1")
    assert "error: a.yaml: not a study" in said(["run", "a.yaml"])
    assert "error: none.yaml: cannot be read" in said(["run", "none.yaml"])
    Path("a.yaml").write_text("study: distill\nmodel: dense-tiny\nsettings: {layer: 1, lr: [1e-3]}\n")
    assert "--lr (0.001,)" in said(["run", "a.yaml", "--dry-run"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "nested too deeply"),
        ("study: circuits\na: &a [x]\nb: [*a, *a]\n", "line 2: not YAML (anchors and aliases are not read)"),
        ("study: circuits\nmodel: 2024-13-45\n", "not YAML (month must be in 1..12)"),
        ("study: circuits\nmodel: " + "9" * 6000, "not YAML (Exceeds the limit"),
    ],
)
def test_yaml_that_means_harm_is_refused_in_one_line(said: Said, text: str, words: str) -> None:
    Path("a.yaml").write_text(text)
    told = said(["run", "a.yaml"])
    assert told.startswith("error: a.yaml: ")
    assert words in told


def test_an_interrupted_run_is_gone_on_with_where_it_is(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    line = ["prune", "moe-tiny", "--ratios", "0.5", "--text-tokens", "256", "--length", "16", "--quiet"]

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("moescope.studies.prune.measure.Judged.whole", interrupted)
        told = said(line)
    assert told == (
        "interrupted; no result was written, the same command goes on after 1 finished stage, to moescope-out/prune-moe-tiny"
    )
    waits = Path("moescope-out/.prune-moe-tiny.work/study.yaml")
    assert "moescope-out/prune-moe-tiny\n" in said(["run", str(waits), "--dry-run"])
    begun = said(["list"])
    assert begun.startswith("moescope-out/prune-moe-tiny\n  prune moe-tiny, ")
    assert begun.endswith(f": cut off after 1 finished stage; moescope run {waits} -o moescope-out/prune-moe-tiny goes on\n")
    with locked(Path.cwd() / "moescope-out/prune-moe-tiny"):
        assert said(["list"]).endswith(": running, 1 finished stage\n")
    other = waits.read_text().replace("seed: 0", "seed: 1")
    Path("other.yaml").write_text(other)
    assert "moescope-out/prune-moe-tiny-2\n" in said(["run", "other.yaml", "--dry-run"])
    with monkeypatch.context() as patch:
        patch.setattr("moescope.studies.prune.study.expert_saliency", interrupted)  # it is not read again
        said(line)
    assert os.listdir("moescope-out") == ["prune-moe-tiny"]
    assert [row["unfinished"] for row in json.loads(said(["list", "--json"]))] == [None]


def test_results_of_one_study_stand_side_by_side_and_others_are_refused_by_name(said: Said, line: list[str]) -> None:
    said(line)
    said([*line[:3], "8", *line[4:]])
    shown = json.loads(said(["compare", "moescope-out/residency-t", "moescope-out/residency-t-2", "--json"]))
    first = moescope.load("moescope-out/residency-t").claims[-1]
    assert any(row["claim"] == first.statement and first.verdict in row["residency-t"] for row in shown["claims"])
    assert shown["files"] == ["moescope-out/compare/comparison.csv"]
    said(["trace", "compare", "t", "t", "--quiet"])
    told = said(["compare", "moescope-out/residency-t", "moescope-out/trace-compare-t-t"])
    assert "residency-t is of 'residency'" in told
    assert "trace-compare-t-t is of 'agreement'" in told


def test_commands_come_in_groups_each_with_an_example(said: Said) -> None:
    shown = said(["--help"])
    heads = [shown.index(f"─ {group} ─") for group in ("Study", "Use", "Traces", "Results", "About")]
    assert heads == sorted(heads)
    assert heads[1] < shown.index("│ prune ") < heads[2]
    assert "Example: moescope list" in said(["list", "--help"])
    assert "moescope" in said(["completion", "bash"])
    assert said(["-V"]) == said(["--version"])


@pytest.mark.parametrize("example", [line for group in _COMMANDS.values() for *_, line in group.values() if line])
def test_the_example_in_a_commands_help_can_be_typed(example: str) -> None:
    app.parse_args(shlex.split(example.partition(" > ")[0]), exit_on_error=False, print_error=False)
