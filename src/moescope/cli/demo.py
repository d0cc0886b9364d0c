"""The main jobs on the embedded models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moescope.cli.generate import Verb, command
from moescope.cli.output import prepare, print_json, print_result, progress

if TYPE_CHECKING:
    from moescope.study.result import StudyResult
    from moescope.study.run import Run
    from moescope.study.settings import Settings


def _demo(_inputs: dict[str, Any], _settings: Settings, run: Run, *, json: bool, quiet: bool) -> None:
    folder, overwrite = run.out or Path("moescope-out") / "demo", run.overwrite or run.out is None
    parts = {"circuits": _circuits, "signatures": _signatures, "distill": _distill}
    for name in parts:
        prepare(folder / name, name, overwrite=overwrite)
    shown = {}
    for name, part in parts.items():
        with progress(quiet=quiet) as report:
            result = part(replace(run, out=folder / name, overwrite=overwrite, progress=report))
        if json:
            shown[name] = {**result.json(), "folder": str(folder / name)}
        else:
            print_result(result, folder / name)
            print()
    if json:
        print_json(shown)
        return
    print("The demo's reports open in any browser, offline:")
    for name in parts:
        print(f"  {(folder / name / 'report.html').resolve()}")


demo = command(Verb("demo", "", ()), _demo)


def _circuits(run: Run) -> StudyResult:
    from moescope.studies.circuits.settings import CircuitSettings
    from moescope.studies.circuits.study import circuits

    # the second as a question, so that the model has an answer of its own, which an ablation can change
    tasks = ["certainty=halueval", "sentiment=uci-sentiment?template=question"]
    settings = CircuitSettings(ablate="mean", ablate_random=199, ablate_text_tokens=512)
    return circuits("dense-tiny", tasks, settings, run=run)


def _signatures(run: Run) -> StudyResult:
    from moescope.studies.signatures.settings import SignatureSettings
    from moescope.studies.signatures.study import signatures

    return signatures("moe-tiny", settings=SignatureSettings(n_label_permutations=0, n_nulls=20), run=run)


def _distill(run: Run) -> StudyResult:
    from moescope.studies.distill.settings import DistillSettings
    from moescope.studies.distill.study import distill

    # Far shorter than the published runs: the ratio is smaller than theirs, and stands beside its Gaussian control.
    settings = DistillSettings(layer=3, experts=1024, rank=32, lr=(5e-3,), steps=250, tokens=40_000, equal_cost=False)
    return distill("dense-tiny", settings=settings, run=run)
