"""The figures of residency: hit rates and loads by capacity, layers, domains, and the busiest device."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from moescope.report.registry import TableFigure, Tables
from moescope.report.style import (
    BLUE,
    INK,
    ORANGE,
    SOFT,
    band,
    color,
    errors,
    layer_axis,
    legend,
    legend_below,
    letter,
    levels,
    marker,
    name_axis,
    new_figure,
)


def _curves(tables: Tables) -> Figure:
    frame = tables["policies"]
    figure = new_figure(2.9)
    left, right = figure.subplots(1, 2)
    several = frame.groupby("policy")["capacity"].transform("nunique") == frame["capacity"].nunique()
    for i, name in enumerate(levels(frame[several], "policy")):
        rows = frame[frame["policy"] == name].sort_values("capacity")
        uniform, fewest = name.startswith("uniform"), name.endswith("fewest possible")
        ink = SOFT if uniform else INK if fewest else color(i)
        look = {"color": ink, "ls": ":" if uniform and fewest else "--" if uniform or fewest else "-", "ms": 3}
        for axes, column in ((left, "hit_rate"), (right, "loaded")):
            axes.plot(rows["capacity"], rows[column], marker=marker(i), label=name, **look)
        band(left, rows["capacity"], rows["low"], rows["high"], ink)
    left.set_ylabel("share of needed experts that are there")
    right.set_ylabel("experts loaded a token, all layers")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.set_xlabel("experts held in each layer")
    letter(left, 0, "Hits")
    letter(right, 1, "Loads")
    legend_below(left, columns=3)
    return figure


def _layers(tables: Tables) -> Figure:
    frame = tables["layers"]
    figure = new_figure(2.4)
    axes = figure.subplots()
    said = (
        ("lru", BLUE, "last used"),
        ("static", ORANGE, "pinned"),
        ("fewest", INK, "fewest loads"),
        ("uniform", SOFT, "uniform router"),
    )
    for i, (column, ink, label) in enumerate(said):
        axes.plot(frame["layer"], frame[column], color=ink, marker=marker(i), ms=3, label=label)
    axes.set_ylabel("hit rate")
    layer_axis(axes, int(frame["layer"].max()) + 1)
    legend(axes, columns=4)
    return figure


def _domains(tables: Tables) -> Figure:
    frame = tables["domains"]
    figure = new_figure(2.4)
    axes = figure.subplots()
    names = levels(frame, "category")
    for i, pinned in enumerate(levels(frame, "pinned_by")):
        rows = frame[frame["pinned_by"] == pinned]
        x = rows["category"].map(names.index).to_numpy() + 0.2 * (i - 0.5)
        span = errors(rows["hit_rate"], rows["low"], rows["high"])
        axes.errorbar(x, rows["hit_rate"], yerr=span, color=color(i), marker=marker(i), ls="none", label=f"pinned by {pinned}")
    name_axis(axes, names)
    axes.set_ylabel("hit rate")
    legend(axes, columns=2)
    return figure


def _devices(tables: Tables) -> Figure:
    frame = tables["placement"]
    figure = new_figure(2.4)
    left, right = figure.subplots(1, 2)
    numbers = sorted(frame["devices"].unique())
    for i, name in enumerate(levels(frame, "placement")):
        rows = frame[frame["placement"] == name].sort_values("devices")
        x = np.arange(len(numbers)) + 0.2 * (i - 1)
        ink = SOFT if name == "random" else color(i)
        span = errors(rows["busiest"], rows["low"], rows["high"])
        left.errorbar(x, rows["busiest"], yerr=span, color=ink, marker=marker(i), ls="none", label=name)
        right.plot(x, rows["busiest_in_batch"], color=ink, marker=marker(i), ls="none")
    for axes in (left, right):
        axes.set_xticks(range(len(numbers)), [str(n) for n in numbers])
        axes.set_xlim(-0.6, len(numbers) - 0.4)
        axes.set_xlabel("devices")
        axes.axhline(1, color=SOFT, lw=0.6)
    left.set_ylabel("busiest device over the mean")
    letter(left, 0, "All requests that judge")
    letter(right, 1, "In a batch of them")
    legend(left, columns=3)
    return figure


FIGURES: tuple[TableFigure, ...] = (
    (
        "policies",
        "policies",
        "What a cache of experts hits and loads",
        "By experts held in each layer: the share of needed experts that are there, with 95 % intervals over groups of "
        "requests, and the experts loaded a token, for each rule; the fewest loads possible (who knows the future) dashed, a "
        "uniform router of the same tokens in grey.",
        _curves,
    ),
    ("layers", "layers", "Hits by layer", "At the judged capacity, by layer.", _layers),
    (
        "domains",
        "domains",
        "From one domain to another",
        "Hit rates of each category's requests, served alone, when the experts are pinned by other requests of that category "
        "or by those of all others; 95 % intervals over groups of requests.",
        _domains,
    ),
    (
        "placement",
        "placement",
        "How unevenly devices are loaded",
        "Load of the busiest device over the mean of all, by number of devices: experts placed in order, by the load of other "
        "requests, or at random (95 % of the placements). Left on all requests that judge, right in batches of them.",
        _devices,
    ),
)
