"""What a million tokens take, for each study whose work grows with them (that of signatures grows with pairs of prompts):
CPU seconds, and its process's peak of memory.

    OMP_NUM_THREADS=1 python benchmarks/million.py            # some minutes on one core
    OMP_NUM_THREADS=1 python benchmarks/million.py --tokens 100000

Writes benchmarks/results/million.json. The trace is made up, of OLMoE's shape (16 layers, 64 experts, 8 a token): 400
requests of 2,500 tokens in four categories and forty topics; token ids fall off as Zipf's law has it; a token's experts are its
own, those of the token before, or any. Each study has a process of its own, and what numba compiles is compiled before its
clock starts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import moescope
from machine import describe
from moescope.files.atomic import write_atomic
from moescope.routing import RoutingTrace, TracedSequence
from moescope.routing.sense import check_sense
from moescope.study.provenance import spent
from residency import EXPERTS, LAYERS, K, clocked, made_up

RESULT = Path(__file__).parent / "results" / "million.json"
LENGTH, VOCABULARY, SHARE = 2_500, 50_000, 0.3


def with_words(tokens: int) -> RoutingTrace:
    """The made-up trace of residency.py with token ids that have a say in the experts, and with topics."""
    trace = made_up(tokens, LENGTH)
    rng = np.random.default_rng(1)
    words = (rng.zipf(1.3, len(trace)) % VOCABULARY).astype(np.int32)
    own = rng.random((4096, LAYERS, EXPERTS)).argsort(-1)[..., :K].astype(np.uint8)
    by_word = np.flatnonzero(rng.random(len(trace)) < SHARE)
    trace.ids[by_word] = own[words[by_word] % len(own)]
    names = tuple(TracedSequence(str(i), "abcd"[i % 4], f"topic {i % 40}") for i in range(len(trace) // LENGTH))
    return replace(trace, tokens=words, sequences=names)


STUDIES: dict[str, Callable[[RoutingTrace], Any]] = {
    "trace check": lambda trace: check_sense(trace, "made up"),
    "trace compare": lambda trace: moescope.agreement(trace, trace),
    "residency": moescope.residency,
    "targets": moescope.targets,
    "atlas": moescope.atlas,
}


def one(name: str, tokens: int) -> dict[str, Any]:
    """Run in a process of its own."""
    STUDIES[name](with_words(80 * LENGTH))  # compiled
    trace = with_words(tokens)
    before = spent()["peak_gib"]
    return {"cpu_seconds": clocked(lambda: STUDIES[name](trace)), "peak_gib": spent()["peak_gib"], "before_gib": before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--one", choices=STUDIES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(given.one, given.tokens)))
        return
    rows = {}
    for name in STUDIES:
        command = [sys.executable, __file__, "--one", name, "--tokens", str(given.tokens)]
        rows[name] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
        print(name, rows[name], flush=True)
    found = {
        "made_by": describe("numba"),
        "shape": {"tokens": given.tokens, "layers": LAYERS, "experts": EXPERTS, "top_k": K},
        "studies": rows,
    }
    write_atomic(RESULT, [(json.dumps(found, indent=1) + "\n").encode()])


if __name__ == "__main__":
    main()
