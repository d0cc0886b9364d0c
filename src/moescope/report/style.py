"""One look for all figures: 7 pt text, thin axes, a palette that colour-blind readers can tell apart.

All text is set in DejaVu Sans, which matplotlib brings along, so that a figure is laid out alike on every machine; another font
of the machine is asked only for characters that DejaVu Sans lacks. In an SVG, text is drawn as paths: a browser without the
font would set it in a wider one and clip it. No text is read as mathematics, so names may hold dollar signs.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogFormatter, NullFormatter
from matplotlib.transforms import ScaledTranslation

from moescope.report import fonts, hover, parts
from moescope.report.fit import Fitted, engine_of, figure_of
from moescope.report.fonts import full_names as full_names
from moescope.report.fonts import plain as plain
from moescope.report.fonts import shorten as shorten

_LETTER = 10.5  # points from a panel's letter to its title
WIDTH = 7.2  # inches: two columns of a journal page
INK, SOFT, FAINT = "#22262b", "#6b7178", "#c9cdd2"

# Okabe & Ito's palette (their order changed, yellow left out: it vanishes on white).
BLUE, VERMILLION, GREEN, SKY, PURPLE, ORANGE = "#0072B2", "#D55E00", "#009E73", "#56B4E9", "#CC79A7", "#E69F00"
SERIES = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)
MARKERS = ("o", "s", "^", "D", "v", "P")
HEAT = "cividis"

_RC: Any = {
    "text.parse_math": False,
    "text.hinting": "none",  # else a text's width would depend on the resolution
    "font.size": 7,
    "axes.titlesize": 7.5,
    "axes.titleweight": "regular",
    "axes.titlelocation": "left",
    "axes.titlepad": 5,
    "axes.labelsize": 7,
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.2,
    "patch.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 6.5,
    "legend.handlelength": 1.6,
    "legend.borderaxespad": 0.2,
    "legend.labelspacing": 0.25,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.fonttype": "path",
    "svg.hashsalt": "moescope",
    "pdf.fonttype": 42,
    "axes.unicode_minus": True,
}


@contextlib.contextmanager
def look() -> Iterator[None]:
    """The style, for as long as the context is open; matplotlib's own settings are untouched outside it."""
    with mpl.rc_context():
        mpl.rcdefaults()  # a user's matplotlibrc must not change a stored figure
        mpl.rcParams.update(_settings())
        yield


def _settings() -> Any:
    return _RC | {"font.family": [fonts.FONT, *fonts.further_fonts()]}


class Drawing(Figure):
    """A figure that a notebook shows by itself, where nobody has imported pyplot too."""

    def _repr_png_(self) -> bytes:
        out = io.BytesIO()
        with look():
            self.savefig(out, format="png", dpi=130)
        return out.getvalue()


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """A figure of ``width`` × ``height`` inches that no pyplot state knows about."""
    engine = Fitted(_settings())
    figure = Drawing(figsize=(width, height), layout=engine)
    FigureCanvasAgg(figure)
    engine.note = figure.supylabel("", fontsize=5.5, in_layout=False)
    return figure


def columns_for(panels: int, most: int = 4) -> int:
    """In how many columns so many panels stand with the least room left over."""
    return panels if panels < most else min(range(most, 1, -1), key=lambda n: -panels % n)


def letter(axes: Axes, index: int, title: str) -> None:
    """Head a panel with its letter and what it shows, wrapped where it is too long for the panel."""
    text = axes.set_title(plain(title))
    pad = ScaledTranslation(_LETTER / 72, mpl.rcParams["axes.titlepad"] / 72, figure_of(axes).dpi_scale_trans)
    text.set_transform(axes.transAxes + pad)
    axes.annotate(
        "abcdefghijklmnopqrstuvwxyz"[index % 26], (0, 1), xytext=(-_LETTER, 0), xycoords=text, textcoords="offset points",
        ha="left", va="top", fontweight="bold", fontsize=mpl.rcParams["axes.titlesize"], annotation_clip=False,
    )  # fmt: skip
    if (engine := engine_of(axes)) is not None:
        engine.titles.append((axes, text))


