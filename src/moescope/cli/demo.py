"""The main jobs on the embedded models."""

from __future__ import annotations

from dataclasses import replace

from moescope.cli.options import COMMON, Common, load_tasks
from moescope.cli.output import finish, prepare, print_json, progress


def demo(*, common: Common = COMMON) -> None:
    """The main jobs on the embedded models and shipped text, offline: two published studies with all their controls.

    The task circuits of the dense model with an ablation, then the routing signatures of the mixture-of-experts model; the
    second result is saved in the folder `signatures` of the first.
    """
    from moescope.circuits import AblationSettings, CircuitSettings
    from moescope.circuits import circuits as study
    from moescope.models import load
    from moescope.routing.demo import run_demo_part

    folder = prepare(common, "demo", overwrite=common.out is None)
    routing = replace(common, out=folder / "signatures", overwrite=common.overwrite or common.out is None)
    prepare(routing, "demo")
    tasks = load_tasks(["certainty=halueval", "sentiment=uci-sentiment"], None, common.seed)
    with progress() as report:
        result = study(
            load("dense-tiny", head=True, **common.load_options()),
            tasks,
            settings=CircuitSettings(seed=common.seed, batch_tokens=common.batch_tokens),
            ablate=AblationSettings(ks=(1, 10, 50), max_rows=160, text_tokens=512),
            report=report,
        )
    with progress() as report:
        signatures = run_demo_part(
            report, seed=common.seed, batch_tokens=common.batch_tokens, load_options=common.load_options()
        )
    if common.json:
        saved = [r.save(f, overwrite=routing.overwrite) for r, f in ((result, folder), (signatures, folder / "signatures"))]
        parts = zip((result, signatures), saved, strict=True)
        print_json({r.kind: {**r.json(), "folder": str(f)} for r, f in parts})
        return
    finish(result, folder, common)
    print()
    finish(signatures, folder / "signatures", routing)
