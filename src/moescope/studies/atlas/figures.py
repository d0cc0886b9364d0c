"""The figure of an atlas: how much experts prefer tokens and categories, layer by layer."""

from __future__ import annotations

from matplotlib.figure import Figure

from moescope.report.registry import TableFigure, Tables
from moescope.report.style import BLUE, ORANGE, SOFT, VERMILLION, layer_axis, legend_below, letter, new_figure

_LINES = (
    ("{}_bits", "all tokens", BLUE, "o", "-"),
    ("identity_bits", "token identity alone", VERMILLION, "^", "-"),
    ("prompt_{}_bits", "prompts alone", SOFT, "s", "-"),
    ("twin_{}_bits", "prompts alone, an untrained twin", ORANGE, "D", "--"),
)


def _layers(tables: Tables) -> Figure:
    frame = tables["layers"]
    figure = new_figure(2.7)
    panels = figure.subplots(1, 2)
    for i, (axes, what) in enumerate(zip(panels, ("token", "category"), strict=True)):
        for name, label, ink, marker, style in _LINES:
            column = name.format(what)
            if column in frame and (what == "category" or column != "identity_bits"):
                axes.plot(frame["layer"], frame[column], color=ink, marker=marker, ms=3, ls=style, label=label)
        axes.axhline(0, color=SOFT, lw=0.6)
        axes.set_ylabel("preference, bits")
        layer_axis(axes, int(frame["layer"].max()) + 1)
        letter(axes, i, f"Preference for {'characteristic tokens' if what == 'token' else 'a category'}")
    legend_below(panels[1], columns=4)
    return figure


FIGURES: tuple[TableFigure, ...] = (
    (
        "layers",
        "layers",
        "What experts prefer on prompts that did not choose it",
        "Left: how much oftener than at its usual rate an expert gets the tokens that are characteristic of it on the other "
        "half of the prompts (log2, the experts of a layer together). Right: the same of the category that it prefers there, "
        "beside what the identity of tokens alone would give. On prompts alone, beside an untrained twin.",
        _layers,
    ),
)
