"""What a routing study says."""

from __future__ import annotations

import numpy as np
import pandas as pd

from moescope.models import LoadedModel
from moescope.runtime.route.router import Named, TaskRouter
from moescope.stats import group_bootstrap
from moescope.study.rows import Rows
from moescope.study.run import Run
from moescope.tasks import surface_predictions
from moescope.types import Claim, Task


def route_claims(
    router: TaskRouter,
    model: LoadedModel,
    together: Task,
    rows: Rows,
    named: list[Named],
    tables: dict[str, pd.DataFrame],
    run: Run,
) -> list[Claim]:
    """How well tasks are named beside a surface cue, how many prompts are called unknown, and what listening costs."""
    y = np.array([together.examples[i].label for i in rows.judge])
    groups = np.array([together.examples[i].group for i in rows.judge])
    right = np.array([n.nearest == together.classes[label] for n, label in zip(named, y, strict=True)])
    strange = np.array([n.task is None for n in named], dtype=float)
    cues = surface_predictions(together, rows.fit, rows.judge, model.tokenizer)
    accuracy = {cue: float((said == y).mean()) for cue, said in cues.items()}
    best = max(accuracy, key=lambda cue: accuracy[cue])
    interval = group_bootstrap(right.astype(float), groups, seed=run.seed)
    trivial = accuracy[best] >= interval[0]
    cost = tables["speed"].set_index("what")["microseconds"]
    more, whole = cost["more with the router listening"], cost["forward pass of a prompt"]
    claims = [
        Claim(
            f"the task is named from {router.source} features of layer {router.layer}",
            float(right.mean()),
            interval=interval,
            null=accuracy[best],
            verdict="explained by a trivial cue" if trivial else "measured",
            note=f"nearest of {len(router.tasks)} tasks on {len(y)} test prompts; null is their best surface cue, {best!r}",
        ),
        Claim(
            "prompts of known tasks called unknown",
            float(strange.mean()),
            interval=group_bootstrap(strange, groups, seed=run.seed),
            note=f"asked for {router.rate:g}; {len(router.strangeness)} calibration groups",
        ),
    ]
    for row in tables["unknown"].itertuples():
        if row.prompts != "known tasks":
            claims.append(Claim(f"called unknown: {row.prompts}", row.unknown, null=router.rate, note=f"{row.n} prompts"))
    note = f"{cost['naming alone']:.0f} of them for naming; a bare forward pass takes {whole:.0f}; wall clock, this machine"
    claims.append(Claim("microseconds over the forward pass that runs anyway", float(more), note=note))
    return claims
