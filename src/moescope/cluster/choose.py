"""The engine that a run asks for."""

from __future__ import annotations

from moescope.cluster.engine import LOCAL, Engine
from moescope.cluster.ranks import current
from moescope.cluster.ray_tasks import ray_engine
from moescope.errors import InputError


def engine_of(name: str, address: str | None = None, *, alone: str | None = None) -> Engine:
    """The ranks where :func:`~moescope.cluster.ranks.ranks` leads them, else what ``name`` says: ``local`` or ``ray``.

    Args:
        address: of a running Ray cluster (``auto``, ``ray://head:10001``); None: one on this machine, begun when there is none.
        alone: name of a job that is one process's.

    Raises:
        InputError: such a job, both engines at once, an address without Ray, or a cluster that does not answer.
    """
    spread = current()
    if alone is not None and (name == "ray" or spread is not None):
        raise InputError(f"{alone} is not spread over processes; run it in one, without torchrun or Ray", "engine")
    if name == "ray" and spread is not None:
        raise InputError("ray and torchrun exclude each other; run it without one of them", "engine")
    if name != "ray" and address is not None:
        raise InputError("is that of a Ray cluster, and engine='ray' was not asked for", "address")
    return ray_engine(address) if name == "ray" else LOCAL if spread is None else spread
