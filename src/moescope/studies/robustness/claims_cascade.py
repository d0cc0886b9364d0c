"""What is said of a monitor cascade."""

from __future__ import annotations

import numpy as np
import pandas as pd

from moescope.stats import group_bootstrap, wilson
from moescope.studies.robustness.cascade import CASCADE, SIGNATURE, WHOLE, WORDS, Cascade
from moescope.studies.robustness.settings import RobustnessSettings
from moescope.study.paired import interval_p, paired_effect
from moescope.study.verdicts import Case, Effect
from moescope.types import Claim, Control

_FAMILY = "a monitor in two stages"


def cascade_claims(found: Cascade, changes: pd.DataFrame, settings: RobustnessSettings, seed: int) -> list[Case | Claim]:
    """Does the promise hold on prompts that judge; is it worth more than words; does it cost more alarms; what does it save."""
    judged, name = found.judged, settings.monitor
    misses, alarms = judged.misses(CASCADE), {m: judged.alarms(m) for m in (CASCADE, SIGNATURE, WHOLE, WORDS)}
    groups, margin = judged.groups[~judged.y], settings.margin
    miss, (low, high) = float(misses.mean()), wilson(int(misses.sum()), len(misses))
    own = float(alarms[CASCADE].mean())
    ends = group_bootstrap(alarms[CASCADE], groups, seed=seed)
    blind = 1 - judged.risk
    beyond = blind - own, blind - ends[1], blind - ends[0]
    of_all = ", ".join(f"{m} {a.mean():.1%}" for m, a in alarms.items())
    claims: list[Case | Claim] = [
        Case(
            f"the cascade misses no more {name} prompts than it promises",
            miss,
            Effect(judged.risk - miss, judged.risk - high, judged.risk - low, "the promised share", margin, no_worse=True),
            interval=(low, high),
            control=Control("promised at most", judged.risk),
            words=f"{found.monitor.promise.text()}; of {len(misses)} prompts, each judged by the turn without its group",
        ),
        Case(
            f"the cascade lets other prompts pass, at {judged.risk:.0%} of {name} missed",
            own,
            Effect(*beyond, f"a blind monitor with the same promise ({blind:.0%} flagged)", margin, interval_p(*beyond)),
            interval=ends,
            control=Control("flagged by a bag of words with the same promise", float(alarms[WORDS].mean())),
            rivals=(
                paired_effect(
                    alarms[WORDS],
                    alarms[CASCADE],
                    groups,
                    "a bag of words with the same promise",
                    margin,
                    seed,
                    kind="trivial cue",
                ),
            ),
            family=_FAMILY,
            words=f"share of other prompts that are flagged: {of_all}",
        ),
        Case(
            "the cascade flags no more other prompts than the whole model alone with the same promise",
            own,
            paired_effect(-alarms[CASCADE], -alarms[WHOLE], groups, "the whole model alone", margin, seed, no_worse=True),
            interval=ends,
            control=Control(WHOLE, float(alarms[WHOLE].mean())),
            family=_FAMILY,
            words=f"the whole model is run for {judged.asked.mean():.1%} of all prompts",
        ),
        _time(found, settings, seed),
    ]
    return [*claims, *_worst(changes, judged.risk)]


def _time(found: Cascade, settings: RobustnessSettings, seed: int) -> Case:
    ratio = found.seconds[:, 0].sum() / found.seconds[:, 1].sum()
    rng = np.random.default_rng(seed)
    pick = rng.integers(len(found.seconds), size=(2000, len(found.seconds)))
    sums = found.seconds[pick].sum(1)
    low, high = np.quantile(sums[:, 0] / sums[:, 1], [0.025, 0.975])
    value = 1 - float(ratio), 1 - float(high), 1 - float(low)
    return Case(
        "the cascade takes less time than the whole model alone",
        value[0],
        Effect(*value, "the whole model alone, of its time", settings.margin, interval_p(*value)),
        interval=(value[1], value[2]),
        control=Control("prompts for which the whole model is run", float(found.judged.asked.mean())),
        words=f"seconds of {len(found.seconds)} prompts, one at a time, in turns: {1e3 * found.seconds[:, 0].mean():.1f} ms "
        f"beside {1e3 * found.seconds[:, 1].mean():.1f} ms; a prompt that the first stage is sure of leaves the model there; "
        "interval over prompts",
    )


def _worst(changes: pd.DataFrame, risk: float) -> list[Claim]:
    if not len(changes):
        return []
    row = changes.loc[changes["misses"].idxmax()]
    return [
        Claim(
            "most prompts that the cascade misses under any of the changes",
            float(row["misses"]),
            interval=(float(row["misses_low"]), float(row["misses_high"])),
            control=Control("promised for prompts as they are", risk),
            words=f"{row['change']}; the promise is for prompts like those that calibrated, and not for changed ones; chosen "
            "as the worst of all changes, so that it is high by that too",
        )
    ]
