"""Whether a dense model routes: does the circuit that runs follow the task that the early layer was made to say?"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from moescope.stats import group_bootstrap
from moescope.studies.route.early import NEXT, THIRD, Moved, Read
from moescope.studies.route.settings import DIRECTION, EARLY, NEURONS, RouteSettings
from moescope.study.paired import beyond_sets, paired_effect
from moescope.study.run import Run
from moescope.study.verdicts import Case, Effect
from moescope.types import Claim, Control

_WHAT = {
    DIRECTION: "the next task's direction in layer {layer}",
    NEURONS: "the {n} coordinates of layer {layer} that tell the two tasks best",
}
_RANDOM = {DIRECTION: "random directions of the same size", NEURONS: "as many other coordinates, moved as far"}
Of = Callable[[Moved, Read], np.ndarray]
"""What is averaged over texts, (N,) for each task."""


def told(moved: Moved, read: Read) -> np.ndarray:
    """Share of the reading that is left: the unmoved texts' own is 1."""
    return np.asarray(read.told / float(moved.clean.told.mean()))


def way(moved: Moved, read: Read) -> np.ndarray:
    """From where each text's own is unmoved: texts that judge need not lie where those that fitted do."""
    return np.asarray(read.way - moved.clean.way)


def named(_: Moved, read: Read) -> np.ndarray:
    return read.named


_QUANTITIES: dict[str, Of] = {"told": told, "way": way, "named": named}


def causal_tables(found: Sequence[Moved], names: Sequence[str]) -> dict[str, pd.DataFrame]:
    """``causal``: every task by itself; ``causal_changes``: every change, over all tasks."""
    rows, changes = [], []
    for one in found:
        kinds = {"none": [one.clean], **{kind: [read] for kind, read in one.moved.items()}, "random": list(one.random)}
        for kind, reads in kinds.items():
            means = {name: float(np.mean([of(one, read).mean() for read in reads])) for name, of in _QUANTITIES.items()}
            means["told"] = means["told"] if one.reads else float("nan")
            at = {"early": one.early, "task": names[one.task], "towards": names[one.next], "change": kind}
            more = {"auroc": float(np.mean([r.auroc for r in reads])), "router": float(np.mean([r.router for r in reads]))}
            counted = {"n": len(one.groups), "size": 0.0 if kind == "none" else one.size, "changes": len(reads)}
            rows.append(at | counted | means | more | {"reads": one.reads, "way_there": one.way_there})
    for early in dict.fromkeys(one.early for one in found):
        mine = [one for one in found if one.early == early]
        for kind in _kinds(mine):
            values = {name: _mean(_kept(mine, name), of, kind) for name, of in _QUANTITIES.items()}
            changes.append({"early": early, "change": kind.split()[0], **values})
    return {"causal": pd.DataFrame(rows), "causal_changes": pd.DataFrame(changes)}


def _kinds(found: Sequence[Moved]) -> list[str]:
    return [*found[0].moved, *(f"random {r}" for r in range(len(found[0].random)))]


def _kept(found: Sequence[Moved], quantity: str) -> list[Moved]:
    """Tasks of which a quantity says something."""
    return [one for one in found if {"told": one.reads, "way": one.goes, "named": True}[quantity]]


def _mean(found: Sequence[Moved], of: Of, kind: str) -> float:
    return float(_joined(found, of, kind).mean()) if found else float("nan")


def _joined(found: Sequence[Moved], of: Of, kind: str) -> np.ndarray:
    """(sum of N,): the texts of all tasks, of which as many each are judged."""
    which, _, number = kind.partition(" ")
    return np.concatenate([of(one, one.random[int(number)] if number else one.moved[which]) for one in found])


def causal_claims(
    found: Sequence[Moved], layer: int, names: Sequence[str], settings: RouteSettings, run: Run
) -> list[Case | Claim]:
    """Of the whole direction, then of its strongest coordinates: is the task's circuit lost, does the next one's go on?"""
    claims = []
    for early in EARLY if settings.early_neurons else (DIRECTION,):
        mine = [one for one in found if one.early == early]
        what = _WHAT[early].format(layer=layer, n=settings.early_neurons)
        claims += [
            _lost(mine, what, early, names, settings, run),
            _on(mine, what, early, names, settings, run),
            _named(mine, what, early, settings, run),
        ]
        if early == DIRECTION:
            claims.append(_itself(mine, what, names, settings, run))
    return claims


def _beyond_random(
    found: Sequence[Moved], of: Of, early: str, settings: RouteSettings, run: Run, *, alternative: int = 1, unit: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, Effect]:
    """What the change gives each text, what random changes do (R, N), the groups, and the effect of the one over the other."""
    own = _joined(found, of, NEXT)
    random = np.stack([_joined(found, of, kind) for kind in _kinds(found) if kind.startswith("random")])
    groups = np.concatenate([one.groups for one in found])
    given = (own, random, groups, _RANDOM[early], settings.causal_margin, run.seed)
    return own, random, groups, beyond_sets(*given, alternative=alternative, unit=unit)


