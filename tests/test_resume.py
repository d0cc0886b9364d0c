"""A run that is cut off after any of its stages goes on from there to the same result."""

from __future__ import annotations

import atexit
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import moescope
from moescope import Run, StudyResult
from moescope.cli import main
from tests.architectures import save_tiny
from tests.same_result import difference

Verb = Callable[[Run], StudyResult]


TASKS = ["certainty=halueval", "b=uci-sentiment"]


def circuits(run: Run) -> StudyResult:
    few: dict[str, Any] = {"n_permutations": 40, "ablate": "mean", "ablate_rows": 16, "ablate_text_tokens": 512}
    return moescope.circuits("dense-tiny", TASKS, moescope.CircuitSettings(k=8, ks=(4, 8), **few), run=run)


@cache
def series() -> list[Path]:
    """Two checkpoints by name, which are one model."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    whole = Path(moescope.__file__).parent / "models" / "zoo" / "dense-tiny"
    return [Path(shutil.copytree(whole, folder / name)) for name in ("step-0", "step-1000")]


def dynamics(run: Run) -> StudyResult:
    return moescope.dynamics(series(), TASKS[:1], settings=moescope.SearchSettings(k=8), run=run)


@cache
def small() -> Path:
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    return save_tiny(folder / "small")


def scaling(run: Run) -> StudyResult:
    return moescope.scaling([small(), "dense-tiny"], TASKS[:1], moescope.ScalingSettings(k=8), run=run)


def choice(run: Run) -> StudyResult:
    settings = moescope.ChoiceSettings(neuron_share=0.25, k=8, tokens=128, neurons=64)
    return moescope.choice("dense-tiny", TASKS[:1], settings, run=run)


def signatures(run: Run) -> StudyResult:
    settings = moescope.SignatureSettings(new_tokens=2, n_permutations=99, n_nulls=4)
    return moescope.signatures("moe-tiny", "routing-80", settings, run=run)


def distill(run: Run) -> StudyResult:
    settings = moescope.DistillSettings(layer=1, experts=16, active=(4,), rank=4, steps=24, seeds=2, tokens=4000)
    return moescope.distill("dense-tiny", settings=settings, run=run)


def steer(run: Run) -> StudyResult:
    settings = moescope.SteerSettings(ban_top=("code",), new_tokens=2, n_random=79, text_tokens=128, length=32)
    return moescope.steer("moe-tiny", settings=settings, prompts="routing-80", run=run)


def prune(run: Run) -> StudyResult:
    return moescope.prune(
        "moe-tiny", settings=moescope.PruneSettings(ratios=(0.5,), text_tokens=256, length=16, n_random=39), run=run
    )


def robustness(run: Run) -> StudyResult:
    settings = moescope.RobustnessSettings(attacked=2, queries=48, monitor="code", risk=0.4, delta=0.2)
    return moescope.robustness("moe-tiny", "routing-80", settings, run=dataclasses.replace(run, limit=80))


def residency(run: Run) -> StudyResult:
    trace = moescope.trace("moe-tiny", "routing-80", moescope.TraceSettings(new_tokens=2))
    return moescope.residency(trace, "moe-tiny", moescope.ResidencySettings(capacity=4), run=run)


def atlas(run: Run) -> StudyResult:
    return moescope.atlas("moe-tiny", "routing-80", moescope.AtlasSettings(new_tokens=2), run=run)


def transfer(run: Run) -> StudyResult:
    settings = moescope.TransferSettings(n_permutations=159)
    return moescope.transfer("moe-tiny", "dense-tiny", "routing-80", settings, run=run)


def convert(run: Run) -> StudyResult:
    few: dict[str, Any] = {"calibration_tokens": 2048, "heldout_tokens": 512, "finetune": 10, "speed": False}
    return moescope.convert("dense-tiny", settings=moescope.ConvertSettings(experts=8, active=4, **few), run=run)


def sparsify(run: Run) -> StudyResult:
    few: dict[str, Any] = {"calibration_tokens": 2048, "heldout_tokens": 4096, "window": 128, "budgets": "greedy"}
    few["timed_seconds"] = 0.0  # the fewest turns
    settings = moescope.SparsifySettings(choose=4, bits=5, shares=(0.5,), rivals=("cats",), **few)
    return moescope.sparsify("dense-tiny", settings=settings, run=run)


def exits(run: Run) -> StudyResult:
    settings = moescope.ExitSettings(risk=0.2, delta=0.2, timed_texts=4, timed_seconds=0.1)
    return moescope.exit("dense-tiny", TASKS[:1], settings, run=dataclasses.replace(run, limit=200))


def route(run: Run) -> StudyResult:
    settings = moescope.RouteSettings(unknown=0.2, timed_texts=2)
    return moescope.route("dense-tiny", TASKS, settings, run=run)


def targets(run: Run) -> StudyResult:
    settings = moescope.TargetSettings(n_permutations=159)
    return moescope.targets("moe-tiny", "routing-480", settings, run=dataclasses.replace(run, limit=300))


VERBS: dict[str, tuple[Verb, int]] = {
    "circuits": (circuits, 12),
    "dynamics": (dynamics, 2),
    "scaling": (scaling, 2),
    "choice": (choice, 2),
    "signatures": (signatures, 3),
    "atlas": (atlas, 2),
    "distill": (distill, 5),
    "steer": (steer, 6),
    "prune": (prune, 5),
    "residency": (residency, 5),
    "robustness": (robustness, 15),
    "transfer": (transfer, 4),
    "convert": (convert, 5),
    "sparsify": (sparsify, 6),
    "exit": (exits, 4),
    "route": (route, 4),
    "targets": (targets, 4),
}
"""a small run of each study, and how many stages it has at least"""


class Cut(KeyboardInterrupt):
    pass


def cut_after(stages: int, work: Path) -> Callable[[str, int, int], None]:
    """Progress that ends the run when so many stages are kept."""

    def progress(stage: str, done: int, total: int) -> None:
        if stage != "done" and not stage.startswith("resumed: ") and len(list(work.glob("**/*.safetensors"))) >= stages:
            raise Cut

    return progress


@pytest.mark.slow
@pytest.mark.parametrize("name", list(VERBS))
def test_the_same_result_however_often_it_is_cut_off(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StudyResult, "_show", lambda self, folder: None)  # figures are drawn elsewhere
    verb, least = VERBS[name]
    run = Run(limit=32, seed=3)
    whole = verb(run)
    out, work = tmp_path / "out", tmp_path / ".out.work"
    kept, found = 0, None
    while found is None:
        try:
            found = verb(dataclasses.replace(run, out=out, progress=cut_after(kept + least // 2, work)))
        except Cut:
            kept = len(list(work.glob("**/*.safetensors")))
            assert not out.exists()
    assert kept >= least // 2, kept
    assert os.listdir(tmp_path) == ["out"]
    assert difference(found, whole) is None
    assert difference(moescope.load(out), whole) is None


def test_ctrl_c_says_that_the_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(StudyResult, "_show", lambda self, folder: None)
    line = ["prune", "moe-tiny", "--ratios", "0.5", "--text-tokens", "256", "--length", "16", "--out", str(out), "--quiet"]

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("moescope.studies.prune.measure.Judged.whole", interrupted)
        with pytest.raises(SystemExit, match="130"):
            main(line)
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said == f"interrupted; no result was written, the same command goes on after 1 finished stage, to {out}"
    assert os.listdir(tmp_path) == [".out.work"]

    with monkeypatch.context() as patch:
        patch.setattr("moescope.studies.prune.study.expert_saliency", interrupted)  # it is not read again
        main(line)
    assert os.listdir(tmp_path) == ["out"]
