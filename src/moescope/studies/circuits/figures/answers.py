"""Whether the model's own answer is right: what can be told from outside, and what its neurons add."""

from __future__ import annotations

from matplotlib.figure import Figure

from moescope.report.registry import Tables
from moescope.report.style import BLUE, FAINT, VERMILLION, errors, legend_below, letter, levels, name_rows, new_figure, shorten

CAPTION = (
    "How well right answers of the model are told from wrong ones (AUROC, held out): by what can be seen without looking "
    "inside it (with the 95 % interval over groups), and by that and the circuit together. What is asked is how far the "
    "second lies to the right of the first; the line is a guess."
)


def beyond_answers(tables: Tables) -> Figure:
    frame = tables["beyond_answers"]
    tasks = levels(frame, "task")
    figure = new_figure(2.2 * len(tasks), 4.2)
    panels = figure.subplots(len(tasks), squeeze=False)[:, 0]
    for index, (axes, task) in enumerate(zip(panels, tasks, strict=True)):
        rows = frame[frame["task"] == task]
        places = range(len(rows))
        bars = errors(rows["rival_auroc"], rows["rival_low"], rows["rival_high"])
        axes.errorbar(rows["rival_auroc"], places, xerr=bars, fmt="s", color=BLUE, ms=4, elinewidth=1, label="alone")
        above = [y - 0.25 for y in places]
        axes.plot(rows["both_auroc"], above, "o", color=VERMILLION, ms=4, label="with the circuit")
        name_rows(axes, list(rows["rival"]), room=0.45)
        axes.axvline(0.5, color=FAINT, lw=0.8, zorder=0)
        axes.set_ylim(len(rows) - 0.5, -0.7)
        axes.set_xlabel("AUROC")
        letter(axes, index, f"{shorten(task, 20)}, {rows['at'].iloc[0]}")
    legend_below(panels[-1])
    return figure
