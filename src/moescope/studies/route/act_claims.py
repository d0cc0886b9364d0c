"""What routing that acts is worth: the promise kept, what it saves, and whether its rivals do as much."""

from __future__ import annotations

import numpy as np
import pandas as pd

from moescope.stats import group_bootstrap, wilson
from moescope.studies.route.act import Acting
from moescope.studies.route.settings import BAG, FULL, PROBE, ROUTED, RouteSettings
from moescope.study.paired import paired_effect
from moescope.study.rows import Rows
from moescope.study.run import Run
from moescope.study.verdicts import Case, Effect, beyond_draws
from moescope.types import Claim, Control


def act_claims(
    acting: Acting, rows: Rows, tables: dict[str, pd.DataFrame], settings: RouteSettings, run: Run
) -> list[Case | Claim]:
    """The claims of the mixed stream, the promise first."""
    return [
        _promise(acting, rows, settings, run),
        _again(tables["resplits"], settings),
        _by_confidence(acting, rows, settings, run),
        *(_beyond(acting, rows, name, settings, run) for name in (BAG, PROBE)),
        _saved(acting, rows, run),
        _clock(tables["stream"]),
        *(_stranger(row) for row in tables.get("strangers", pd.DataFrame()).itertuples()),
    ]


def _promise(acting: Acting, rows: Rows, settings: RouteSettings, run: Run) -> Case:
    lost, guarantee = acting.ways[ROUTED].of("lost", rows.judge).astype(float), acting.dispatcher.guarantee
    assert guarantee is not None
    low, high = group_bootstrap(lost, acting.stream.groups[rows.judge], seed=run.seed)
    low, high = (low, high) if lost.any() else wilson(0, len(np.unique(acting.stream.groups[rows.judge])))
    routed = acting.ways[ROUTED].answers
    naming = float(routed.lost[rows.judge, 0].mean())
    return Case(
        "routed by the first layers, the mixed stream loses no more than was promised, mistakes of naming included",
        float(lost.mean()),
        Effect(0.0 - float(lost.mean()), 0.0 - high, 0.0 - low, FULL, settings.risk, no_worse=True),
        id="H16",
        interval=(low, high),
        words=f"promised {guarantee.text()}; {guarantee.calibration_risk:.2%} there; {naming:.2%} of the test rows are lost to "
        f"naming alone, before any leaves early; {_confidence(guarantee.threshold)}",
    )


def _confidence(threshold: float) -> str:
    return f"confidence asked for {threshold:.4f}" if np.isfinite(threshold) else "no row may leave early"


def _again(table: pd.DataFrame, settings: RouteSettings) -> Case:
    """Of each re-split the truth is known: the loss on all groups of which some were drawn to calibrate."""
    n, broken = len(table), int((table["promised"] & (table["pool"] > settings.risk + 1e-12)).sum())
    share = broken / n
    low, high = wilson(broken, n)
    return Case(
        f"over {n} re-splits the promise is broken no more often than it may be",
        share,
        Effect(settings.delta - share, settings.delta - high, settings.delta - low, "what may be", 0.0, no_worse=True),
        id="H16",
        interval=(low, high),
        control=Control("may be broken", settings.delta),
        words="groups that calibrate and those that judge dealt out anew, heads and router kept; "
        f"risk asked {settings.risk:.1%}, lost on the rest {table['judged'].mean():.2%} on average, above it in "
        f"{(table['judged'] > settings.risk).mean():.0%} of the splits; layers run {table['share'].mean():.1%}; "
        f"{int((~table['promised']).sum())} splits allow no "
        "promise",
    )


