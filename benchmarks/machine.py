"""What a measurement is made with, and how contenders take turns.

The description has processor, cores, memory, versions and day; no names of hosts, users or folders.
"""

from __future__ import annotations

import datetime
import os
import platform
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


def describe(*packages: str) -> dict[str, Any]:
    """For the head of a results file. ``packages``: further distributions whose versions matter; None if not installed."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("torch", "transformers", "numpy", "moescope", *packages):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.system(),
        "threads": torch.get_num_threads(),
        "load_average": [round(load, 2) for load in os.getloadavg()],  # of one, five and fifteen minutes
        "versions": versions,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def interleaved(
    calls: Mapping[str, Callable[[], Any]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each call in each of ``repeats`` turns; none is always first, or always after the most costly. On one thread
    of a machine that others use ``clock`` may be ``time.process_time``."""
    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(repeats):
        turn = repeat % len(names)
        for name in names[turn:] + names[:turn]:
            start = clock()
            calls[name]()
            seconds[name].append(clock() - start)
    return seconds


def _processor() -> str:
    """Model name and widest vector unit, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    entries = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return f"{entries.get('model name', platform.machine())}, {torch.backends.cpu.get_cpu_capability()}"
