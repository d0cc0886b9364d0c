"""Curves of several ways over one size, beside the band of random ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes

from moescope.report.style import PURPLE, SOFT, band


def beside_random(
    axes: Axes, rows: Mapping[str, pd.DataFrame], x: str, y: str, ways: Sequence[tuple[str, str, str, str]], of: str
) -> None:
    """Draw column ``y`` over column ``x``: of "random" the mean in the band of 95 %, of the first way its interval too.

    Args:
        rows: by way, in the order of ``x``.
        ways: name, label, colour and marker of each.
        of: what the random ones are, in a word.
    """
    random = rows["random"]
    band(axes, random[x], random["low"], random["high"], SOFT, label=f"95 % of random {of}")
    axes.plot(random[x], random[y], "--", color=PURPLE, lw=0.9, label="their mean")
    for i, (name, label, ink, mark) in enumerate(ways):
        own = rows[name]
        axes.plot(own[x], own[y], color=ink, marker=mark, ms=3, lw=1.1, label=label)
        if i == 0:
            band(axes, own[x], own["low"], own["high"], ink)