def heading(axes: Axes, name: str) -> None:
    """Write what a row of panels is about left of its first panel's axis label."""
    text = axes.annotate(
        plain(name), (0, 0.5), xytext=(-3, 0), xycoords=axes.yaxis.label, textcoords="offset points", rotation=90,
        ha="right", va="center", fontweight="bold", annotation_clip=False,
    )  # fmt: skip
    if (engine := engine_of(axes)) is not None:
        text.set_in_layout(False)  # until it is cut to the row's height
        engine.headings.append((axes, text))


@dataclass(frozen=True)
class ClassStyle:
    """Colour and marker of one class: told apart without colour too."""

    color: str
    marker: str


def class_styles(classes: Sequence[str]) -> dict[str, ClassStyle]:
    """A style for each class, as many as can be told apart; the classes after these are left out."""
    return {name: ClassStyle(color(i), marker(i)) for i, name in enumerate(classes[: len(SERIES)])}


def class_legend(axes: Axes, classes: Sequence[str]) -> None:
    """A legend of the classes that :func:`class_styles` shows, and of how many it leaves out."""
    styles = class_styles(classes)
    for name, style in styles.items():
        axes.scatter([], [], s=16, marker=style.marker, color=style.color, label=shorten(name, 18))
    if len(classes) > len(styles):
        axes.scatter([], [], s=0, color="none", label=f"{len(classes) - len(styles)} more classes not shown")
    legend(axes, columns=3)


def of_task(frame: pd.DataFrame | None, task: str) -> pd.DataFrame:
    """The rows of ``frame`` that speak of ``task``; empty where there is no table."""
    if frame is None or "task" not in frame:
        return pd.DataFrame()
    return frame[frame["task"].astype(str) == task]


def band(
    axes: Axes, x: Iterable[float], low: Iterable[float], high: Iterable[float], ink: str, label: str | None = None
) -> None:
    """An interval along a curve; where a bound is missing there is none."""
    axes.fill_between(
        np.asarray(x, dtype=float), np.asarray(low, dtype=float), np.asarray(high, dtype=float),
        color=ink, alpha=0.18, lw=0, label=label,
    )  # fmt: skip


def legend(axes: Axes, *, columns: int = 1) -> None:
    """A legend in room made for it above the data, so that it hides nothing; the room has no ticks."""
    handles, _ = axes.get_legend_handles_labels()
    if not handles:
        return
    start, end = axes.get_ylim()
    if not isinstance(axes.yaxis.get_major_locator(), FixedLocator):
        axes.set_yticks([t for t in axes.get_yticks() if min(start, end) <= t <= max(start, end)])
    part = parts.Legend(axes, min(columns, len(handles)), start, end)
    part.draw()
    if (engine := engine_of(axes)) is not None:
        engine.parts.append(part)


def legend_below(axes: Axes, *, columns: int = 4) -> None:
    """One legend for all panels, below them, of what ``axes`` shows: for names that may be long or many."""
    handles, labels = axes.get_legend_handles_labels()
    parts.legend_below(figure_of(axes), handles, labels, min(columns, max(1, len(handles))))


def color(index: int) -> str:
    return SERIES[index % len(SERIES)]


def marker(index: int) -> str:
    return MARKERS[index % len(MARKERS)]


def levels(frame: pd.DataFrame, column: str) -> list[str]:
    """The distinct values of ``column`` in order of appearance."""
    return [str(v) for v in frame[column].dropna().unique()]


def errors(value: Iterable[float], low: Iterable[float], high: Iterable[float]) -> np.ndarray:
    """Distances (2, n) below and above ``value`` for error bars; what is missing or the wrong way round is 0."""
    v, lo, hi = (np.fromiter(x, dtype=float) for x in (value, low, high))
    return np.asarray(np.nan_to_num(np.clip(np.stack([v - lo, hi - v]), 0, None)))


