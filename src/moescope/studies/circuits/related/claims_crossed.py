"""Claims about two properties of the same texts: each circuit beside the other property, and both edited one by one."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from moescope.stats import Difference
from moescope.studies.circuits.related.crossed import CONTRAST
from moescope.studies.circuits.settings import CircuitSettings
from moescope.studies.circuits.spread import effect_of
from moescope.study.paired import interval_p
from moescope.study.verdicts import Case, significant
from moescope.types import Claim, Control


def crossed_claims(strata: pd.DataFrame, edits: pd.DataFrame, settings: CircuitSettings) -> list[Claim | Case]:
    """Of either property that its circuit carries over to the other class of the other one; and the double dissociation."""
    whole = strata[strata["tested_on"] == "both"]
    claims: list[Claim | Case] = []
    for name in dict.fromkeys(strata["property"]):
        claims.append(_keeps(whole[whole["property"] == name].set_index("fitted_on"), str(name), strata, settings))
    return [*claims, _dissociation(edits, settings)]


def _keeps(rows: pd.DataFrame, name: str, strata: pd.DataFrame, settings: CircuitSettings) -> Claim | Case:
    opposite, same = rows.loc["opposite"], rows.loc["same"]
    statement = f"{name}: the circuit of texts of one {opposite['other']} tells {name} in texts of the other as well"
    value, low, high = (float(same[c]) - 0.5 for c in ("value", "low", "high"))
    if value <= 0 or not significant(interval_p(value, low, high), settings.alpha):
        why = (
            f"there is nothing to carry over: on texts of the same {opposite['other']} a circuit tells {name} "
            f"{float(same['value']):.1%} right ({float(same['low']):.1%} to {float(same['high']):.1%}), a guess half"
        )
        return Claim(statement, "nothing to carry over", id="H22", outcome="not tested", words=why)
    own = strata[(strata["property"] == name) & (strata["fitted_on"] == "opposite") & (strata["tested_on"] != "both")]
    parts = ", ".join(f"{row['tested_on']} {row['value']:.1%}" for row in own.to_dict("records"))
    return Case(
        statement,
        float(opposite["value"]),
        effect_of(
            _difference(opposite, "beside_same", p=False),
            f"a circuit of the same {opposite['other']}",
            settings.margin,
            no_worse=True,
        ),
        id="H22",
        interval=(float(opposite["low"]), float(opposite["high"])),
        control=Control("bag of words, likewise", float(opposite["words"])),
        rivals=(effect_of(_difference(opposite, "gap"), "random neurons of its layers", settings.margin),),
        family=f"{name} crossed",
        words=f"fitted on texts of the same {opposite['other']} {float(same['value']):.1%}, of the other "
        f"{float(opposite['value']):.1%} (on {parts}); random neurons {float(opposite['random']):.1%}, a bag of words "
        f"{float(opposite['words']):.1%}",
    )


def _dissociation(edits: pd.DataFrame, settings: CircuitSettings) -> Claim | Case:
    contrast = edits[edits["edited"] == CONTRAST].iloc[0]
    rows = edits[edits["edited"] != CONTRAST]
    a, b = dict.fromkeys(rows["edited"])
    statement = f"{a} and {b}: editing either circuit costs its own property more than the other (double dissociation)"
    cells = rows.set_index(["edited", "read"])
    blind = [name for name in (a, b) if not _known(cells.loc[(a, name)], settings.alpha)]
    if blind:
        why = (
            f"a probe of the last layer does not know {' nor '.join(blind)} on {int(contrast['n'])} texts: nothing can be lost"
        )
        return Claim(statement, "nothing to lose", id="H9", outcome="not tested", words=why)
    said = "; ".join(
        f"{edited} edited: {read} {float(cells.loc[(edited, read), 'cost']):+.1%} "
        f"({float(cells.loc[(edited, read), 'low']):.1%} to {float(cells.loc[(edited, read), 'high']):.1%}; random "
        f"{float(cells.loc[(edited, read), 'random']):+.1%})"
        for edited in (a, b)
        for read in (a, b)
    )
    value, low, high = (float(contrast[c]) for c in ("cost", "low", "high"))
    sets = f"{int(contrast['n_random'])} pairs of random sets, matched on layer and size of change"
    return Case(
        statement,
        value,
        effect_of(Difference(value, low, high, interval_p(value, low, high)), "equal cost to both", settings.margin),
        id="H9",
        interval=(low, high),
        control=Control("random neurons of the same layers", float(contrast["random"])),
        rivals=(effect_of(_difference(contrast, "gap"), sets, settings.margin),),
        words=f"shares of the probes' log-odds that setting {settings.k} neurons to their mean at the final token costs, on "
        f"{int(contrast['n'])} texts; {said}",
    )


def _known(row: Any, alpha: float) -> bool:
    value, low, high = (float(row[c]) for c in ("clean", "clean_low", "clean_high"))
    return value > 0 and not math.isnan(low) and significant(interval_p(value, low, high), alpha)


def _difference(row: Any, name: str, *, p: bool = True) -> Difference:
    value, low, high = (float(row[f"{name}{end}"]) for end in ("", "_low", "_high"))
    return Difference(value, low, high, float(row["p"]) if p else math.nan)
