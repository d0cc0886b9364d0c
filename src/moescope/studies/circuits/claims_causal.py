"""Claims about what happens when a circuit is switched off, or the class direction erased."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from moescope.intervene.running_text import LOSS
from moescope.stats import Difference
from moescope.studies.circuits.causal import PROBE
from moescope.studies.circuits.settings import CircuitSettings
from moescope.studies.circuits.spread import apart, effect_of
from moescope.study.paired import interval_p
from moescope.study.verdicts import Case, Effect
from moescope.types import Claim, Control

_TARGETS = {
    "answer_accuracy": ("the accuracy of the model's own answer", "share"),
    "answer_logodds": ("the model's odds of the right answer", "log-odds, nats"),
    LOSS: ("the loss on running text", "nats per token"),
}
MATCHED = 2.0
"""Random sets whose change is within this factor of the circuit's, either way, are a match."""


def ablation_claims(tables: dict[str, pd.DataFrame], settings: CircuitSettings, where: str) -> list[Claim | Case]:
    """Of each task: does switching the circuit off harm, is the harm the task's own, and would one direction do as much?

    Args:
        where: it is switched off, in words.
    """
    ablation, interference = tables["ablation"], tables["interference"]
    claims: list[Claim | Case] = []
    for task, rows in ablation.groupby("task", sort=False):
        main = rows[(rows["k"] == settings.k) & (rows["mode"] == settings.ablate)].set_index("target")
        direction = rows[rows["mode"] == "direction"].set_index("target")
        beside = interference[interference["task"] == task]
        claims += [
            _harm(str(task), main.loc[PROBE], settings, where),
            _specific(str(task), main.loc[PROBE], beside, settings),
            _direction(str(task), main.loc[PROBE], direction.loc[PROBE], settings),
        ]
        claims += [_described(str(task), str(target), main.loc[target]) for target in main.index if target != PROBE]
    return claims


def _harm(task: str, row: pd.Series, settings: CircuitSettings, where: str) -> Claim | Case:
    k, ratio = int(row["k"]), float(row["norm_ratio"])
    sets = f"{int(row['n_random'])} random sets"
    head: dict[str, Any] = {
        "statement": f"{task}: switching its {k} neurons off harms a probe downstream more than switching off others",
        "measured": float(row["effect"]),
        "id": "H20",
        "interval": _interval(row),
        "control": Control(f"{sets} matched on layer and size of change", float(row["random_mean"])),
        "family": f"{task}: interventions",
    }
    if not 1 / MATCHED <= ratio <= MATCHED:  # massive activations have no match in their layer
        why = f"no random sets match: they are changed {ratio:.2g} times as much as the circuit is"
        return Claim(**head, outcome="not tested", words=why)
    gap = _difference(row, "gap")
    # beyond the sets by rank, and beyond what other texts might have given
    gap = gap._replace(p=max(gap.p, interval_p(gap.value, gap.low, gap.high)))
    effect = effect_of(gap, f"{sets} of the same layers and the same size of change", settings.margin)
    words = (
        f"the probe's balanced accuracy changes by {float(row['effect']):+.1%} from {float(row['baseline']):.1%} by "
        f"{row['mode']} ablation at {where}, by {float(row['random_low']):+.1%} to {float(row['random_high']):+.1%} "
        f"with 95 % of the random sets; a lower bound, since later layers repair"
    )
    return Case(**head, effect=effect, words=words)


def _specific(task: str, row: pd.Series, beside: pd.DataFrame, settings: CircuitSettings) -> Case:
    """Harm on task minus harm off task, over the texts of both."""
    off, known = _pooled(beside, ("effect", "low", "high")), _pooled(beside, ("baseline", "baseline_low", "baseline_high"))
    texts = " and ".join(map(str, beside["texts"]))
    chance = float(np.average(beside["chance"], weights=beside["n"]))
    harm = (-float(row["effect"]), -float(row["high"]), -float(row["low"]))
    contrast = apart(harm, (-off[0], -off[2], -off[1]))
    value, low, high = (figure - chance for figure in known)
    readable = Difference(value, low, high, interval_p(value, low, high))
    return Case(
        f"{task}: switching its {int(row['k'])} neurons off harms this task more than {texts}",
        contrast.value,
        effect_of(contrast, f"the harm to {texts}", settings.margin, kind="none found"),
        id="H17",
        interval=(contrast.low, contrast.high),
        control=Control(f"change on {texts}", off[0]),
        rivals=(effect_of(readable, f"a guess on {texts}, where there is then nothing to harm", settings.margin),),
        family=f"{task}: interventions",
        words=f"{float(row['effect']):+.1%} here, {off[0]:+.1%} there, on {int(beside['n'].sum())} texts read by a probe of "
        f"their own at {known[0]:.1%}",
    )


