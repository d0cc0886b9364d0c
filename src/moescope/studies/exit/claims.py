"""What an early exit is worth, said plainly: claims with verdicts, and a recommendation that may be no."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from moescope.stats import group_bootstrap
from moescope.studies.exit.published import ACCURACY, SHARE, SOURCE
from moescope.studies.exit.settings import ExitSettings
from moescope.studies.exit.task import TaskExit
from moescope.study.paired import above_chance, balanced, beyond, beyond_a_cue, paired_effect
from moescope.study.run import Run
from moescope.study.verdicts import Case, Effect, beyond_draws, verdicts
from moescope.types import Claim, Control, Explanation, Outcome, Published

LEAST = 1.05  # a speed-up below this is not worth a classifier of its own
NO_LAYER = "no layer needed: a surface cue does it"
UNDECIDED = "undecided: these rows cannot tell"


def exit_claims(found: TaskExit, settings: ExitSettings, run: Run) -> list[Claim]:
    """The claims of one task, the recommendation first; the published example stands beside it where it has its name."""
    cases = [_known(found, settings, run), _by_confidence(found, settings, run), _published_example(found, settings, run)]
    known, *judged = verdicts([*cases, _risk(found, settings, run)], settings.alpha)
    return [recommend(found, known), known, *judged, _saved(found, run), *(_clock(found, batch) for batch in (1, 64))]


def recommend(found: TaskExit, known: Claim) -> Claim:
    """Whether an early exit is worth having: ``measured`` says what to do, from the verdict on what the model knows.

    What is settled is said whatever else is open: where the model does not know the task, or a cue is shown to be as good,
    no clock is asked; where leaving early is not faster, no cue is.
    """
    gains = {batch: _speed(found, "early exit", batch)["speedup"] for batch in (1, 64)}
    clock = f"{gains[1]:.2f}× at batch 1, {gains[64]:.2f}× at batch 64"
    told: tuple[str, Outcome, Explanation | None, str]
    if known.outcome == "contradicted":
        told = ("no: the model does not know the task", "contradicted", known.explanation, known.words)
    elif known.explanation == "trivial cue":
        told = (NO_LAYER, "contradicted", "trivial cue", f"the cue is {found.surface!r}: {known.words}")
    elif max(gains.values()) < LEAST:
        told = ("keep full depth", "contradicted", None, f"leaving early is not faster ({clock})")
    elif known.outcome == "inconclusive":
        told = (UNDECIDED, "inconclusive", None, known.words)
    else:
        told = ("use the early exit", "holds", known.explanation, f"{clock}, {found.guarantee.text()}; {known.words}")
    what, outcome, explanation, why = told
    return Claim(
        f"{found.task.name}: recommendation, that an early exit is worth having",
        what,
        id="H16",
        outcome=outcome,
        explanation=explanation,
        words=f"{why}; a decision, of which the claims below are the evidence with their intervals",
    )


def known_case(
    name: str,
    full: np.ndarray,
    cue: np.ndarray,
    y: np.ndarray,
    groups: np.ndarray,
    said: str,
    *,
    margin: float,
    seed: int,
    family: str = "",
) -> Case:
    """Does the model at full depth know more than a surface cue? ``full`` and ``cue`` (N,) bool, what each gets right."""
    return beyond_a_cue(
        f"{name}: the model at full depth knows more of the task than a surface cue",
        *(full, cue, y, groups, said),
        margin=margin,
        seed=seed,
        family=family,
        words=f"balanced accuracy on {len(y)} rows of {len(np.unique(groups))} groups",
    )


def _known(found: TaskExit, settings: ExitSettings, run: Run) -> Case:
    rows = (found.full_right, found.surface_right, found.y, found.groups, found.surface)
    return known_case(found.task.name, *rows, margin=settings.margin, seed=run.seed, family=_family(found))


def _family(found: TaskExit) -> str:
    return f"early exit: {found.task.name}"


def _by_confidence(found: TaskExit, settings: ExitSettings, run: Run) -> Case | Claim:
    """Is it worth asking which rows leave? The control deals the same depths out among the rows at random."""
    name, right = found.task.name, found.right.astype(float)
    statement = f"{name}: with an early exit by confidence more is right than with as many exits at random"
    interval = group_bootstrap(right, found.groups, seed=run.seed)
    if len(np.unique(found.at)) == 1:
        words = f"all {len(found.y)} test rows leave after layer {int(found.at[0])}, so there is nothing to deal out"
        return Claim(statement, float(right.mean()), interval=interval, outcome="not tested", words=words)
    beside = paired_effect(
        right, found.dealt.mean(0), found.groups, f"exits at random ({len(found.dealt)} draws)", settings.margin, run.seed
    )
    p = beyond_draws(float(right.mean()), found.dealt.mean(1), "", settings.margin).p
    return Case(
        statement,
        float(right.mean()),
        dataclasses.replace(beside, p=p),
        interval=interval,
        control=Control("exits at random, as deep on average", float(found.dealt.mean())),
        family=_family(found),
        words=f"accuracy; {found.full_right.mean():.1%} at full depth",
    )


def _risk(found: TaskExit, settings: ExitSettings, run: Run) -> Case:
    lost, g = found.lost, found.guarantee
    low, high = group_bootstrap(lost, found.groups, seed=run.seed)
    return Case(
        f"{found.task.name}: on test rows leaving early loses no more than was promised",
        float(lost.mean()),
        Effect(0.0 - float(lost.mean()), 0.0 - high, 0.0 - low, "full depth", g.risk, no_worse=True),
        interval=(low, high),
        words=f"promised {g.text()}; {g.calibration_risk:.2%} there; "
        + (f"confidence asked for {g.threshold:.4f}" if np.isfinite(g.threshold) else "no row may leave early"),
    )


def _saved(found: TaskExit, run: Run) -> Claim:
    name, n_layers = found.task.name, found.said.shape[1]
    share = (found.at + 1) / n_layers
    low, high = group_bootstrap(share, found.groups, seed=run.seed)
    return Claim(
        f"{name}: share of layers saved",
        1 - float(share.mean()),
        id="H12",
        published=Published(1 - SHARE, SOURCE) if name in ACCURACY else None,
        interval=(1 - high, 1 - low),
        words=f"{share.mean() * n_layers:.2f} of {n_layers} layers on average, heads of kind {found.classifier.heads.kind!r}; "
        "what the promise allows, not a comparison",
    )


def _clock(found: TaskExit, batch: int) -> Claim:
    row = _speed(found, "early exit", batch)
    known = row["batches"] > 1
    between = f" ({row['of_layers_low']:.0%} to {row['of_layers_high']:.0%})" if known else ""
    return Claim(
        f"{found.task.name}: speed-up at batch {batch}",
        row["speedup"],
        interval=(row["low"], row["high"]) if known else None,
        words=f"the layers left out would give {row['layer_speedup']:.2f}×, weighed by their time in a full pass: "
        f"{row['of_layers']:.0%} of that is reached{between}; {row['inside']:.1%} of its own time is in the layers that it "
        "runs, on batches as they are by then, and before them: the rest asks and cuts; "
        f"{row['outside']:.1%} of a full pass comes before its first layer; wall clock, {row['texts']} test texts in "
        f"{row['batches']} batches, each run {row['turns']} times in turn, "
        + ("interval over batches and so of texts and clock" if known else "no interval: it takes two batches"),
    )


def _published_example(found: TaskExit, settings: ExitSettings, run: Run) -> Case:
    """Choi (2025): layers 0 to 8 of 32 do what all 32 do. Here the circuit is chosen anew from those layers, and timed."""
    n_layers, layer, name = found.circuit.shape[1], found.published_layer, found.task.name
    early, full = (found.circuit[:, at].argmax(-1) == found.y for at in (layer, n_layers - 1))
    margin, groups, seed = settings.margin, found.groups, run.seed
    beside = f"{settings.k} neurons of all layers"
    kept = beyond(early, full, found.y, groups, beside, margin, seed, no_worse=True)
    worth = dataclasses.replace(above_chance(full, found.y, groups, margin, seed), against=f"chance, by {beside}")
    cue = beyond(
        early, found.surface_right, found.y, groups, f"the surface cue {found.surface!r}", margin, seed, kind="trivial cue"
    )
    share = balanced(early.astype(float), found.y)
    times = " and ".join(
        f"{_speed(found, 'circuit at 28 % of the depth', batch)['speedup']:.2f}× at batch {batch}" for batch in (1, 64)
    )
    lost = "" if name not in ACCURACY else f"; the source loses {ACCURACY[name][1] - ACCURACY[name][0]:.1%}"
    return Case(
        f"{name}: {settings.k} neurons from the first 28 % of the layers do as well as {beside}",
        float(share.mean()),
        # p is of a loss within the margin, which is what is claimed; that of a difference is another question
        dataclasses.replace(kept, p=None),
        id="H12",
        published=Published(ACCURACY[name][0], SOURCE) if name in ACCURACY else None,
        interval=group_bootstrap(share, groups, seed=seed),
        control=Control(f"surface cue: {found.surface}", float(balanced(found.surface_right.astype(float), found.y).mean())),
        rivals=(worth, cue),
        family=_family(found),
        words=f"balanced accuracy, layers 0 to {layer} of {n_layers}; on the clock {times}{lost}",
    )


def _speed(found: TaskExit, contender: str, batch: int) -> Any:
    table = found.tables["speed"]
    return table[(table["contender"] == contender) & (table["batch"] == batch)].iloc[0]
