"""The main jobs on the embedded models."""

from __future__ import annotations

from moescope.cli.options import COMMON, Common, load_tasks
from moescope.cli.output import finish, prepare, progress


def demo(*, common: Common = COMMON) -> None:
    """The main job on the embedded model and shipped text: two published tasks, all controls, and an ablation."""
    from moescope.circuits import AblationSettings, CircuitSettings
    from moescope.circuits import circuits as study
    from moescope.models import load

    folder = prepare(common, "demo", overwrite=common.out is None)
    tasks = load_tasks(["certainty=halueval", "sentiment=uci-sentiment"], None, common.seed)
    with progress() as report:
        result = study(
            load("dense-tiny", head=True, **common.load_options()),
            tasks,
            settings=CircuitSettings(seed=common.seed, batch_tokens=common.batch_tokens),
            ablate=AblationSettings(ks=(1, 5, 10, 50), max_rows=200, text_tokens=1024),
            report=report,
        )
    finish(result, folder, common)
