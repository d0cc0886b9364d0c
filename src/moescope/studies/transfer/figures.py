"""The figure of transfer."""

from __future__ import annotations

from matplotlib.figure import Figure

from moescope.report.registry import TableFigure, Tables
from moescope.report.style import heat_cells, letter, new_figure


def _layers(tables: Tables) -> Figure:
    frame = tables["similarity"].dropna(subset=["layer_a", "layer_b"])
    table = frame.pivot(index="layer_a", columns="layer_b", values="rho")
    figure = new_figure(0.9 + 0.3 * min(12, len(table)), width=4.6)
    axes = figure.subplots()
    heat_cells(axes, table.to_numpy(), 0.0, 1.0)
    for set_ticks, numbers in ((axes.set_xticks, table.columns), (axes.set_yticks, table.index)):
        step = max(1, -(-len(numbers) // 12))
        set_ticks(range(0, len(numbers), step), [str(int(n)) for n in numbers[::step]])
    axes.set_xlabel("layer of B")
    axes.set_ylabel("layer of A")
    letter(axes, 0, "Spearman of the prompts' similarities")
    return figure


FIGURES: tuple[TableFigure, ...] = (
    (
        "layers",
        "similarity",
        "Which layers of two models group prompts alike",
        "Spearman correlation of the similarities between prompts, for every layer of A with every layer of B.",
        _layers,
    ),
)