def _lost(
    found: Sequence[Moved], what: str, early: str, names: Sequence[str], settings: RouteSettings, run: Run
) -> Case | Claim:
    statement = f"with {what} put in, a task's circuit tells its own classes less well"
    kept = _kept(found, "told")
    if not kept:
        words = f"of no task do {settings.k} late neurons tell the classes better than chance, so there is nothing to lose"
        return Claim(statement, float("nan"), id="H15", outcome="not tested", words=words)
    own, random, groups, effect = _beyond_random(kept, told, early, settings, run, alternative=-1, unit="of the reading")
    area = [
        float(np.mean([read.auroc for read in reads])) for reads in ([m.clean for m in kept], [m.moved[NEXT] for m in kept])
    ]
    draws = float(np.mean([read.auroc for one in kept for read in one.random]))
    third = f"; towards a third task {_mean(kept, told, THIRD):.2f}" if THIRD in kept[0].moved else ""
    return Case(
        statement,
        float(own.mean()),
        effect,
        id="H15",
        interval=group_bootstrap(own, groups, seed=run.seed),
        control=Control(_RANDOM[early], float(random.mean())),
        family=f"early {early}",
        words=f"share left of the log-odds between classes{third}; AUROC {area[0]:.2f}, then {area[1]:.2f}, beside "
        f"{draws:.2f}; "
        + _of(kept, found, names, "whose circuit tells its classes better than chance")
        + f", {len(random)} changes",
    )


def _on(found: Sequence[Moved], what: str, early: str, names: Sequence[str], settings: RouteSettings, run: Run) -> Case | Claim:
    statement = f"with {what} put in, the next task's circuit goes on"
    kept = _kept(found, "way")
    if not kept:
        words = "of no two tasks is the second one's circuit more active in its own texts, so there is no way to go"
        return Claim(statement, float("nan"), id="H15", outcome="not tested", words=words)
    own, random, groups, effect = _beyond_random(kept, way, early, settings, run, unit="of the way")
    rivals, missing = _thirds(kept, way, own, groups, settings, run, unit="of the way")
    return Case(
        statement,
        float(own.mean()),
        effect,
        id="H15",
        rivals=rivals,
        not_run=missing,
        interval=group_bootstrap(own, groups, seed=run.seed),
        control=Control(_RANDOM[early], float(random.mean())),
        family=f"early {early}",
        words="from where it stands in each text unmoved, as a share of the way to where it stands in the next task's; "
        + _of(kept, found, names, "whose next task's circuit is set apart by a half at least"),
    )


def _named(found: Sequence[Moved], what: str, early: str, settings: RouteSettings, run: Run) -> Case:
    """That the change arrives, not that anything is routed by it: later layers may hand on what they are given."""
    own, random, groups, effect = _beyond_random(found, named, early, settings, run, unit="of the texts")
    rivals, missing = _thirds(found, named, own, groups, settings, run, unit="of the texts")
    router = np.mean([[one.clean.router, one.moved[NEXT].router] for one in found], axis=0)
    return Case(
        f"the change arrives: with {what} put in, what later layers write names the next task",
        float(own.mean()),
        effect,
        rivals=rivals,
        not_run=missing,
        interval=group_bootstrap(own, groups, seed=run.seed),
        control=Control(_RANDOM[early], float(random.mean())),
        words=f"a probe of what the layers after the change have added, which does not see the change itself; "
        f"{_joined_clean(found):.1%} before; the router at its layer says the next task of {router[0]:.1%}, then of "
        f"{router[1]:.1%}",
    )


def _joined_clean(found: Sequence[Moved]) -> float:
    return float(np.mean([one.clean.named.mean() for one in found]))


def _itself(found: Sequence[Moved], what: str, names: Sequence[str], settings: RouteSettings, run: Run) -> Case | Claim:
    statement = f"with {what} put in, the next task's circuit goes further than other neurons of its layers"
    kept = _kept(found, "way")
    if not kept:
        words = "of no two tasks is the second one's circuit more active in its own texts, so there is no way to go"
        return Claim(statement, float("nan"), id="H15", outcome="not tested", words=words)
    own = _joined(kept, way, NEXT)
    rest = np.concatenate([one.moved[NEXT].rest - one.clean.rest for one in kept])
    groups = np.concatenate([one.groups for one in kept])
    return Case(
        statement,
        float(own.mean()),
        paired_effect(own, rest, groups, "all others there", settings.causal_margin, run.seed, share=False, unit="of the way"),
        id="H15",
        interval=group_bootstrap(own, groups, seed=run.seed),
        control=Control("all other neurons of the circuit's layers", float(rest.mean())),
        words="their way is measured as the circuit's is; where they go as far, the whole of those layers goes over, not a "
        "circuit; " + _of(kept, found, names, "whose next task's circuit is set apart by a half at least"),
    )


def _thirds(
    found: Sequence[Moved], of: Of, own: np.ndarray, groups: np.ndarray, settings: RouteSettings, run: Run, *, unit: str
) -> tuple[tuple[Effect, ...], tuple[str, ...]]:
    """What is left beyond as large a change towards a third task; or that there is none."""
    if THIRD not in found[0].moved:
        return (), ("a change towards a third task, which takes three tasks",)
    given = (own, _joined(found, of, THIRD), groups, "as large a change towards a third task", settings.causal_margin, run.seed)
    return (paired_effect(*given, share=False, unit=unit),), ()


def _of(kept: Sequence[Moved], found: Sequence[Moved], names: Sequence[str], which: str) -> str:
    """Which tasks are in a figure, where not all are."""
    n = sum(len(one.groups) for one in kept)
    if len(kept) == len(found):
        return f"{n} texts of {len(kept)} tasks"
    return f"{n} texts of {', '.join(names[one.task] for one in kept)} alone, {which}"
