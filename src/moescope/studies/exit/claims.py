"""What an early exit is worth, said plainly: claims with verdicts, and a recommendation that may be no."""

from __future__ import annotations

from typing import Any

import numpy as np

from moescope.stats import group_bootstrap, paired_bootstrap_difference
from moescope.studies.exit.published import ACCURACY, SHARE
from moescope.studies.exit.settings import ExitSettings
from moescope.studies.exit.task import TaskExit
from moescope.study.run import Run
from moescope.types import Claim

LEAST = 1.05  # a speed-up below this is not worth a classifier of its own


def recommend(found: TaskExit) -> tuple[str, str]:
    """What to do in a few words, and why in one sentence."""
    full, cue = float(found.full_right.mean()), float(found.surface_right.mean())
    majority = float(np.bincount(found.y).max() / len(found.y))
    beside = paired_bootstrap_difference(found.full_right.astype(float), found.surface_right.astype(float), found.groups)
    gains = {batch: _speed(found, "early exit", batch)["speedup"] for batch in (1, 64)}
    if beside.low <= 0:
        return (
            "no layer needed: a surface cue does it",
            f"{found.surface!r} alone is right on {cue:.1%} of the test rows, all layers on {full:.1%}: no gain beyond chance",
        )
    if full <= majority:
        return (
            "no: the model does not know the task",
            f"at full depth it is right on {full:.1%}, the commoner class on {majority:.1%}",
        )
    worth = [f"{gain:.2f}× at batch {batch}" for batch, gain in gains.items() if gain >= LEAST]
    if not worth:
        return "keep full depth", f"leaving early is not faster ({gains[1]:.2f}× at batch 1, {gains[64]:.2f}× at batch 64)"
    return "use the early exit", f"{', '.join(worth)}, {found.guarantee.text()}"


def exit_claims(found: TaskExit, settings: ExitSettings, run: Run) -> list[Claim]:
    """The claims of one task; the published example stands beside them where the task has its name."""
    name, seed, n_layers = found.task.name, run.seed, found.said.shape[1]
    what, why = recommend(found)
    cue = float(found.surface_right.mean())
    trivial = what.startswith("no layer")
    lost = found.lost
    low, high = group_bootstrap(lost, found.groups, seed=seed)
    share = float((found.at + 1).mean() / n_layers)
    saved = tuple(1 - b for b in reversed(group_bootstrap((found.at + 1) / n_layers, found.groups, seed=seed)))
    accuracy = group_bootstrap(found.right.astype(float), found.groups, seed=seed)
    g = found.guarantee
    claims = [
        Claim(f"{name}: recommendation", what, verdict="explained by a trivial cue" if trivial else "measured", note=why),
        Claim(
            f"{name}: risk of leaving early, on test rows",
            float(lost.mean()),
            interval=(low, high),
            note=f"promised {g.text()}; {g.calibration_risk:.2%} there; "
            + (f"confidence asked for {g.threshold:.4f}" if np.isfinite(g.threshold) else "no row may leave early"),
        ),
        Claim(
            f"{name}: accuracy with early exit",
            float(found.right.mean()),
            interval=accuracy,
            null=cue,
            verdict="explained by a trivial cue" if trivial else "measured",
            note=f"{found.full_right.mean():.1%} at full depth; null is {found.surface!r} on the same {len(found.y)} rows",
        ),
        Claim(
            f"{name}: share of layers saved",
            1 - share,
            published=1 - SHARE if name in ACCURACY else None,
            interval=(saved[0], saved[1]),
            null=1.0 if trivial else None,
            verdict=_saved_verdict(1 - share, name, trivial),
            note=f"{share * n_layers:.2f} of {n_layers} layers on average, heads of kind {found.classifier.heads.kind!r}"
            + ("; a surface cue saves them all" if trivial else ""),
        ),
    ]
    for batch in (1, 64):
        row = _speed(found, "early exit", batch)
        note = (
            f"its share of layers would give {row['layer_speedup']:.2f}× ({row['of_layers']:.0%} of that reached); wall clock"
        )
        claims.append(Claim(f"{name}: speed-up at batch {batch}", row["speedup"], note=note))
    return [*claims, _published_example(found, settings, run, trivial)]


def _saved_verdict(saved: float, name: str, trivial: bool) -> Any:
    if trivial:
        return "explained by a trivial cue"
    if name not in ACCURACY:
        return "measured"
    return "reproduced" if saved >= 1 - SHARE else "not reproduced"


def _published_example(found: TaskExit, settings: ExitSettings, run: Run, trivial: bool) -> Claim:
    """Choi (2025): layers 0 to 8 of 32 do what all 32 do. Here the circuit is chosen anew from those layers, and timed."""
    n_layers, layer, name = found.circuit.shape[1], found.published_layer, found.task.name
    right = {at: (found.circuit[:, at].argmax(-1) == found.y).astype(float) for at in (layer, n_layers - 1)}
    lost = paired_bootstrap_difference(right[n_layers - 1], right[layer], found.groups, seed=run.seed)
    early = float(right[layer].mean())
    times = " and ".join(
        f"{_speed(found, 'circuit at 28 % of the depth', batch)['speedup']:.2f}× at batch {batch}" for batch in (1, 64)
    )
    published = ACCURACY[name][0] if name in ACCURACY else None
    verdict: Any = "measured"
    if trivial:
        verdict = "explained by a trivial cue"
    elif published is not None:
        kept = ACCURACY[name][1] - ACCURACY[name][0] + settings.risk
        verdict = "reproduced" if lost.high <= kept else "not reproduced"
    return Claim(
        f"{name}: accuracy of a circuit at 28 % of the depth",
        early,
        published=published,
        interval=group_bootstrap(right[layer], found.groups, seed=run.seed),
        null=float(found.surface_right.mean()),
        p=lost.p,
        verdict=verdict,
        note=f"{settings.k} neurons chosen from layers 0 to {layer} of {n_layers}; "
        f"{right[n_layers - 1].mean():.1%} from all, lost {lost.value:+.1%} ({lost.low:+.1%} to {lost.high:+.1%}), "
        f"which p is of; on the clock {times}; "
        f"null is {found.surface!r}",
    )


def _speed(found: TaskExit, contender: str, batch: int) -> Any:
    table = found.tables["speed"]
    return table[(table["contender"] == contender) & (table["batch"] == batch)].iloc[0]
