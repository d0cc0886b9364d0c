"""What a task's experts alone are worth: what is lost with them, beside as many others, and the promise kept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from moescope.stats import group_bootstrap, wilson
from moescope.studies.route.experts import Left
from moescope.studies.route.settings import RouteSettings
from moescope.study.paired import beyond_sets, interval_over, paired_effect
from moescope.study.rows import Rows
from moescope.study.run import Run
from moescope.study.verdicts import Case, Effect
from moescope.types import Claim, Control

_UNIT = "nats a token"


def expert_tables(left: Left, names: Sequence[str], rows: Rows, run: Run) -> dict[str, pd.DataFrame]:
    """``experts``: what each task's texts lose; ``experts_confidence``: what is lost and saved at each confidence."""
    found = []
    for t, name in enumerate(names):
        at = np.flatnonzero(left.task[rows.judge] == t)
        mine = rows.judge[at]
        rise = left.own[mine] - left.full[mine]
        low, high = interval_over(rise, left.groups[mine], run.seed)
        beside = {"shared": left.shared[mine], "others": left.others[mine], "random": left.random[:, at].mean(0)}
        row = {"task": name, "n": len(mine), "left_out": left.share, "full": float(left.full[mine].mean())}
        row |= {"own": float(rise.mean()), "low": low, "high": high}
        found.append(row | {key: float((loss - left.full[mine]).mean()) for key, loss in beside.items()})
    confidence = [
        {
            "confidence": float(theta),
            "used": place == left.place,
            "acted": float(left.acts[rows.judge, place].mean()),
            "lost": float(left.lost[rows.judge, place].mean()),
        }
        for place, theta in enumerate(left.confidences)
    ]
    return {"experts": pd.DataFrame(found), "experts_confidence": pd.DataFrame(confidence)}


def expert_claims(left: Left, rows: Rows, settings: RouteSettings, run: Run) -> list[Case | Claim]:
    """The promise, then the task's own experts beside as many that all tasks use, another task's, and random ones."""
    judge, groups = rows.judge, left.groups[rows.judge]
    own, full = left.own[judge] - left.full[judge], left.full[judge]
    rivals = (("that all tasks alike use most", left.shared), ("of another task", left.others))
    claims: list[Case | Claim] = [_promise(left, rows, settings, run)]
    for said, loss in rivals:
        other = loss[judge] - full
        claims.append(
            Case(
                f"with its own task's experts alone a text loses less than with as many {said}",
                float(own.mean()),
                paired_effect(other, own, groups, f"as many {said}", settings.tolerance, run.seed, share=False, unit=_UNIT),
                id="H16",
                interval=interval_over(own, groups, run.seed),
                control=Control(f"as many {said}", float(other.mean())),
                family="expert sets",
                words=_words(left, rows),
            )
        )
    random = left.random - full
    claims.append(
        Case(
            "with its own task's experts alone a text loses less than with as many at random",
            float(own.mean()),
            beyond_sets(own, random, groups, "as many at random", settings.tolerance, run.seed, alternative=-1, unit=_UNIT),
            id="H16",
            interval=interval_over(own, groups, run.seed),
            control=Control("as many at random", float(random.mean())),
            words=f"{len(random)} sets; {_words(left, rows)}",
        )
    )
    return claims


def _words(left: Left, rows: Rows) -> str:
    return (
        f"rise of the loss on {len(rows.judge)} test texts, the task told; {left.share:.0%} of the experts behind the router's "
        "layer left out"
    )


def _promise(left: Left, rows: Rows, settings: RouteSettings, run: Run) -> Case:
    judge, n = rows.judge, len(np.unique(left.groups[rows.calibrate]))
    lost = left.lost[judge, left.place].astype(float)
    groups = left.groups[judge]
    low, high = group_bootstrap(lost, groups, seed=run.seed) if lost.any() else wilson(0, len(np.unique(groups)))
    acted = float(left.acts[judge, left.place].mean())
    sure = f"those with a p of {left.confidence:.2f} or more" if np.isfinite(left.confidence) else "none"
    sure = "all that are named" if left.confidence == 0 else sure
    always = float(left.lost[judge, -1].mean())
    return Case(
        "with the named task's experts alone, no more texts are lost than was promised, mistakes of naming included",
        float(lost.mean()),
        Effect(0.0 - float(lost.mean()), 0.0 - high, 0.0 - low, "all experts", settings.risk, no_worse=True),
        id="H16",
        interval=(low, high),
        words=f"lost is a text that loses more than {settings.tolerance:g} {_UNIT}; promised at most {settings.risk:.1%} with "
        f"probability {1 - settings.delta:g} (Learn-then-Test, {n} groups); {acted:.1%} of the test texts go on with their "
        f"named task's experts, {sure}, the rest with all; did all that are named, {always:.1%} were lost",
    )
