"""Caches of one layer's experts, simulated step by step; compiled.

A step needs the distinct experts ``flat[starts[s]:starts[s + 1]]`` together: what the layer does not hold is loaded, and only
then is decided what stays. Misses are counted in the step's ``cell``.
"""

from __future__ import annotations

import numpy as np

from moescope.kernels.loops import compiled

_NEVER, _NEEDED = 2**63 - 1, 2**62


@compiled()
def gather(ids: np.ndarray, order: np.ndarray, bounds: np.ndarray, n_experts: int, flat: np.ndarray, starts: np.ndarray) -> int:
    """The distinct experts of each step, into ``flat`` and ``starts``; how many there are in all.

    Args:
        ids: (T, K) experts of a layer; ``n_experts`` or more in an unused slot.
        order, bounds: step s is of the tokens ``order[bounds[s]:bounds[s + 1]]``.
    """
    seen = np.full(n_experts, -1, np.int64)
    n = 0
    for s in range(len(bounds) - 1):
        starts[s] = n
        for r in range(bounds[s], bounds[s + 1]):
            for k in range(ids.shape[1]):
                e = ids[order[r], k]
                if e < n_experts and seen[e] != s:
                    seen[e] = s
                    flat[n] = e
                    n += 1
    starts[len(bounds) - 1] = n
    return n


@compiled()
def lookups(starts: np.ndarray, cell: np.ndarray, counts: np.ndarray) -> None:
    """Adds how many experts the steps of each cell need."""
    for s in range(len(cell)):
        counts[cell[s]] += starts[s + 1] - starts[s]


@compiled()
def lru_hits(flat: np.ndarray, starts: np.ndarray, cell: np.ndarray, n_experts: int, hits: np.ndarray) -> None:
    """Adds to ``hits`` (cells, E) where in the order of last use an expert stood: a layer that holds C hits the first C.

    One pass serves every capacity (Mattson et al. 1970).
    """
    stack = np.empty(n_experts, np.int64)
    depth = 0
    for s in range(len(cell)):
        for i in range(starts[s], starts[s + 1]):
            for j in range(depth):
                if stack[j] == flat[i]:
                    hits[cell[s], j] += 1
                    break
        for i in range(starts[s + 1] - 1, starts[s] - 1, -1):  # a router names its first choice first: that one on top
            moved = np.int64(flat[i])
            j = 0
            while j < depth:
                above = stack[j]
                stack[j] = moved
                moved = above
                if moved == flat[i]:
                    break
                j += 1
            if j == depth:
                stack[depth] = moved
                depth += 1


@compiled()
def static_hits(flat: np.ndarray, starts: np.ndarray, cell: np.ndarray, rank: np.ndarray, hits: np.ndarray) -> None:
    """Adds to ``hits`` (cells, E) the rank of each expert that was used before: a layer that pins C hits the first C.

    A pinned expert is loaded when it is first needed, as everywhere.
    """
    seen = np.zeros(len(rank), np.bool_)
    for s in range(len(cell)):
        for i in range(starts[s], starts[s + 1]):
            if seen[flat[i]]:
                hits[cell[s], rank[flat[i]]] += 1
            seen[flat[i]] = True


@compiled()
def lfu_misses(
    flat: np.ndarray, starts: np.ndarray, cell: np.ndarray, n_experts: int, capacity: int, misses: np.ndarray
) -> None:
    """The least used so far goes (of equals the one longest unused), but none that the step needs before another."""
    worth = np.zeros(n_experts, np.int64)  # uses, and in the lower half when the last was
    key = np.full(n_experts, _NEVER, np.int64)  # of those inside their worth; the least goes
    held = clock = 0
    for s in range(len(cell)):
        for i in range(starts[s + 1] - 1, starts[s] - 1, -1):
            e = flat[i]
            if key[e] == _NEVER:
                misses[cell[s]] += 1
                held += 1
            clock += 1
            worth[e] = ((worth[e] >> 32) + 1 << 32) + clock
            key[e] = worth[e] + _NEEDED
        while held > capacity:
            least = key[0]
            for e in range(1, n_experts):
                least = min(least, key[e])
            victim = 0
            while key[victim] != least:
                victim += 1
            key[victim] = _NEVER
            held -= 1
        for i in range(starts[s], starts[s + 1]):
            if key[flat[i]] != _NEVER:
                key[flat[i]] = worth[flat[i]]


@compiled()
def next_uses(flat: np.ndarray, starts: np.ndarray, n_experts: int, following: np.ndarray) -> None:
    """The step in which each looked-up expert is needed next; the number of steps where it never is."""
    n_steps = len(starts) - 1
    upcoming = np.full(n_experts, n_steps, np.int64)
    for s in range(n_steps - 1, -1, -1):
        for i in range(starts[s], starts[s + 1]):
            following[i] = upcoming[flat[i]]
            upcoming[flat[i]] = s


@compiled()
def belady_misses(
    flat: np.ndarray,
    starts: np.ndarray,
    cell: np.ndarray,
    following: np.ndarray,
    n_experts: int,
    capacity: int,
    misses: np.ndarray,
) -> None:
    """The fewest loads that any policy can have: what is needed last of all goes, be it what was just loaded.

    An expert that is kept from one use to the next saves one load and takes one place in every step between; of such spans as
    many as fit are kept by dropping the one that ends last whenever there are too many (Belady 1966; with several looked up
    together, the greedy colouring of intervals, Carlisle and Lloyd 1995).
    """
    due = np.full(n_experts, -1, np.int32)
    held = 0
    for s in range(len(cell)):
        for i in range(starts[s], starts[s + 1]):
            if due[flat[i]] < 0:
                misses[cell[s]] += 1
                held += 1
            due[flat[i]] = following[i]
        while held > capacity:
            latest = due[0]  # its place by itself: the maximum alone is one vector instruction for many experts
            for e in range(1, n_experts):
                latest = max(latest, due[e])
            victim = 0
            while due[victim] != latest:
                victim += 1
            due[victim] = -1
            held -= 1


@compiled()
def lookahead_counts(
    flat: np.ndarray,
    starts: np.ndarray,
    guessed: np.ndarray,
    guesses: np.ndarray,
    cell: np.ndarray,
    n_experts: int,
    capacity: int,
    late: np.ndarray,
    early: np.ndarray,
) -> None:
    """Least recently used, with the experts ``guessed[guesses[s]:guesses[s + 1]]`` loaded before step s begins.

    What was loaded on a guess and is not needed in the step is not kept.

    Args:
        late: added to by cell, experts that were loaded because nobody had guessed them.
        early: added to by cell, experts that were loaded on a guess.
    """
    last, announced = np.full(n_experts, -1, np.int64), np.full(n_experts, -1, np.int64)
    held = clock = 0
    for s in range(len(cell)):
        for i in range(guesses[s], guesses[s + 1]):
            announced[guessed[i]] = s
            if last[guessed[i]] < 0:
                early[cell[s]] += 1
        for i in range(starts[s + 1] - 1, starts[s] - 1, -1):
            if last[flat[i]] < 0:
                held += 1
                if announced[flat[i]] != s:
                    late[cell[s]] += 1
            last[flat[i]] = clock
            clock += 1
        while held > capacity:
            victim = -1
            for e in range(n_experts):
                if last[e] >= 0 and (victim < 0 or last[e] < last[victim]):
                    victim = e
            last[victim] = -1
            held -= 1
