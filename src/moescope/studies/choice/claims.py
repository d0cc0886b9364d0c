"""From what was measured to claims: what is chosen together, and whether the task's neurons are its circuit."""

from __future__ import annotations

import numpy as np
import pandas as pd

from moescope.studies.choice.halvings import HALVINGS
from moescope.studies.choice.overlap import Overlap
from moescope.studies.choice.settings import TOGETHER, ChoiceSettings
from moescope.studies.choice.together import Evidence
from moescope.study.verdicts import Case, Effect, untested
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
    margin, beside = settings.margin_together, found.rates[name]
    rivals: tuple[Effect, ...] = ()
    not_run: tuple[str, ...] = ()
    words = f"mean of {found.layers} layers; interval from {HALVINGS} halvings of the texts"
    if found.tokens is None:
        not_run = ("token identity (too few tokens recur)",)
    else:
        rivals = (found.tokens[name].effect("token identity", margin, kind="trivial cue", share=False),)
        words += f"; beside token identity on the {found.share:.0%} of the tokens that recur"
    effect = beside.effect(DEALT, margin, share=False)
    return Case(
        _STATEMENTS[name],
        beside.value,
        effect,
        interval=(beside.null + effect.low, beside.null + effect.high),
        control=Control(DEALT, beside.null),
        rivals=rivals,
        not_run=not_run,
        family="chosen together",
        words=words,
    )


def circuit_claims(found: list[Overlap], table: pd.DataFrame, settings: ChoiceSettings) -> list[Case]:
    """Whether the neurons in whose choice a task's classes differ are the task's circuit."""
    rows = table.set_index("task")
    return [_circuit(one, rows.loc[one.task], settings) for one in found]


def _circuit(one: Overlap, row: pd.Series, settings: ChoiceSettings) -> Case:
    margin, same = settings.margin * one.reach, "random neurons of the same layers"
    effect = one.layers.effect(same, margin)
    rivals = (
        one.often.effect("neurons of the same layers that are chosen as often", margin, kind="trivial cue"),
        one.permuted.effect("the choice under permuted labels", margin),
    )
    times = "" if np.isnan(row["times"]) else f"{row['times']:.3g} times as many as {same}; "
    return Case(
        f"{one.task}: neurons of its circuit are chosen more for one class than for another (share of {one.k})",
        one.layers.value,
        effect,
        interval=(one.layers.null + effect.low, one.layers.null + effect.high),
        control=Control(same, one.layers.null),
        rivals=rivals,
        family=one.task,
        words=f"{times}ranked on different halves of the texts, both ways round; two halves' circuits share "
        f"{row['circuit']:.0%}, their choices {row['choice']:.0%}, so that {one.reach:.0%} could be shared, of which "
        f"{settings.margin:.0%} counts; interval from {HALVINGS} halvings",
    )
