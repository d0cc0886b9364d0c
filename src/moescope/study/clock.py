"""The clock: contenders in turns, a model that writes token after token, and what a ratio of times is worth.

Contenders take turns, and each turn begins with another one, so that a machine that slows down for a while slows all of them
alike; a ratio is of what stands within a turn, and its interval is of the median over turns.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moescope.models.past import past_argument, past_of
from moescope.stats.intervals import median_interval

FEWEST = 6
"""turns, of which an interval can be made"""
_LEAST, _MOST = 64 << 20, 256 << 20
"""bytes that are read to make caches cold"""


@dataclass(frozen=True)
class Workload:
    """``batch`` sequences that each read ``prompt`` tokens and, unless this is 0, write ``steps`` tokens one by one."""

    name: str
    batch: int
    prompt: int
    steps: int

    @property
    def tokens(self) -> int:
        """What a rate is of: tokens written, or tokens read where none is written."""
        return self.batch * (self.steps or self.prompt)


def in_turns(
    calls: Mapping[str, Callable[[], float]],
    turns: int,
    *,
    warm: int = 1,
    seconds: float = math.inf,
    told: Callable[[int], None] | None = None,
) -> dict[str, np.ndarray]:
    """What every call gives, its seconds, in each of ``turns`` (turns,); ``warm`` turns before them compile and are not kept.

    Args:
        seconds: after which no further turn begins, if :data:`FEWEST` are over.
        told: the number of turns that are over.
    """
    names = list(calls)
    times: dict[str, list[float]] = {name: [] for name in names}
    began = time.perf_counter()
    for turn in range(-warm, turns):
        if turn >= FEWEST and time.perf_counter() - began > seconds:
            break
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            spent = calls[name]()
            if turn >= 0:
                times[name].append(spent)
        if told is not None:
            told(turn + warm + 1)
    return {name: np.array(spent) for name, spent in times.items()}


def ratio(others: np.ndarray, own: np.ndarray) -> tuple[float, float, float]:
    """How many times as fast as another a contender is, by both's seconds in the same turns (turns,): the median of the turns'
    ratios, which a stall of the machine in some of them does not move, and its 95 % interval (NaN of fewer than six turns)."""
    found = others / own
    return (float(np.median(found)), *median_interval(found))


@torch.no_grad()
def decoding(
    model: Any, workload: Workload, *, text: Tensor | None = None, before: Callable[[], None] | None = None
) -> np.ndarray:
    """Seconds of each step (steps,): decoding alone, the prompt read before the clock starts; or of reading the prompt (1,).

    Args:
        text: (batch, prompt + steps) ids that are read, each step one more of them; None: a prompt at random, after which the
            model goes on from what it thinks most likely.
        before: called before each step, and not timed.
    """
    device = next(model.parameters()).device
    ids = text
    if ids is None:
        draw = torch.Generator().manual_seed(0)
        ids = torch.randint(0, model.config.get_text_config().vocab_size, (workload.batch, workload.prompt), generator=draw)
    ids = ids.to(device)
    times: list[float] = []
    given: dict[str, Any] = {"input_ids": ids[:, : workload.prompt]}
    for step in range(workload.steps + 1):
        if before is not None:
            before()
        began = _now(device)
        out = model(**given, use_cache=True, logits_to_keep=1)
        token = out.logits[:, -1:].argmax(-1)
        times.append(_now(device) - began)
        at = workload.prompt + step
        given = {"input_ids": token if text is None else ids[:, at : at + 1], **past_argument(model, past_of(out))}
    return np.array(times[1:] if workload.steps else times)


def seconds_of(call: Callable[[], Any], device: torch.device) -> float:
    """Of one call, on a GPU until its work is done."""
    began = _now(device)
    call()
    return _now(device) - began


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Cold:
    """Reads so much memory when it is called that nothing else is left in a cache: what a model reads comes from memory then,
    as it does of a model that no cache could hold."""

    def __init__(self, device: torch.device) -> None:
        self.size = _MOST if device.type == "cuda" else min(_MOST, max(_LEAST, 4 * _last_cache()))
        self._memory = torch.zeros(self.size // 8, dtype=torch.int64, device=device)

    def __call__(self) -> None:
        self._memory.sum().item()


def _last_cache() -> int:
    """Bytes of the last cache of the processor, where the system tells; else nought."""
    found = Path("/sys/devices/system/cpu/cpu0/cache")
    sizes = [found / name / "size" for name in sorted(os.listdir(found))] if found.is_dir() else []
    told = [path.read_text().strip() for path in sizes if path.is_file()]
    units = {"K": 10, "M": 20, "G": 30}
    return max((int(text[:-1]) << units[text[-1]] for text in told if text[:-1].isdigit() and text[-1] in units), default=0)
