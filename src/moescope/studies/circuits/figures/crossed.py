"""Two properties of the same texts: each circuit edited, and both probes read."""

from __future__ import annotations

from matplotlib.figure import Figure

from moescope.report.registry import Tables
from moescope.report.style import FAINT, SOFT, VERMILLION, errors, letter, name_rows, new_figure

CAPTION = (
    "What setting either circuit to its mean costs a probe of either property, as a share of its log-odds of "
    "the right class, with "
    "the 95 % interval over groups; grey bars hold 95 % of random sets of the same layers and size of change. "
    "Last the contrast: "
    "half of what each edit costs its own property more than the other."
)


def crossed(tables: Tables) -> Figure:
    frame = tables["crossed_edits"]
    figure = new_figure(1.9, 4.2)
    axes = figure.subplots()
    for y, row in enumerate(frame.to_dict("records")):
        axes.plot([row["random_low"], row["random_high"]], [y, y], color=SOFT, lw=5, alpha=0.5, solid_capstyle="butt")
        bars = errors([row["cost"]], [row["low"]], [row["high"]])
        axes.errorbar(row["cost"], y, xerr=bars, fmt="o", color=VERMILLION, ms=4, elinewidth=1)
    names = [
        "contrast" if a == b == "contrast" else f"{a} edited, {b}" for a, b in zip(frame["edited"], frame["read"], strict=True)
    ]
    name_rows(axes, names, room=0.45)
    axes.axvline(0, color=FAINT, lw=0.8, zorder=0)
    axes.set_ylim(len(frame) - 0.5, -0.5)
    axes.set_xlabel("share of the log-odds that is gone")
    letter(axes, 0, "Edits")
    return figure
