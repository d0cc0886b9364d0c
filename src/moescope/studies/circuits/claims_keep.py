"""Claims about a circuit that is kept alone: does it carry the effect, how many neurons do, and which others would."""

from __future__ import annotations

from typing import Any

import pandas as pd

from moescope.stats import Difference
from moescope.studies.circuits import published
from moescope.studies.circuits.causal import PROBE
from moescope.studies.circuits.keep import KEPT_SHARE
from moescope.studies.circuits.keep_tables import RANDOM
from moescope.studies.circuits.settings import CircuitSettings
from moescope.studies.circuits.spread import effect_of
from moescope.study.paired import interval_p
from moescope.study.verdicts import Case, significant
from moescope.types import Claim, Control, Published

ANSWER = "answer_logodds"
_TARGETS = {
    ANSWER: "the odds of the model's right answer (log, nats)",
    PROBE: "a probe's balanced accuracy at the last layer",
}


def kept_claims(tables: dict[str, pd.DataFrame], settings: CircuitSettings, where: str) -> list[Claim | Case]:
    """Of each task, on the model's own answer where it gives one, else on a probe: three claims that are judged together, and
    of every other target and way of replacing the share that keeps the effect, described. ``where`` all else is replaced is
    said in words.
    """
    claims: list[Claim | Case] = []
    for task, rows in tables["kept_area"].groupby("task", sort=False):
        judged = ANSWER if (rows["target"] == ANSWER).any() else PROBE
        curves = tables["kept"][tables["kept"]["task"] == task]
        for (mode, target), own in rows.groupby(["mode", "target"], sort=False):
            here = own.set_index("order")
            if mode == settings.keep_only and target == judged:
                of = curves[(curves["mode"] == mode) & (curves["target"] == target)].set_index(["order", "k"]).sort_index()
                claims += _judged(str(task), str(target), here, of, settings, where)
            elif target != "answer_accuracy":
                claims.append(_described(str(task), str(mode), str(target), here, settings))
    return claims


def _judged(
    task: str, target: str, areas: pd.DataFrame, curves: pd.DataFrame, settings: CircuitSettings, where: str
) -> list[Claim | Case]:
    own, random, k = areas.loc["circuit"], areas.loc[RANDOM], settings.k
    unit = "coordinates" if own["units"] < own["neurons"] else "neurons"
    effect = f"{_TARGETS[target]}, {float(own['everything']):.3g} with all and {float(own['none']):.3g} with none of them"
    sets = f"{int(own['n_random'])} random orders of the same layers"
    handful, family = curves.loc[("circuit", k)], f"{task}: kept alone"
    two = curves.loc[("circuit", 2)]
    heads: list[dict[str, Any]] = [
        {
            "statement": f"{task}: {k} {unit} alone keep {KEPT_SHARE:.0%} of the effect",
            "measured": float(handful["faithfulness"]),
            "id": "H13",
            "interval": (float(handful["low"]), float(handful["high"])),
            "control": Control(f"as many random {unit}", float(curves.loc[(RANDOM, k), "faithfulness"])),
        },
        {
            "statement": f"{task}: fewer {unit} of the circuit than random ones keep {KEPT_SHARE:.0%} of the effect",
            "measured": float(own["keeps"]),
            "id": "H13",
            "published": Published(published.SHARE, f"{published.SOURCE}, section 1.2"),
            "interval": (float(own["keeps_low"]), float(own["keeps_high"])),
            "control": Control(f"random {unit}, median share", float(random["keeps"])),
        },
        {
            "statement": f"{task}: {unit} that tell the classes apart keep as much as those that gradients choose",
            "measured": float(own["cpr"]),
            "id": "H17",
            "interval": (float(own["cpr_low"]), float(own["cpr_high"])),
            "control": Control("gradient × activation, CPR", float(areas.loc["attribution", "cpr"])),
        },
    ]
    why = _nothing_to_keep(own, target, settings)
    if why:
        return [_untested(head, why) for head in heads]
    first, share, attributed = heads
    below, low, high = (float(handful[c]) - 1 for c in ("faithfulness", "low", "high"))
    alone = Difference(below, low, high, float("nan"))
    beyond = _difference(curves.loc[(RANDOM, k)])
    variance, gradients = _difference(areas.loc["top_variance"]), _difference(areas.loc["attribution"])
    return [
        Case(
            **first,
            effect=effect_of(alone, f"what all {int(own['units'])} keep", 1 - KEPT_SHARE, no_worse=True),
            rivals=(effect_of(beyond, f"as many random {unit}", settings.margin),),
            family=family,
            words=f"{effect}; two keep {float(two['faithfulness']):.1%} ({float(two['low']):.1%} to {float(two['high']):.1%}); "
            f"everything else set by {settings.keep_only} at {where}, in every layer of the site",
        ),
        Case(
            **share,
            effect=effect_of(_difference(random), sets, settings.margin),
            rivals=(effect_of(variance, f"the {unit} of the largest variance", settings.margin, kind="trivial cue"),),
            family=family,
            words=f"{float(own['keeps']):.2%} of the {unit} ({float(own['keeps_low']):.2%} to {float(own['keeps_high']):.2%}), "
            f"random ones {float(random['keeps']):.2%}, those of the largest variance "
            f"{float(areas.loc['top_variance', 'keeps']):.2%}; the effect is the area under the curve of what is kept (CPR "
            f"{float(own['cpr']):.3f}, random {float(random['cpr']):.3f}; CMD {float(own['cmd']):.3f}, random "
            f"{float(random['cmd']):.3f})",
        ),
        Case(
            **attributed,
            effect=effect_of(gradients, "gradient × activation", settings.margin, kind="none found", no_worse=True),
            family=family,
            words=f"{KEPT_SHARE:.0%} of the effect take {float(own['keeps']):.2%} of the {unit}, by gradients "
            f"{float(areas.loc['attribution', 'keeps']):.2%}",
        ),
    ]