def _direction(task: str, row: pd.Series, direction: pd.Series, settings: CircuitSettings) -> Case:
    gap = _difference(direction, "gap")
    return Case(
        f"{task}: switching its {int(row['k'])} neurons off harms as much as taking out one direction",
        float(row["effect"]),
        effect_of(gap, "the difference of class means", settings.margin, kind="none found", no_worse=True),
        interval=_interval(row),
        control=Control("one direction, after the best neuron's layer", float(direction["effect"])),
        family=f"{task}: interventions",
        words=f"the neurons {float(row['effect']):+.1%}, the direction set to its mean {float(direction['effect']):+.1%}",
    )


def _described(task: str, target: str, row: pd.Series) -> Claim:
    what, unit = _TARGETS[target]
    interval = _interval(row)
    return Claim(
        f"{task}: change of {what} when its {int(row['k'])} neurons are switched off",
        float(row["effect"]),
        id="H20",
        interval=None if math.isnan(interval[0]) else interval,
        control=Control(f"mean of {int(row['n_random'])} random sets", float(row["random_mean"])),
        words=f"{unit}, from {float(row['baseline']):.3g}; 95 % of the random sets give {float(row['random_low']):+.3g} to "
        f"{float(row['random_high']):+.3g}; described beside the probe, which is judged"
        + ("; no interval: a single window of text" if math.isnan(interval[0]) else ""),
    )


def interference_claims(interference: pd.DataFrame, ablation: pd.DataFrame, settings: CircuitSettings) -> list[Case]:
    """For every ordered pair of tasks: the other does without this one's circuit, an equivalence by the margin."""
    main = ablation[(ablation["k"] == settings.k) & (ablation["mode"] == settings.ablate) & (ablation["target"] == PROBE)]
    own = main.set_index("task")
    cases = []
    for row in interference[interference["texts"].isin(own.index)].to_dict("records"):
        source, texts, here = row["task"], row["texts"], own.loc[row["task"]]
        found = Difference(row["effect"], row["low"], row["high"], math.nan)
        rival = effect_of(_difference(here, "gap"), f"what random neurons do to {source} itself", settings.margin)
        known = [float(row[c]) - float(row["chance"]) for c in ("baseline", "baseline_low", "baseline_high")]
        readable = Difference(known[0], known[1], known[2], interval_p(*known))
        cases.append(
            Case(
                f"{source} and {texts} do not interfere: {texts} does without {source}'s {settings.k} neurons",
                float(row["effect"]),
                effect_of(found, "the untouched model", settings.margin, no_worse=True),
                id="H9",
                interval=(float(row["low"]), float(row["high"])),
                control=Control(f"the same neurons' effect on {source}", float(here["effect"])),
                rivals=(rival, effect_of(readable, f"a guess on {texts}", settings.margin)),
                family=pair_family(source, texts),
                words=f"change of {texts}'s balanced probe accuracy from {row['baseline']:.1%}, on {int(row['n'])} texts",
            )
        )
    return cases


def erasure_claims(erasure: pd.DataFrame, settings: CircuitSettings) -> list[Case]:
    """One claim per task: erasing the class (LEACE) at the layer where it costs a probe downstream most."""
    cases = []
    for task, rows in erasure[erasure["target"] == PROBE].groupby("task", sort=False):
        row = rows.loc[rows["effect"].idxmin()]
        value = float(row["worst_mean"]) - float(row["effect"])
        low = value - math.hypot(float(row["high"] - row["effect"]), float(row["worst_mean"] - row["worst_low"]))
        high = value + math.hypot(float(row["effect"] - row["low"]), float(row["worst_high"] - row["worst_mean"]))
        against = f"{int(row['n_random'])} labellings permuted within groups, each at its own worst of {len(rows)} layers"
        cases.append(
            Case(
                f"{task}: erasing the class (LEACE) after one layer harms a probe downstream",
                float(row["effect"]),
                Effect(value, low, high, against, settings.margin, max(float(row["p_worst"]), interval_p(value, low, high))),
                interval=_interval(row),
                control=Control("permuted labels, worst layer", float(row["worst_mean"])),
                words=f"after layer {int(row['layer'])}, from a balanced accuracy of {float(row['baseline']):.1%}; where this "
                "harms and switching a few neurons off does not, the class is spread over many",
            )
        )
    return cases


def pair_family(a: str, b: str) -> str:
    """The claims of two tasks that are judged together."""
    return " and ".join(sorted((a, b)))


def _difference(row: Any, name: str) -> Difference:
    return Difference(*(float(row[column]) for column in (name, f"{name}_low", f"{name}_high", "p")))


def _interval(row: pd.Series) -> tuple[float, float]:
    return float(row["low"]), float(row["high"])


def _pooled(rows: pd.DataFrame, columns: tuple[str, str, str]) -> tuple[float, float, float]:
    """Mean over independent sets of texts, by their number, with its interval."""
    share = (rows["n"] / rows["n"].sum()).to_numpy()
    value, low, high = (rows[c].to_numpy(dtype=float) for c in columns)
    mean = float(share @ value)
    return mean, mean - float(np.hypot.reduce(share * (value - low))), mean + float(np.hypot.reduce(share * (high - value)))
