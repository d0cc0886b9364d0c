"""Random experts that resemble the edited ones in everything but what they are for: same layer, like usage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from moescope.errors import InputError
from moescope.intervene.experts import Expert, ExpertEdits

_RARE = 1e-4  # usage below one token in ten thousand counts as that


def matched_edits(
    edits: ExpertEdits, usage: Mapping[int, np.ndarray], *, n_sets: int = 100, seed: int = 0
) -> list[ExpertEdits]:
    """``n_sets`` different random counterparts of some edits.

    Each edited expert is replaced, in the same layer, by one of the unedited experts nearest to it in usage (ratio of
    frequencies): twice as many as are edited there, at least 4. Where that leaves fewer than ``n_sets`` different sets,
    all unedited experts of the layer are drawn from. In a layer where more than half of the experts are edited (a boost
    of every expert, say) the values are shuffled over all its experts instead.

    Args:
        usage: for each layer (E,): the share of tokens sent to each expert.

    Returns:
        Different sets, none of them the edits themselves; fewer than ``n_sets`` where no more exist.

    Raises:
        InputError: nothing is edited, or no other set exists.
    """
    if not edits:
        raise InputError("no expert is edited, so there is nothing to match")
    rng = np.random.default_rng(seed)
    layers: dict[int, list[Expert]] = {}
    for expert in edits.experts:
        layers.setdefault(expert.layer, []).append(expert)
    own = _key(edits)
    found: dict[tuple[object, ...], ExpertEdits] = {}
    for near in (True, False):
        pools = {layer: _pools(members, usage[layer], near) for layer, members in layers.items()}
        # a set that was drawn already costs a try: stop when new ones have become rare
        for _ in range(20 * n_sets):
            if len(found) == n_sets:
                return list(found.values())
            moved = edits.moved({e: t for layer, members in layers.items() for e, t in _draw(members, pools[layer], rng)})
            if (key := _key(moved)) != own:
                found.setdefault(key, moved)
    if not found:
        raise InputError(f"{edits}: there is no other set of experts to compare with; edit fewer experts of the layer")
    return list(found.values())


def usage_ratio(edits: ExpertEdits, sets: Sequence[ExpertEdits], usage: Mapping[int, np.ndarray]) -> float:
    """Geometric mean usage of the random experts over that of the edited ones: 1 where matching succeeded."""

    def size(members: ExpertEdits) -> float:
        return float(np.mean([np.log(max(usage[e.layer][e.number], _RARE)) for e in members.experts]))

    return float(np.exp(np.mean([size(s) for s in sets]) - size(edits)))


def _pools(members: list[Expert], usage: np.ndarray, near: bool) -> list[np.ndarray]:
    """For each edited expert of a layer, the numbers of those that may stand for it."""
    edited = [e.number for e in members]
    outside = np.setdiff1d(np.arange(len(usage)), edited)
    if len(outside) < len(members):
        return [np.arange(len(usage))] * len(members)
    if not near:
        return [outside] * len(members)
    size = np.log(np.maximum(usage, _RARE))
    window = max(4, 2 * len(members))
    return [outside[np.argsort(np.abs(size[outside] - size[e]), kind="stable")[:window]] for e in edited]


def _draw(members: list[Expert], pools: list[np.ndarray], rng: np.random.Generator) -> list[tuple[Expert, Expert]]:
    taken: set[int] = set()
    drawn: dict[Expert, Expert] = {}
    for place in rng.permutation(len(members)):  # in random order, so that no expert always has the last choice
        expert = members[place]
        free = [int(i) for i in pools[place] if int(i) not in taken]
        index = free[rng.integers(len(free))]
        taken.add(index)
        drawn[expert] = Expert(expert.layer, index)
    return [(e, drawn[e]) for e in members]


def _key(edits: ExpertEdits) -> tuple[object, ...]:
    return edits.ban, edits.force, tuple(sorted(edits.boost.items())), tuple(sorted(edits.scale.items()))
