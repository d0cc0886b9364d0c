"""Whole commands that are killed, interrupted and ended at shares of their work, and two of them on one output."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import moescope
from moescope.errors import InputError

COMMANDS = {
    "convert": ["dense-tiny", "--calibration-tokens", "2048", "--heldout-tokens", "512", "--no-speed"],
    "exit": ["dense-tiny", "--task", "certainty=halueval", "--limit", "400", "--risk", "0.05", "--timed-texts", "4"],
}
SHARES = (0.2, 0.4, 0.6, 0.8, 0.97)
_SAYS = {signal.SIGINT: 130, signal.SIGTERM: 143}


def begun(command: str, out: Path, *more: str) -> subprocess.Popen[str]:
    """The command, running."""
    line = [sys.executable, "-m", "moescope", command, *COMMANDS[command], "--out", str(out), *more]
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=settings)


def interrupted(command: str, work: Path) -> dict[str, tuple[int, list[str]]]:
    """By fault: how often it struck, and what was not as it must be."""
    out = work / "out"
    start = time.monotonic()
    assert begun(command, out).wait() == 0
    took = time.monotonic() - start
    whole = moescope.load(out)
    found: dict[str, tuple[int, list[str]]] = {}
    for number in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM):
        wrong = []
        for share in SHARES if number == signal.SIGKILL else SHARES[1:4]:
            running = begun(command, out, "--overwrite")
            time.sleep(share * took)
            running.send_signal(number)
            said = running.communicate()[1].strip().splitlines()
            if number in _SAYS and running.returncode not in (0, _SAYS[number]):
                wrong.append(f"{share:.0%}: exit code {running.returncode}")
            if running.returncode == _SAYS.get(number) and said[-1:] != ["interrupted; nothing was written"]:
                wrong.append(f"{share:.0%}: said {said[-1:]}")
            wrong += [f"{share:.0%}: {words}" for words in _differs(out, whole)]
        found[number.name] = (len(SHARES) if number == signal.SIGKILL else 3, wrong)
    wrong = [] if begun(command, out, "--overwrite").wait() == 0 else ["the next run fails"]
    wrong += _differs(out, whole)
    if left := sorted(p.name for p in work.iterdir() if p != out):
        wrong.append(f"left beside it: {left}")
    found["again"] = (1, wrong)
    return found


def _differs(out: Path, whole: Any) -> list[str]:
    try:
        now = moescope.load(out)
    except InputError as error:
        return [str(error)]
    same = now.claims == whole.claims and now.tables.keys() == whole.tables.keys()
    return [] if same else ["another result"]


def two_at_once(command: str, work: Path) -> list[str]:
    """What is wrong when a second process is begun on an output while the first works on it."""
    out = work / "both"
    first = begun(command, out)
    lock = work / ".both.lock"
    while not lock.exists() and first.poll() is None:
        time.sleep(0.02)
    second = begun(command, out, "--overwrite")
    said = second.communicate()[1].strip().splitlines()
    alone = first.poll() is None
    wrong = []
    if alone and (second.returncode != 2 or f"is being written by another process ({first.pid})" not in said[-1]):
        wrong.append(f"the second ended with {second.returncode}: {said[-1:]}")
    if not alone:
        wrong.append("the first was done before the second began")
    if first.wait() != 0 or lock.exists():
        wrong.append(f"the first ended with {first.returncode}")
    return wrong
