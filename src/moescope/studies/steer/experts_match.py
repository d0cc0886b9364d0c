"""Random experts that resemble the edited ones in everything but what they are for: used as much, in the same layer if any."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from moescope.errors import InputError
from moescope.intervene.experts import Expert, ExpertEdits

_RARE = 1e-4  # usage below one token in ten thousand counts as that
_ALIKE = 0.1  # by how much the use of several banned experts may differ, as a share of what they stand for


def matched_edits(
    edits: ExpertEdits, usage: Mapping[int, np.ndarray], *, n_sets: int = 100, seed: int = 0
) -> list[ExpertEdits]:
    """``n_sets`` different random counterparts of some edits.

    Each edited expert is replaced, in the same layer, by one of the unedited experts nearest to it in usage (ratio of
    frequencies): twice as many as are edited there, at least 4. In a layer where more than half of the experts are edited (a
    boost of every expert, say) the values are shuffled over all its experts instead.

    A single expert has four such neighbours, too few for a test. Where that leaves fewer than ``n_sets`` different sets, usage
    comes before the layer: bans stand beside bans of unedited experts of any layer that together are used as much within a
    tenth, as few experts as give so many sets; each other edit beside that of an expert of any layer, from as many of the
    nearest in usage as it takes.

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
    tries = 20 * n_sets  # a set that was drawn already costs one: stop when new ones have become rare
    only_bans = not (edits.force or edits.boost or edits.scale)
    best: dict[tuple[object, ...], ExpertEdits] = {}
    for draws in (_in_layers, _used_as_much if only_bans else _anywhere):
        found: dict[tuple[object, ...], ExpertEdits] = {}
        for moved in draws(edits, usage, tries, rng):
            if (key := _key(moved)) != _key(edits):
                found.setdefault(key, moved)
            if len(found) == n_sets:
                return list(found.values())
        best = max(best, found, key=len)
    if not best:
        raise InputError(f"{edits}: there is no other set of experts to compare with; edit fewer experts of the layer")
    return list(best.values())


def usage_ratio(edits: ExpertEdits, sets: Sequence[ExpertEdits], usage: Mapping[int, np.ndarray]) -> float:
    """Mean usage of the random experts over that of the edited ones, each set's together: 1 where matching succeeded."""

    def total(members: ExpertEdits) -> float:
        return sum(max(float(usage[e.layer][e.number]), _RARE) for e in members.experts)

    return float(np.mean([total(s) for s in sets])) / total(edits)


def _in_layers(
    edits: ExpertEdits, usage: Mapping[int, np.ndarray], tries: int, rng: np.random.Generator
) -> Iterator[ExpertEdits]:
    layers: dict[int, list[Expert]] = {}
    for expert in edits.experts:
        layers.setdefault(expert.layer, []).append(expert)
    pools = {layer: _pools(members, usage[layer]) for layer, members in layers.items()}
    for _ in range(tries):
        yield edits.moved({e: t for layer, members in layers.items() for e, t in _draw(members, pools[layer], rng)})


def _used_as_much(
    edits: ExpertEdits, usage: Mapping[int, np.ndarray], tries: int, rng: np.random.Generator
) -> Iterator[ExpertEdits]:
    """Bans of experts of any layer that together are used as much, at most half of a layer's; as few as possible first."""
    outside, size = _outside(edits, usage)
    whole = sum(max(float(usage[e.layer][e.number]), _RARE) for e in edits.ban)
    ordered = np.sort(size)
    for count in range(1, len(outside) + 1):
        if ordered[-count:].sum() < (1 - _ALIKE) * whole or ordered[:count].sum() > (1 + _ALIKE) * whole:
            continue
        for _ in range(tries):
            some = rng.choice(len(outside), count - 1, replace=False)
            fits = np.abs(size[some].sum() + size - whole) <= _ALIKE * whole
            fits[some] = False
            if fits.any():
                drawn = [outside[i] for i in (*some, rng.choice(np.flatnonzero(fits)))]
                layers = [e.layer for e in drawn]
                if all(layers.count(layer) <= len(usage[layer]) // 2 for layer in set(layers)):
                    yield ExpertEdits(ban=frozenset(drawn))


def _anywhere(
    edits: ExpertEdits, usage: Mapping[int, np.ndarray], tries: int, rng: np.random.Generator
) -> Iterator[ExpertEdits]:
    """Each expert replaced by one of any layer, from more and more of the nearest in usage."""
    outside, size = _outside(edits, usage)
    members = list(edits.experts)
    apart = [np.abs(np.log(size / max(float(usage[e.layer][e.number]), _RARE))) for e in members]
    for width in range(max(4, 2 * len(members)), len(outside) + 1):
        pools = [np.argsort(distance, kind="stable")[:width] for distance in apart]
        for _ in range(max(1, tries // 20)):
            drawn = _choose(pools, rng)
            yield edits.moved({e: outside[i] for e, i in zip(members, drawn, strict=True)})


def _outside(edits: ExpertEdits, usage: Mapping[int, np.ndarray]) -> tuple[list[Expert], np.ndarray]:
    """The experts that are not edited, and how much each is used."""
    edited = set(edits.experts)
    every = [Expert(layer, i) for layer, shares in usage.items() for i in range(len(shares))]
    outside = [e for e in every if e not in edited]
    return outside, np.array([max(float(usage[e.layer][e.number]), _RARE) for e in outside])


def _pools(members: list[Expert], usage: np.ndarray) -> list[np.ndarray]:
    """For each edited expert of a layer, the numbers of those that may stand for it."""
    edited = [e.number for e in members]
    outside = np.setdiff1d(np.arange(len(usage)), edited)
    if len(outside) < len(members):
        return [np.arange(len(usage))] * len(members)
    size = np.log(np.maximum(usage, _RARE))
    window = max(4, 2 * len(members))
    return [outside[np.argsort(np.abs(size[outside] - size[e]), kind="stable")[:window]] for e in edited]


def _draw(members: list[Expert], pools: list[np.ndarray], rng: np.random.Generator) -> list[tuple[Expert, Expert]]:
    return [(e, Expert(e.layer, i)) for e, i in zip(members, _choose(pools, rng), strict=True)]


def _choose(pools: list[np.ndarray], rng: np.random.Generator) -> list[int]:
    """One of each pool, none twice."""
    taken: dict[int, int] = {}
    for place in rng.permutation(len(pools)):  # in random order, so that no expert always has the last choice
        free = [int(i) for i in pools[place] if int(i) not in taken.values()]
        taken[int(place)] = free[rng.integers(len(free))]
    return [taken[place] for place in range(len(pools))]


def _key(edits: ExpertEdits) -> tuple[object, ...]:
    return edits.ban, edits.force, tuple(sorted(edits.boost.items())), tuple(sorted(edits.scale.items()))
