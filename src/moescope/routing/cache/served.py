"""The order in which a trace's tokens are served: which are computed in one step, and for whom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from moescope.routing.trace import RoutingTrace

Prefill = Literal["one step", "token by token"]


@dataclass(frozen=True, eq=False)
class Served:
    """S steps over T tokens, for U units: a request, or as many as are served together."""

    order: np.ndarray
    """(T,) int64 rows of the trace, as they are served"""
    bounds: np.ndarray
    """(S + 1,) int64: step s is of the tokens ``order[bounds[s]:bounds[s + 1]]``"""
    cell: np.ndarray
    """(S,) int64: twice the step's unit, and one more where it reads prompts"""
    unit: np.ndarray
    """(N,) int64 unit of each of the trace's sequences"""

    @property
    def n_units(self) -> int:
        """U."""
        return int(self.unit.max(initial=-1)) + 1

    @property
    def tokens(self) -> np.ndarray:
        """int64 (2 U,): tokens of each cell."""
        return np.bincount(self.cell, np.diff(self.bounds), minlength=2 * self.n_units).astype(np.int64)


def served(trace: RoutingTrace, batch: int = 1, prefill: Prefill = "one step") -> Served:
    """Requests in the trace's order, ``batch`` at a time: the next ones begin when all of these have ended.

    In a step each of them has its next token computed. With ``prefill="one step"`` their prompts are read in one step
    before; without, and where the trace has no generated token, prompt tokens are steps like others.
    """
    unit = np.arange(len(trace.sequences)) // batch
    of = unit[trace.sequence]
    prompt = ~trace.generated if prefill == "one step" and trace.generated.any() else np.zeros(len(trace), bool)
    first = np.searchsorted(trace.sequence, trace.sequence)  # row of the sequence's first token
    later = np.concatenate([[0], np.cumsum(~prompt)])
    within = np.where(prompt, 0, 1 + later[:-1] - later[first])
    order = np.lexsort((within, of))
    new = np.ones(len(trace), bool)
    new[1:] = (np.diff(of[order]) != 0) | (np.diff(within[order]) != 0)
    begins = np.flatnonzero(new)
    cell = 2 * of[order[begins]] + prompt[order[begins]]
    return Served(order, np.append(begins, len(trace)).astype(np.int64), cell.astype(np.int64), unit)
