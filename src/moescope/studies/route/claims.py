"""What a routing study says."""

from __future__ import annotations

import numpy as np
import pandas as pd

from moescope.runtime.route.router import Named, TaskRouter
from moescope.stats import group_bootstrap, wilson
from moescope.studies.route.settings import RouteSettings
from moescope.study.paired import beyond_a_cue
from moescope.study.rows import Rows
from moescope.study.run import Run
from moescope.study.verdicts import Case, Effect, beyond_draws
from moescope.types import Claim, Control

_FAMILY = "naming tasks"
_DRAWS = 9999  # of the rate of unknowns that was asked for


def route_claims(
    router: TaskRouter,
    rows: Rows,
    y: np.ndarray,
    named: list[Named],
    cue: tuple[str, np.ndarray],
    tables: dict[str, pd.DataFrame],
    settings: RouteSettings,
    run: Run,
) -> list[Claim | Case]:
    """How well tasks are named beside a surface cue, how many prompts are called unknown, and what listening costs.

    Args:
        y: (N,) the task of every row.
        cue: the surface cue that was chosen within the rows that fit, and what it says of those that judge.
    """
    judged, groups = y[rows.judge], rows.groups[rows.judge]
    nearest = np.array([router.tasks.index(n.nearest) for n in named])
    claims: list[Claim | Case] = [
        naming_case(
            f"the task is named from {router.source} features of layer {router.layer}, better than from a surface cue",
            nearest == judged,
            cue[1] == judged,
            judged,
            groups,
            cue[0],
            margin=settings.margin,
            seed=run.seed,
        ),
        rate_case(router, np.array([n.task is None for n in named]), judged, groups, settings.margin, run.seed),
    ]
    for row in tables["unknown"].itertuples():
        if row.prompts != "known tasks":
            claims.append(_strange(str(row.prompts), float(row.unknown), int(row.n), router.rate, settings.margin))
    speed = tables["speed"].set_index("what")
    cost, listening = speed["microseconds"], speed.loc["more with the router listening"]
    interval = None if pd.isna(listening["low"]) else (float(listening["low"]), float(listening["high"]))
    noise = "" if interval and interval[0] > 0 else "; not told apart from what the clock itself strays between two passes"
    words = (
        f"naming alone takes {cost['naming alone']:,.0f}, a bare forward pass {cost['forward pass of a prompt']:,.0f}; wall "
        f"clock on this machine, the median over prompts{noise}"
    )
    statement = "microseconds over the forward pass that runs anyway"
    return [*claims, Claim(statement, float(listening["microseconds"]), interval=interval, words=words)]


def naming_case(
    statement: str,
    right: np.ndarray,
    cue: np.ndarray,
    y: np.ndarray,
    groups: np.ndarray,
    said: str,
    *,
    margin: float,
    seed: int,
) -> Case:
    """Are tasks ``y`` (N,) named beyond chance, and beyond the surface cue ``said``? ``right`` and ``cue`` (N,) bool."""
    return beyond_a_cue(
        statement,
        *(right, cue, y, groups, said),
        margin=margin,
        seed=seed,
        id="H16",
        family=_FAMILY,
        words=f"balanced accuracy of the nearest of {len(np.unique(y))} tasks on {len(y)} test prompts",
    )


def rate_case(router: TaskRouter, strange: np.ndarray, y: np.ndarray, groups: np.ndarray, margin: float, seed: int) -> Case:
    """Are as many prompts of known tasks called unknown as was asked for? ``strange`` (N,) bool, of tasks ``y`` (N,)."""
    share, rate = float(strange.mean()), router.rate
    low, high = group_bootstrap(strange.astype(float), groups, seed=seed)
    gap = max(low - rate, rate - high, 0.0)
    p = beyond_draws(share, _asked(router, y, seed), "", margin).p
    off = Effect(
        -abs(share - rate), -max(abs(low - rate), abs(high - rate)), 0.0 - gap, "the asked rate", margin, no_worse=True
    )
    return Case(
        f"of prompts of known tasks {rate:.1%} are called unknown, as asked",
        share,
        off,
        interval=(low, high),
        control=Control("asked for", rate),
        words=f"two-sided against {len(router.strangeness)} calibration prompts as many new ones (beta-binomial), p = {p:.3g}",
    )


def _asked(router: TaskRouter, y: np.ndarray, seed: int) -> np.ndarray:
    """(P,) shares called unknown of prompts of the tasks ``y`` (N,), were they as strange as the calibration prompts.

    Of n calibration prompts the k = floor(rate (n + 1)) strangest are called unknown; the share of new prompts beyond the
    k-th is Beta(k, n + 1 - k) distributed (Vovk 2012, "Conditional validity of inductive conformal predictors").
    """
    rng = np.random.default_rng(seed)
    total = np.zeros(_DRAWS)
    for task in np.unique(y):
        n = int((router.owner == task).sum())
        k = int(np.floor(router.rate * (n + 1) + 1e-9))
        total += rng.binomial(int((y == task).sum()), rng.beta(k, n + 1 - k, _DRAWS))
    return total / len(y)


def _strange(prompts: str, share: float, n: int, rate: float, margin: float) -> Case:
    low, high = wilson(round(share * n), n)
    return Case(
        f"{prompts}: more are called unknown than of known tasks may be",
        share,
        Effect(share - rate, low - rate, high - rate, f"the {rate:.1%} asked for", margin),
        interval=(low, high),
        control=Control("asked for", rate),
        words=f"{n} prompts",
    )