def _by_confidence(acting: Acting, rows: Rows, settings: RouteSettings, run: Run) -> Case | Claim:
    """The control deals the depths out anew among the rows that one task's heads answer."""
    way, stream, judge = acting.ways[ROUTED], acting.stream, rows.judge
    statement = "with an exit by confidence the routed stream is more often right than leaving as deep at random"
    right = way.of("right", judge).astype(float)
    layers = way.of("layers", judge)
    if len(np.unique(layers)) == 1:
        words = f"all {len(judge)} test rows run {int(layers[0])} layers, so there is nothing to deal out"
        return Claim(statement, float(right.mean()), outcome="not tested", words=words)
    router = acting.dispatcher.router
    # by which heads a row was answered: those that its depths are dealt out among
    by = np.array([router.tasks.index(name) for name in acting.runners["nearest"]])[judge]
    rng, draws = np.random.default_rng(run.seed), np.zeros((settings.n_random, len(judge)))
    own = by == stream.task[judge]
    for t, heads in enumerate(stream.said):
        mine = np.flatnonzero(by == t)
        said = heads[judge[mine]].argmax(-1)
        for draw in draws:
            at = rng.permutation(layers[mine]) - 1
            draw[mine] = own[mine] & (said[np.arange(len(mine)), at] == stream.label[judge[mine]])
    return Case(
        statement,
        float(right.mean()),
        beyond_draws(float(right.mean()), draws.mean(1), f"depths dealt out at random ({len(draws)} draws)", settings.margin),
        interval=group_bootstrap(right, stream.groups[judge], seed=run.seed),
        control=Control("depths dealt out at random within each task", float(draws.mean())),
        words="share of test rows answered with the right task and class",
    )


def _beyond(acting: Acting, rows: Rows, rival: str, settings: RouteSettings, run: Run) -> Case:
    """Does reading the first layers answer more rightly than a rival does, each at the depth that the same risk allows it?"""
    judge, groups = rows.judge, acting.stream.groups[rows.judge]
    here, there = acting.ways[ROUTED], acting.ways[rival]
    a, b = (way.of("right", judge).astype(float) for way in (here, there))
    n_layers = acting.dispatcher.model.n_layers
    shares = [float(way.of("layers", judge).mean() / n_layers) for way in (here, there)]
    allowed = "" if there.promised else f"; the rival may promise nothing at {settings.risk:.1%}, and runs at full depth"
    return Case(
        f"routed by the first layers, more of the mixed stream is right than {rival}",
        float(a.mean()),
        paired_effect(a, b, groups, rival, settings.margin, run.seed, kind="trivial cue" if rival == BAG else "chance"),
        id="H15" if rival == BAG else "H16",
        interval=group_bootstrap(a, groups, seed=run.seed),
        control=Control(rival, float(b.mean())),
        family="acting",
        words=f"right task and class on {len(judge)} test rows; layers run {shares[0]:.1%} beside {shares[1]:.1%}{allowed}",
    )


def _saved(acting: Acting, rows: Rows, run: Run) -> Claim:
    n_layers = acting.dispatcher.model.n_layers
    share = acting.ways[ROUTED].of("layers", rows.judge) / n_layers
    low, high = group_bootstrap(share, acting.stream.groups[rows.judge], seed=run.seed)
    return Claim(
        "mixed stream: share of layers saved",
        1 - float(share.mean()),
        id="H12",
        interval=(1 - high, 1 - low),
        words=f"{share.mean() * n_layers:.2f} of {n_layers} layers on average, "
        f"the router's {acting.dispatcher.router.layer + 1} among them; texts that are unknown run all; what "
        "the promise allows, not a comparison",
    )


def _clock(table: pd.DataFrame) -> Claim:
    by = table.set_index("way")
    routed = by.loc[ROUTED]
    others = ", ".join(f"{name} {by.loc[name, 'speedup']:.2f}×" for name in by.index if name not in (ROUTED, FULL))
    known = not pd.isna(routed["speedup_low"])
    return Claim(
        f"mixed stream: speed-up over {FULL}",
        float(routed["speedup"]),
        interval=(float(routed["speedup_low"]), float(routed["speedup_high"])) if known else None,
        words=f"{routed['milliseconds']:.2f} ms a text, naming included; {others}; wall clock, {routed['texts']} texts one "
        "at a time in random order, interval over texts",
    )


def _stranger(row: object) -> Claim:
    n, share = int(row.n), float(row.routed)  # type: ignore[attr-defined]
    return Claim(
        f"{row.task}, never seen: share of its texts answered as another task's",  # type: ignore[attr-defined]
        share,
        id="H16",
        interval=wilson(round(share * n), n),
        words=f"{n} texts, all calibrated without the task; no bound covers them: every class they get is of another task, "
        f"mostly {row.mostly}; {row.unknown:.1%} are called unknown and run to full depth, "  # type: ignore[attr-defined]
        f"{row.early:.1%} leave early",  # type: ignore[attr-defined]
    )
