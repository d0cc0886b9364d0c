"""What it takes to simulate caches of experts over a million tokens: CPU seconds, and the process's peak of memory.

    OMP_NUM_THREADS=1 python benchmarks/residency.py            # a minute or two on one core
    OMP_NUM_THREADS=1 python benchmarks/residency.py --tokens 100000

Writes benchmarks/results/residency.json. The trace is made up (OLMoE's shape: 16 layers, 64 experts, 8 a token): requests of
500 tokens, half of them a prompt; three tokens in ten take the experts of the token before, the others any. What is compiled is
compiled before the clock starts.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import moescope
from machine import describe
from moescope.files.atomic import write_atomic
from moescope.routing import RoutingTrace, TracedSequence
from moescope.routing.cache import ranking, served, simulate, uniform_trace
from moescope.study.provenance import spent

RESULT = Path(__file__).parent / "results" / "residency.json"
LAYERS, EXPERTS, K, LENGTH = 16, 64, 8, 500
CAPACITIES = (8, 16, 32, 48)


def made_up(tokens: int, length: int = LENGTH) -> RoutingTrace:
    n = tokens // length
    position = np.tile(np.arange(length, dtype=np.int32), n)
    empty = RoutingTrace(
        layers=tuple(range(LAYERS)),
        n_experts=(EXPERTS,) * LAYERS,
        ids=np.zeros((n * length, LAYERS, K), np.uint8),
        weights=None,
        sequence=np.repeat(np.arange(n, dtype=np.int32), length),
        position=position,
        generated=position >= length // 2,
        tokens=None,
        sequences=tuple(TracedSequence(str(i), "ab"[i % 2]) for i in range(n)),
        meta={"model": "made up"},
    )
    trace = uniform_trace(empty, seed=0)
    again = np.flatnonzero(np.random.default_rng(0).random(len(trace) - 1) < 0.3) + 1
    trace.ids[again] = trace.ids[again - 1]
    return trace


def clocked(what: Callable[[], Any]) -> float:
    began = time.process_time()
    what()
    return round(time.process_time() - began, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    tokens = parser.parse_args().tokens
    moescope.residency(made_up(20 * LENGTH))  # compiled
    bare = spent()["peak_gib"]
    trace = made_up(tokens)
    seconds: dict[str, float] = {"uniform router": clocked(lambda: uniform_trace(trace, 1))}
    steps = served(trace, prefill="token by token")
    seconds["steps"] = clocked(lambda: served(trace, prefill="token by token"))
    rank = ranking(np.ones((LAYERS, EXPERTS)))
    for policy in ("lru", "static", "lfu", "belady"):
        seconds[f"{policy}, capacities {', '.join(map(str, CAPACITIES))}"] = clocked(
            lambda policy=policy: simulate(trace, steps, CAPACITIES, (policy,), pinned=rank)
        )
    of_simulators = spent()["peak_gib"]
    result = None

    def study() -> None:
        nonlocal result
        result = moescope.residency(trace, settings=moescope.ResidencySettings(prefill="token by token"))

    seconds["moescope residency, every policy and placement"] = clocked(study)
    found = {
        "made_by": describe("numba"),
        "shape": {"tokens": len(trace), "layers": LAYERS, "experts": EXPERTS, "top_k": K, "lookups": int(trace.ids.size)},
        "cpu_seconds": seconds,
        "peak_gib": {"before": bare, "of the simulators": of_simulators, "of the study": spent()["peak_gib"]},
    }
    write_atomic(RESULT, [(json.dumps(found, indent=1) + "\n").encode()])
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
