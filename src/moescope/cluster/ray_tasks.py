"""Ray: every shard a task, taken up by whichever worker is free and tried again where a worker dies."""

from __future__ import annotations

import logging
import os
import re
import socket
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from moescope.cluster.engine import Collect, ProcessLost, R, S, plain_error
from moescope.errors import InputError

_QUIET: dict[str, Any] = {"include_dashboard": False}  # of a cluster of our own
_PLACE = re.compile(r"(?:ray://)?([^:/]+):(\d+)")
_RETRIES = 3  # of a task whose worker or machine died


def ray_engine(address: str | None) -> RayTasks:
    """The engine on the cluster at ``address``, or on this machine.

    Raises:
        InputError: Ray is not installed, or no cluster answers there.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report each use to its makers
    try:
        import ray
    except ImportError as error:
        raise InputError("ray is not installed: pip install 'moescope[ray]'", "engine") from error
    if not ray.is_initialized():
        try:
            if address is not None and (place := _PLACE.fullmatch(address)):  # Ray itself would ask for minutes
                socket.create_connection((place[1], int(place[2])), timeout=10).close()
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **({} if address else _QUIET))
        except Exception as error:  # Ray raises bare ones too
            if address is None:
                raise InputError(f"Ray could not begin a cluster on this machine ({error})", "engine") from error
            raise InputError(f"no Ray cluster answers at {address!r} ({error})", "address") from error
    return RayTasks(ray)


class RayTasks:
    """Tasks of one processor core each, and of one GPU where the cluster has any."""

    name = "ray"

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self.elsewhere = 0
        here = ray.cluster_resources()
        self._gpus = int(here.get("GPU", 0))
        self.processes = self._gpus or max(1, int(here.get("CPU", 1)))

    def map(
        self, collect: Collect[S, R], shards: Sequence[S], costs: Sequence[float], *, here: Collect[S, R]
    ) -> Iterator[tuple[int, R]]:
        ray = self._ray
        task = ray.remote(max_retries=_RETRIES, num_cpus=1, num_gpus=1 if self._gpus else 0)(_collected)
        common = ray.put(collect)
        waiting: deque[tuple[int, Any]] = deque()
        try:
            for number in sorted(range(len(shards)), key=lambda n: (-costs[n], n)):
                if len(waiting) >= 4 * self.processes:  # the cluster may grow; results wait in its memory
                    yield self._next(waiting)
                waiting.append((number, task.remote(common, shards[number])))
            while waiting:
                yield self._next(waiting)
        finally:
            for _, left in waiting:
                ray.cancel(left)

    def _next(self, waiting: deque[tuple[int, Any]]) -> tuple[int, Any]:
        number, promised = waiting.popleft()
        try:
            answer = self._ray.get(promised)
        except self._ray.exceptions.RayError as error:
            said = str(error).strip().partition("\n")[0]
            raise ProcessLost(f"Ray gave a shard up after {_RETRIES} more tries: {said}") from error
        if isinstance(answer, Exception):
            raise answer
        self.elsewhere += 1
        return number, answer


def _collected(collect: Collect[S, R], shard: S) -> R | Exception:
    try:
        (found,) = collect([shard])
    except Exception as error:
        return plain_error(error, f"process {os.getpid()} of Ray")
    return found
