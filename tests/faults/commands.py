"""Whole commands: killed, interrupted and ended at shares of their work and run again, short of memory, two at once."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

import moescope
from moescope.errors import InputError
from moescope.routing.store import load_trace
from moescope.zoo import embedded
from tests.architectures import save_tiny
from tests.faults.check import Tally
from tests.same_result import difference

_TASK = "--task certainty=halueval --limit"
_WINDOWS = "--calibration-tokens 1024 --heldout-tokens 1024 --window 64"
_LINES = {  # with an --alpha, fewer random ones can judge
    "circuits": f"dense-tiny {_TASK} 160 --k 8 --permutations 200",
    "signatures": "moe-tiny --prompts routing-80 --new-tokens 4 --permutations 200",
    "trace": "moe-tiny --prompts routing-480 --new-tokens 4",
    "distill": "dense-tiny --experts 16 --rank 4 --lr 1e-3 --steps 12 --seeds 2 --tokens 2000",
    "steer": "moe-tiny --ban-top code --new-tokens 2 --text-tokens 128 --length 32 --random 19 --alpha 0.2",
    "prune": "moe-tiny --ratios 0.5 --text-tokens 256 --length 16",
    "robustness": "moe-tiny --prompts routing-80 --attacked 4 --queries 64",
    "transfer": "moe-tiny dense-tiny --prompts routing-80 --permutations 39 --alignments 39 --alpha 0.2",
    "convert": f"dense-tiny --experts 8 --active 4 {_WINDOWS} --finetune 4 --finetune-lr 1e-3 --no-speed",
    "exit": f"dense-tiny {_TASK} 400 --risk 0.05 --timed-texts 4",
    "route": "dense-tiny --task a=halueval --task b=uci-sentiment --limit 160 --unknown 0.1",
    "sparsify": f"dense-tiny --share 0.5 --shares 0.5 --bits 4 {_WINDOWS} --no-speed",
    "targets": "TRACE",
    "atlas": "moe-tiny --prompts routing-80",
    "residency": "TRACE --capacity 8",
    "scaling": f"SMALL dense-tiny {_TASK} 120 --k 8",
    "choice": f"dense-tiny --neuron-share 0.25 {_TASK} 60 --k 8 --tokens 128 --neurons 64",
    "dynamics": f"STEP-0 STEP-1000 {_TASK} 160 --k 8",
}
COMMANDS = {name: line.split() for name, line in _LINES.items()}
SHARES = {signal.SIGKILL: (0.2, 0.4, 0.6, 0.8), signal.SIGINT: (0.5,), signal.SIGTERM: (0.7,)}
_SAYS = {signal.SIGINT: 130, signal.SIGTERM: 143}
FAULTS_OF_COMMANDS = ("kill −9", "SIGINT", "SIGTERM", "run again", "short of memory", "clock jumps", "two at once")
_ROOM = (4, 32, 256)
"""MiB that a process may have beyond what it has once everything is imported"""
_REFUSED = {
    2: ("error: ", "Error: "),
    1: ("OpenBLAS error: Memory allocation",),
    127: ("cannot allocate memory for",),
    -6: ("  what():  std::bad_alloc",),
}
"""by exit code, how a process that is short of memory ends its words; OpenBLAS, the loader and C++ end it themselves"""
_LIMITED = """
import resource, sys, psutil, torch, transformers, sklearn.linear_model, moescope.study.protocol
from moescope.cli import main
room = psutil.Process().memory_info().vms + int(sys.argv.pop(1)) * 2**20
resource.setrlimit(resource.RLIMIT_AS, (room, room))
main(sys.argv[1:])
"""
_JUMPING = """
import itertools, sys, time
calls, now, by = itertools.count(), time.time, float(sys.argv.pop(1))
time.time = lambda: now() + (by if next(calls) > 20 else 0.0)
from moescope.cli import main
main(sys.argv[1:])
"""


def begun(command: str, out: Path, *more: str, script: tuple[str, ...] = ("-m", "moescope")) -> subprocess.Popen[str]:
    """The command, running."""
    given = [_made(part, out.parent.parent) if part in _MADE else part for part in COMMANDS[command]]
    line = [sys.executable, *script, command, *given, "--out", str(out), *more]
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    heard = None if os.name == "nt" else _hear
    return subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=settings, preexec_fn=heard)


def _trace(out: Path) -> None:
    line = [sys.executable, "-m", "moescope", "trace", "moe-tiny", "--prompts", "routing-80", "--out", str(out), "--quiet"]
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL)


def _checkpoint(out: Path) -> None:
    shutil.copytree(embedded()["dense-tiny"], out)


_MADE: dict[str, Callable[[Path], object]] = {
    "TRACE": _trace,
    "SMALL": save_tiny,
    "STEP-0": _checkpoint,
    "STEP-1000": _checkpoint,
}
"""what commands read, by the word that stands for it, and how it is made"""


def _made(word: str, work: Path) -> str:
    """Where what ``word`` stands for lies; made once."""
    place = work / "that-is-read" / word.lower()
    if not place.exists():
        place.parent.mkdir(exist_ok=True)
        _MADE[word](place)
    return str(place)


def _worked(running: subprocess.Popen[str], until: float = float("inf")) -> float:
    """Waits until the process has worked for so many seconds of a processor, or is over; gives how many it has.

    Seconds of a clock would strike at other places of the work where something else runs beside it.
    """
    seconds, watched = 0.0, psutil.Process(running.pid)
    with contextlib.suppress(psutil.Error):
        while seconds < until and running.poll() is None:
            times = watched.cpu_times()
            seconds = max(seconds, times.user + times.system)
            time.sleep(0.01)
    return seconds


def _hear() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is told to ignore it


def of_command(command: str, work: Path) -> dict[str, Tally]:
    """By fault: how often it struck, and what was not as it must be."""
    out = work / "out"
    first = begun(command, out, "--quiet")
    took = _worked(first)
    said = first.communicate()[1]
    assert first.returncode == 0, said
    whole = _read(command, out)
    found = {fault: Tally() for fault in FAULTS_OF_COMMANDS}
    again = found["run again"]
    for number, fault in ((signal.SIGKILL, "kill −9"), (signal.SIGINT, "SIGINT"), (signal.SIGTERM, "SIGTERM")):
        for share in SHARES[number]:
            running = begun(command, out, "--overwrite", "--quiet")
            _worked(running, share * took)
            running.send_signal(number)
            last = running.communicate()[1].strip().splitlines()[-1:]
            at = f"{fault} at {share:.0%}"
            wrong = _differs(command, out, whole)
            if number in _SAYS and running.returncode not in (0, _SAYS[number]):
                wrong = f"exit code {running.returncode}: {last}"
            if running.returncode == _SAYS.get(number) and not last[0].startswith("interrupted; "):
                wrong = f"said {last}"
            found[fault].add(at, wrong)
            ended, said, wrong = _finished(command, out, whole, "--overwrite")
            left = sorted(p.name for p in work.iterdir() if p != out)
            again.add(at, f"ended with {ended}: {said}" if ended else wrong or (f"left beside it: {left}" if left else None))
    for room in _ROOM:
        ended, said, wrong = _finished(command, out, whole, "--overwrite", script=("-c", _LIMITED, str(room)))
        refused = ended in _REFUSED and said[-1].startswith(_REFUSED[ended]) and not any("Traceback" in line for line in said)
        found["short of memory"].add(f"{room} MiB", wrong or (None if ended == 0 or refused else f"{ended}: {said[-3:]}"))
    for by in ("-864000", "864000"):
        ended, said, wrong = _finished(command, out, whole, "--overwrite", script=("-c", _JUMPING, by))
        found["clock jumps"].add(f"by {by} s", f"{ended}: {said}" if ended else wrong)
    shutil.rmtree(out)
    found["two at once"].add(command, two_at_once(command, work))
    return found


def _finished(command: str, out: Path, whole: Any, *more: str, **options: Any) -> tuple[int, list[str], str | None]:
    """How the command ended, the last of what it said, and in what its result differs from ``whole``."""
    running = begun(command, out, *more, **options)
    said = running.communicate()[1].strip().splitlines()
    return running.returncode, said[-8:], _differs(command, out, whole)


def _read(command: str, out: Path) -> Any:
    return load_trace(out) if command == "trace" else moescope.load(out)


def _differs(command: str, out: Path, whole: Any) -> str | None:
    """In what the result differs from ``whole``; None where in nothing."""
    try:
        now = _read(command, out)
    except InputError as error:
        return str(error)
    if command == "trace":
        return None if (now.ids == whole.ids).all() and now.sequences == whole.sequences else "another trace"
    return difference(now, whole)


def two_at_once(command: str, work: Path) -> str | None:
    """What is wrong when a second process is begun on an output while the first works on it."""
    out = work / "both"
    first = begun(command, out)
    lock = work / ".both.lock"
    while not lock.exists() and first.poll() is None:
        time.sleep(0.02)
    if first.poll() is not None:
        return "the first was done before its lock was seen"
    first.send_signal(signal.SIGSTOP)  # so that it is still at work, however short its work is
    second = begun(command, out, "--overwrite")
    said = second.communicate()[1].strip().splitlines()
    first.send_signal(signal.SIGCONT)
    if second.returncode != 2 or f"is being written by another process ({first.pid})" not in said[-1]:
        first.communicate()
        return f"the second ended with {second.returncode}: {said[-1:]}"
    first.communicate()
    return f"the first ended with {first.returncode}" if first.returncode != 0 or lock.exists() else None
