"""Which process gets which shards."""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def share(costs: Sequence[float], parts: int) -> list[list[int]]:
    """Numbers of the shards that each part gets: the costliest first, each to the part that has least so far.

    Every shard is in one part, a part's shards in ascending order; no part costs more than 4/3 of what the best division
    gives (R. L. Graham, "Bounds on multiprocessing timing anomalies", 1969). A function of the costs alone.

    >>> share([5, 4, 3, 3, 1], 2)
    [[0, 3], [1, 2, 4]]
    """
    heap = [(0.0, part) for part in range(parts)]
    shared: list[list[int]] = [[] for _ in range(parts)]
    for number in sorted(range(len(costs)), key=lambda n: (-costs[n], n)):
        load, part = heapq.heappop(heap)
        shared[part].append(number)
        heapq.heappush(heap, (load + costs[number], part))
    return [sorted(numbers) for numbers in shared]
