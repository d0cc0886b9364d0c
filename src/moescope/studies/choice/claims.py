"""From what was measured to claims: what is chosen together, and whether the task's neurons are its circuit."""

from __future__ import annotations

import numpy as np
import pandas as pd

from moescope.routing.together import Together
from moescope.studies.choice.overlap import Overlap
from moescope.studies.choice.settings import TOGETHER, ChoiceSettings
from moescope.studies.choice.together import Evidence
from moescope.study.verdicts import Case, Effect, beyond_draws, untested
from moescope.types import Claim, Control

DEALT = "choices dealt out anew, every neuron's and every token's number kept"
_STATEMENTS = {
    "pairs": "Neurons that are chosen together on some texts are on others (correlation of their correlations, over pairs)",
    "groups": "Groups of neurons found on some texts are chosen together on others (mean correlation within, less between)",
}


def together_claims(found: Evidence | None, settings: ChoiceSettings) -> list[Case | Claim]:
    """Whether the same neurons are chosen together on other texts: as pairs, and as groups."""
    if found is None:
        why = "in no layer do enough neurons' choices vary"
        return [untested(Claim(statement, "not measured"), why) for statement in _STATEMENTS.values()]
    return [_together(name, found, settings) for name in TOGETHER]


def _together(name: str, found: Evidence, settings: ChoiceSettings) -> Case:
    def effect(measured: Together, draws: list[Together], against: str, **options: str) -> Effect:
        null = [getattr(draw, name) for draw in draws]
        return beyond_draws(getattr(measured, name), null, against, settings.margin_together, share=False, **options)

    rivals, not_run = (), ()
    words = f"mean of {found.layers} layers"
    if found.recurring is None:
        not_run = ("token identity (too few tokens recur)",)
    else:
        rivals = (effect(*found.recurring, "token identity", kind="trivial cue"),)
        words += f"; beside token identity on the {found.share:.0%} of the tokens that recur"
    draws = float(np.mean([getattr(draw, name) for draw in found.draws]))
    return Case(
        _STATEMENTS[name],
        getattr(found.measured, name),
        effect(found.measured, found.draws, DEALT),
        control=Control(DEALT, draws),
        rivals=rivals,
        not_run=not_run,
        family="chosen together",
        words=f"{words}; the interval is of the difference, over draws: none over texts, whose halves are apart",
    )


def circuit_claims(found: list[Overlap], table: pd.DataFrame, settings: ChoiceSettings) -> list[Case]:
    """Whether the neurons in whose choice a task's classes differ are the task's circuit."""
    rows = table.set_index("task")
    return [_circuit(one, rows.loc[one.task], settings) for one in found]


def _circuit(one: Overlap, row: pd.Series, settings: ChoiceSettings) -> Case:
    def effect(draws: np.ndarray, against: str, **options: str) -> Effect:
        return beyond_draws(one.measured, draws, against, settings.margin, **options)

    rivals = (
        effect(one.often, "neurons of the same layers that are chosen as often", kind="trivial cue"),
        effect(one.permuted, "the choice under permuted labels"),
    )
    reach = f"two halves' circuits share {one.circuit:.0%}, and their choices {one.choice:.0%}"
    times = "" if np.isnan(row["times"]) else f"{row['times']:.3g} times as many as random neurons of the same layers; "
    return Case(
        f"{one.task}: neurons of its circuit are chosen more for one class than for another (share of {one.k})",
        one.measured,
        effect(one.layers, "random neurons of the same layers"),
        control=Control("random neurons of the same layers", float(one.layers.mean())),
        rivals=rivals,
        family=one.task,
        words=f"{times}circuit and choice ranked on different halves of the texts, both ways round; {reach}; the interval is "
        "of the difference, over draws",
    )
