"""In what two results of one command differ, but for what the clock says, and for what they were spread over."""

from __future__ import annotations

import pandas as pd

from moescope import StudyResult
from moescope.types import Claim

CLOCKED: dict[str, dict[str, list[str] | None]] = {
    "exit": {"speed": None, "frontier": ["time"]},
    "route": {"speed": None},
    "convert": {"speed": None},
    "sparsify": {
        "speed": None,
        "frontier": ["tokens_per_second", "over_8_bits", "over_8_bits_low", "over_8_bits_high", "mlp_over_8_bits"],
    },
}
CLOCKED["robustness"] = {"speed": None}  # which has no such table: its claims hold times
"""of each study the tables that hold times, and in which columns (None: all)"""
_TOLD = ("rows", "controls", "settings", "run", "forward_tokens")


def difference(now: StudyResult, whole: StudyResult) -> str | None:
    """The first difference, to the last bit; None where there is none."""
    clocked = CLOCKED.get(whole.kind, {})
    if now.tables.keys() != whole.tables.keys():
        return f"tables {sorted(now.tables.keys() ^ whole.tables.keys())}"
    for name, table in whole.tables.items():
        times = clocked.get(name, [])
        if times is None:
            continue
        try:
            frames = (frame.drop(columns=times, errors="ignore") for frame in (now.tables[name], table))
            pd.testing.assert_frame_equal(*frames, check_exact=True)
        except AssertionError as error:
            return f"table {name}: {' '.join(str(error).split())[:300]}"
    if now.circuits != whole.circuits or len(now.claims) != len(whole.claims):
        return "circuits, or the number of claims"
    for a, b in zip(now.claims, whole.claims, strict=True):
        if str(a) != str(b) and not (clocked and _of_times(a)):  # as text: NaN is itself
            return f"claim {a} was {b}"
    told = (*_TOLD, *(() if clocked and whole.kind != "sparsify" else ("notes",)))  # whose notes hold no time
    return next((f"{key}: {now.meta.get(key)}" for key in told if _told(now, key) != _told(whole, key)), None)


def _told(result: StudyResult, key: str) -> object:
    found = result.meta.get(key)
    return {name: value for name, value in found.items() if name != "engine"} if key == "run" and found else found


def _of_times(claim: Claim) -> bool:
    return any(word in f"{claim.statement} {claim.words}" for word in ("clock", "faster", "time", "second", "speed"))
