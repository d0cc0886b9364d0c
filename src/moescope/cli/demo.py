"""The main jobs on the embedded models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from moescope.cli.options import COMMON, Common
from moescope.cli.output import finish, prepare, print_json, progress

if TYPE_CHECKING:
    from moescope.study.result import StudyResult

Report = Callable[[str, int, int], None]


def demo(*, common: Common = COMMON) -> None:
    """The main jobs on the embedded models and shipped text, offline: the three published studies with their controls.

    The task circuits of the dense model with an ablation, the routing signatures of the mixture-of-experts model, and one
    layer distilled into tiny experts; each result in a folder of its own.
    """
    folder = common.out or Path("moescope-out") / "demo"
    overwrite = common.overwrite or common.out is None
    parts = {"circuits": _circuits, "signatures": _signatures, "distill": _distill}
    places = {name: replace(common, out=folder / name, overwrite=overwrite) for name in parts}
    for name, place in places.items():
        prepare(place.out, name, overwrite=place.overwrite)
    shown = {}
    for name, part in parts.items():
        with progress() as report:
            result = part(common, report)
        if common.json:
            shown[name] = {**result.json(), "folder": str(result.save(folder / name, overwrite=overwrite))}
        else:
            finish(result, folder / name, places[name])
            print()
    if common.json:
        print_json(shown)
        return
    print("The demo's reports open in any browser, offline:")
    for name in parts:
        print(f"  {(folder / name / 'report.html').resolve()}")


def _circuits(common: Common, report: Report) -> StudyResult:
    from moescope.studies.circuits import CircuitSettings
    from moescope.studies.circuits import circuits as study
    from moescope.study.run import Run

    return study(
        "dense-tiny",
        # the second as a question, so that the model has an answer of its own, which an ablation can change
        ["certainty=halueval", "sentiment=uci-sentiment?template=question"],
        CircuitSettings(ablate="mean", ablate_ks=(1, 10, 50), ablate_rows=160, ablate_text_tokens=512),
        run=Run(seed=common.seed, batch_tokens=common.batch_tokens, progress=report, **common.load_options()),
    )


def _signatures(common: Common, report: Report) -> StudyResult:
    from moescope.studies.signatures.settings import SignatureSettings
    from moescope.studies.signatures.study import signatures
    from moescope.study.run import Run

    run = Run(seed=common.seed, batch_tokens=common.batch_tokens, progress=report, **common.load_options())
    return signatures("moe-tiny", settings=SignatureSettings(n_label_permutations=20, n_nulls=20), run=run)


def _distill(common: Common, report: Report) -> StudyResult:
    from moescope.studies.distill.settings import DistillSettings
    from moescope.studies.distill.study import distill

    # Far shorter than the published runs: the ratio is smaller than theirs, and stands beside its Gaussian control.
    settings = DistillSettings(layer=3, experts=1024, rank=32, lr=(5e-3,), steps=250, tokens=40_000, equal_cost=False)
    return distill("dense-tiny", settings=settings, run=common.run(report))
