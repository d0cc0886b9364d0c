"""Claims as a table."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from moescope.types import Claim

COLUMNS = (
    *("id", "statement", "published", "source", "measured", "low", "high", "control", "control_value"),
    *("p", "p_adjusted", "family", "outcome", "explanation", "words"),
)


def claims_frame(claims: Iterable[Claim]) -> pd.DataFrame:
    """One row per claim, columns :data:`COLUMNS`; ``low`` and ``high`` are the interval (NaN where there is none).

    ``published``, ``measured`` and ``control_value`` keep their type (number or text) and are therefore object columns.
    """
    rows = [_row(c) for c in claims]
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    for column in ("published", "measured", "control_value"):
        frame[column] = pd.Series([r[column] for r in rows], dtype=object, index=frame.index)
    for column in ("low", "high", "p", "p_adjusted"):
        frame[column] = pd.to_numeric(frame[column]).astype("float64")
    return frame


def _row(c: Claim) -> dict[str, object]:
    low, high = c.interval or (float("nan"),) * 2
    published = (None, None) if c.published is None else (c.published.value, c.published.source)
    control = (None, None) if c.control is None else (c.control.name, c.control.value)
    values = (c.id, c.statement, *published, c.measured, low, high, *control, c.p, c.p_adjusted, c.family)
    return dict(zip(COLUMNS, (*values, c.outcome, c.explanation, c.words), strict=True))