def log_k(axes: Axes, ks: Sequence[int], *, spacing: float = 0.085) -> None:
    """A logarithmic axis of circuit sizes that labels the sizes themselves, at least ``spacing`` of the axis apart."""
    ks = sorted({int(k) for k in ks if k > 0})
    if not ks:
        return
    log_scale(axes, "x")
    axes.xaxis.set_minor_formatter(NullFormatter())
    keep: list[int] = []
    span = max(np.log10(ks[-1] / ks[0]), 1e-9)
    for k in ks:
        if not keep or np.log10(k / keep[-1]) / span > spacing:
            keep.append(k)
    axes.set_xticks(keep, [f"{k:g}" for k in keep])
    axes.set_xlabel("neurons in the circuit, K")


def log_scale(axes: Axes, along: str, base: float = 10) -> None:
    """A logarithmic axis whose numbers are plain text; matplotlib's own would be mathematics."""
    (axes.set_xscale if along == "x" else axes.set_yscale)("log", base=base)
    axis = axes.xaxis if along == "x" else axes.yaxis
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("-", "−")))
    axis.set_minor_formatter(LogFormatter(base) if base == 10 else NullFormatter())


def name_axis(axes: Axes, names: Sequence[str], length: int = 14, at: Sequence[float] | None = None) -> None:
    """Names along x at 0, 1, … (or ``at``): level where they fit, else cut to ``length`` characters and slanted."""
    places = list(range(len(names)) if at is None else at)
    axes.set_xticks(places, [shorten(name, length) for name in names], rotation=30, ha="right", rotation_mode="anchor")
    _fit_names(axes, "x", [plain(n) for n in names], places, 0.0)


def name_rows(
    axes: Axes, names: Sequence[str], at: Sequence[float] | None = None, *, room: float = 0.34, size: float = 6.5
) -> None:
    """Names along y at 0, 1, … (or ``at``), in up to ``room`` of the panel's share of the page's width."""
    places = list(range(len(names)) if at is None else at)
    axes.set_yticks(places, [shorten(name, 14) for name in names])
    _fit_names(axes, "y", [plain(n) for n in names], places, room, size)


def _fit_names(axes: Axes, along: str, names: Sequence[str], at: Sequence[float], room: float, size: float = 6.5) -> None:
    axis = axes.xaxis if along == "x" else axes.yaxis
    if list(at) == list(range(len(names))):
        hover.named(axis, names)
    if (engine := engine_of(axes)) is not None:
        engine.parts.append(parts.Names(axis, names, at, size, room))


def layer_axis(axes: Axes, n_layers: int) -> None:
    """Whole layer numbers along x, half a layer of room at both ends."""
    step = max(1, int(np.ceil(n_layers / 8)))
    axes.set_xticks(range(0, n_layers, step))
    axes.set_xlim(-0.6, n_layers - 0.4)
    axes.set_xlabel("layer")


def heat_cells(axes: Axes, values: np.ndarray, low: float, high: float, texts: Sequence[Sequence[str]] | None = None) -> None:
    """A matrix as squares with its numbers in them, dark on light and light on dark; a large one with a colour bar instead."""
    image = axes.imshow(np.ma.masked_invalid(values), cmap=HEAT, vmin=low, vmax=high, aspect="auto")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    rows, columns = values.shape
    if max(rows, columns) > 12:
        bar = axes.figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02)
        bar.outline.set_visible(False)
        return
    drawn = []
    for i in range(rows):
        for j in range(columns):
            if np.isfinite(values[i, j]):
                text = texts[i][j] if texts is not None else f"{values[i, j]:.2f}"
                ink = _ink_on(image.to_rgba(values[i, j]))
                drawn.append(axes.text(j, i, text, ha="center", va="center", color=ink, fontsize=6.5, in_layout=False))
    if drawn and (engine := engine_of(axes)) is not None:
        engine.parts.append(parts.Cells(axes, drawn, columns, rows))


def _ink_on(background: Any) -> str:
    """Black or white, whichever contrasts more with an RGB colour (relative luminance, WCAG 2.2)."""
    rgb = np.asarray(background[:3], dtype=float)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return "white" if float(linear @ (0.2126, 0.7152, 0.0722)) < 0.179 else "black"
