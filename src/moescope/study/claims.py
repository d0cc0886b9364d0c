"""Claims as a table."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from moescope.types import Claim

COLUMNS = ("name", "published", "measured", "low", "high", "null", "p", "verdict", "note")


def claims_frame(claims: Iterable[Claim]) -> pd.DataFrame:
    """One row per claim, columns :data:`COLUMNS`; ``low`` and ``high`` are the interval (NaN where there is none).

    ``published``, ``measured`` and ``null`` keep their type (number or text) and are therefore object columns.
    """
    rows = [
        (c.name, c.published, c.measured, *(c.interval or (float("nan"),) * 2), c.null, c.p, c.verdict, c.note) for c in claims
    ]
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    for column in ("published", "measured", "null"):
        frame[column] = pd.Series([r[COLUMNS.index(column)] for r in rows], dtype=object, index=frame.index)
    for column in ("low", "high", "p"):
        frame[column] = pd.to_numeric(frame[column]).astype("float64")
    return frame
