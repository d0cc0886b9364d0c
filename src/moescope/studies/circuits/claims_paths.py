"""Claims about what a change of neurons does to later ones: no connection between circuits, refinement along a column."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from moescope.studies.circuits.claims_causal import pair_family
from moescope.studies.circuits.paths import COLUMN, OWN, PATH_MARGIN, PATHWAY
from moescope.studies.circuits.settings import CircuitSettings
from moescope.study.paired import interval_p
from moescope.study.verdicts import Case, Effect
from moescope.types import Claim, Control

_UNIT = "standard deviations"


def path_claims(paths: pd.DataFrame, tasks: Sequence[str], settings: CircuitSettings) -> list[Claim | Case]:
    """For every ordered pair of tasks, that one's circuit does not act on the other's; for every task, its columns."""
    by_kind: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in paths.to_dict("records"):
        by_kind[str(row["source"]), str(row["target"]), str(row["kind"])] = {str(name): v for name, v in row.items()}
    claims: list[Claim | Case] = []
    for task in tasks:
        own = by_kind.get((task, task, OWN))
        claims += [_apart(task, other, by_kind.get((task, other, PATHWAY)), own, settings) for other in tasks if other != task]
        claims.append(_column(task, by_kind.get((task, task, COLUMN)), settings))
    return claims


def _apart(
    task: str, other: str, row: dict[str, Any] | None, own: dict[str, Any] | None, settings: CircuitSettings
) -> Claim | Case:
    statement = f"{task}'s {settings.k} neurons act no more on {other}'s than random neurons of their layers on each other"
    if row is None:
        why = f"no neuron of {other}'s circuit lies above the lowest of {task}'s"
        return Claim(statement, "no path", id="H9", outcome="not tested", words=why)
    rivals: tuple[Effect, ...] = ()
    if own is not None:  # a change that arrives nowhere shows no separation
        beyond = [float(own[c]) for c in ("whole", "low", "high")]
        rivals = (_effect(beyond[0], beyond[1], beyond[2], f"no change of {task}'s own later neurons", interval_p(*beyond)),)
    return Case(
        statement,
        float(row["whole"]),
        _effect(-row["gap"], -row["gap_high"], -row["gap_low"], f"{int(row['n_random'])} random pairs", None, no_worse=True),
        id="H9",
        interval=(float(row["low"]), float(row["high"])),
        control=Control("random pairs of the same layers", float(row["random"])),
        rivals=rivals,
        not_run=() if own is not None else (f"what the change does to {task}'s own later neurons (there are none)",),
        family=f"{pair_family(task, other)}: paths",
        words=f"{int(row['receivers'])} neurons of {other} move by {float(row['whole']):.3f} {_UNIT} on {int(row['n'])} texts "
        f"of {task} when {int(row['senders'])} of {task} are changed ({settings.paths}), random ones by "
        f"{float(row['random']):.3f} ({float(row['random_low']):.3f} to {float(row['random_high']):.3f}); every path counts",
    )


def _column(task: str, row: dict[str, Any] | None, settings: CircuitSettings) -> Claim | Case:
    statement = f"{task}: along its columns the blocks act on a coordinate by what it was, beyond the skip connection"
    if row is None:
        why = f"no coordinate of the residual stream is in several layers of the circuit of {settings.k}"
        return Claim(statement, "no column", id="H8", outcome="not tested", words=why)
    against = f"{int(row['n_random'])} random coordinates in the same layers"
    return Case(
        statement,
        float(row["blocks"]),
        _effect(row["gap"], row["gap_low"], row["gap_high"], against, float(row["p"])),
        id="H8",
        interval=(float(row["low"]), float(row["high"])),
        control=Control("random coordinates, through blocks", float(row["random"])),
        words=f"{int(row['senders'])} lowest neurons changed ({settings.paths}): the {int(row['receivers'])} above move by "
        f"{float(row['whole']):.3f} {_UNIT}, of which the skip connection alone would carry {float(row['skip']):.3f}; through "
        f"blocks {float(row['blocks']):.3f}",
    )


def _effect(value: float, low: float, high: float, against: str, p: float | None, *, no_worse: bool = False) -> Effect:
    known = None if p is None or math.isnan(p) else p
    return Effect(
        float(value), float(low), float(high), against, PATH_MARGIN, known, no_worse=no_worse, share=False, unit=_UNIT
    )
