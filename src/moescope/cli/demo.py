"""The main jobs on the embedded models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moescope.cli.generate import Verb, command
from moescope.cli.output import print_json, print_result
from moescope.errors import InputError

if TYPE_CHECKING:
    from moescope.study.result import StudyResult
    from moescope.study.run import Run
    from moescope.study.settings import Settings


def _demo(_inputs: dict[str, Any], _settings: Settings, run: Run, *, json: bool, quiet: bool) -> None:
    from moescope.cli.place import OUT, interrupted, numbered
    from moescope.study.store import check_target

    parts = {"circuits": _circuits, "signatures": _signatures, "distill": _distill}
    done: dict[str, StudyResult] = {}
    folder = run.out or OUT / "demo"
    if run.out is None and not run.overwrite:
        folder, done = next((f, had) for f in numbered("demo") if (had := _had(f, list(parts))) is not None)
    for name in parts:
        if name not in done:
            check_target(folder / name, overwrite=run.overwrite)
    shown = {}
    for name, part in parts.items():
        if name not in done:
            try:
                done[name] = part(replace(run, out=folder / name, quiet=quiet))
            except KeyboardInterrupt as error:
                raise type(error)(_cut_off(folder, list(done)) or interrupted(folder / name)) from error
        if json:
            shown[name] = {**done[name].json(), "folder": str(folder / name)}
        else:
            print_result(done[name], folder / name)
            print()
    if json:
        print_json(shown)
        return
    print("The demo's reports open in any browser, offline:")
    for name in parts:
        print(f"  {(folder / name / 'report.html').resolve()}")


def _had(folder: Path, parts: list[str]) -> dict[str, StudyResult] | None:
    """What a demo that was cut off has left in ``folder``; None where a whole one stands, or something else."""
    from moescope.study.provenance import git_revision, versions
    from moescope.study.result import load

    found: dict[str, StudyResult] = {}
    for name in parts:
        if (folder / name).exists():
            try:
                found[name] = load(folder / name)
            except InputError:
                return None
            made = found[name].meta
            if (made.get("versions"), made.get("git_revision")) != (versions(), git_revision()):
                return None
    return None if len(found) == len(parts) else found


def _cut_off(folder: Path, done: list[str]) -> str:
    return f"interrupted; {' and '.join(done)} in {folder} are kept, the same command goes on with the rest" if done else ""


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