def _nothing_to_keep(own: pd.Series, target: str, settings: CircuitSettings) -> str:
    """Why nothing can be kept: what all neurons give is not shown to be more than what none give."""
    value, low, high = (float(own[c]) for c in ("known", "known_low", "known_high"))
    if value > 0 and significant(interval_p(value, low, high), settings.alpha):
        return ""
    return (
        f"there is nothing to keep: {_TARGETS[target]} is {float(own['everything']):.3g} with all neurons and "
        f"{float(own['none']):.3g} with none, a difference of {value:.3g} ({low:.3g} to {high:.3g}) on {int(own['n'])} texts"
    )


def _untested(head: dict[str, Any], why: str) -> Claim:
    shown = {name: head[name] for name in ("statement", "id", "published") if name in head}
    return Claim(**shown, measured="no effect to keep", outcome="not tested", words=why)


def _described(task: str, mode: str, target: str, areas: pd.DataFrame, settings: CircuitSettings) -> Claim:
    own, random = areas.loc["circuit"], areas.loc[RANDOM]
    head: dict[str, Any] = {
        "statement": f"{task}: share that keeps {KEPT_SHARE:.0%} of {_TARGETS[target]}, the rest set by {mode}",
        "measured": float(own["keeps"]),
        "id": "H13",
        "interval": (float(own["keeps_low"]), float(own["keeps_high"])),
        "control": Control("random ones, median share", float(random["keeps"])),
    }
    why = _nothing_to_keep(own, target, settings)
    if why:
        return _untested(head, why)
    return Claim(
        **head,
        words=f"from {float(own['none']):.3g} with none to {float(own['everything']):.3g} with all, a difference of "
        f"{float(own['known']):.3g} ({float(own['known_low']):.3g} to {float(own['known_high']):.3g}); CPR "
        f"{float(own['cpr']):.3f} ({float(own['cpr_low']):.3f} to {float(own['cpr_high']):.3f}), of random orders "
        f"{float(random['cpr']):.3f}; described beside what is judged",
    )


def _difference(row: Any) -> Difference:
    return Difference(*(float(row[column]) for column in ("gap", "gap_low", "gap_high", "p")))
