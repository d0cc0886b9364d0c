"""Texts that keep to their room, whatever font draws them: measured when a figure is drawn, then wrapped, slanted or shortened.

Matplotlib's constrained layout makes room for the height of titles and axis labels, not for their length, and for names along
an axis however long they are. :class:`Fitted` is that layout with one more step, taken the first time that a figure is drawn.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any, Protocol

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis, XAxis
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text
from matplotlib.transforms import Bbox

SLACK = 0.97  # of the room is used, since other resolutions round otherwise
_GAP = 4.0  # points between one panel's text and the next panel
_ESCAPED = re.compile(r"\\u[0-9a-f]{2}|\\U000")
_JOINED = re.compile(r"(?<=[_/-])\n")
_PIECE = re.compile(r"[^ _/-]*(?:[ _/-]+|$)")  # a text may be broken after a space, and after the joints of a name


class Part(Protocol):
    """What is fitted together: a legend, the names along an axis, the numbers of a heat map.

    ``axis`` is the axis whose ticks it names, if it does.
    """

    @property
    def axis(self) -> Axis | None: ...

    def fit(self) -> bool:
        """Adapt to the present layout; whether anything changed."""


class Fitted(ConstrainedLayoutEngine):
    """Constrained layout that then fits texts to the room they got.

    ``parts`` are fitted by themselves; ``titles`` are kept within their panel's column and ``headings``, which stand left of a
    row of panels, within its height. ``settings`` are the rcParams to do it with, whatever holds when the figure is drawn. A
    figure is laid out once for its size, so that it looks the same in every file.
    """

    def __init__(self, settings: Any) -> None:
        super().__init__(w_pad=0.05, h_pad=0.05, wspace=0.03, hspace=0.05)
        self._settings = settings
        self.note: Text | None = None  # an empty one at the page's left edge, for what is said about all texts
        self.parts: list[Part] = []
        self.titles: list[tuple[Axes, Text]] = []
        self.headings: list[tuple[Axes, Text]] = []
        self._size: tuple[float, float] | None = None

    def execute(self, fig: Any) -> None:
        size = tuple(fig.get_size_inches())
        if size == self._size:
            return
        _WIDTHS.clear()
        with mpl.rc_context(self._settings):  # ticks are made when they are first asked for
            self._lay_out(fig)
        self._size = size

    def _lay_out(self, fig: Any) -> None:
        for axes, title in self.titles:  # the layout counts a title at the left by half its length
            keep(title, 0.9 * column_width(axes), 2)
        super().execute(fig)
        if self.note is not None and any(_ESCAPED.search(t.get_text()) for t in fig.findobj(Text)):
            self.note.set(text="\\u…: a character that no font here can draw", in_layout=True)
            super().execute(fig)
        for step in (self._parts, self._parts, self._texts, self._parts, self._texts, self._parts):
            if step(fig):
                super().execute(fig)

    def _parts(self, figure: Figure) -> bool:
        named = {part.axis for part in self.parts}
        changed = [part.fit() for part in self.parts]
        for axes in _shown(figure):
            changed += [_thin(axes, axis) for axis in (axes.xaxis, axes.yaxis) if axis not in named]
        return any(changed)

    def _texts(self, figure: Figure) -> bool:
        page, point = figure.bbox, figure.dpi / 72
        boxes = {axes: box for axes in _shown(figure) if (box := axes.get_tightbbox(for_layout_only=True)) is not None}
        changed = [keep(t, (page.height if t is self.note else page.width) - 8 * point, 2) for t in figure.texts]

        def end(axes: Axes, bottom: float, top: float) -> float:
            """Where the next panel to the right begins between two heights, or the page ends."""
            beside = [b.x0 for o, b in boxes.items() if o is not axes and b.y0 < top and b.y1 > bottom]
            return float(min([page.x1, *(x for x in beside if x > axes.bbox.x0 + point)]) - _GAP * point)

        for axes, title in self.titles:
            box = title.get_window_extent()
            changed.append(keep(title, end(axes, box.y0, box.y0 + 24 * point) - box.x0, 2))
        for axes, heading in self.headings:
            changed += [keep(heading, axes.bbox.height, 2), not heading.get_in_layout()]
            heading.set_in_layout(True)
        for axes, own in boxes.items():
            middle = (axes.bbox.x0 + axes.bbox.x1) / 2
            half = min(middle - max(own.x0, page.x0), end(axes, own.y0, own.y1) - middle)
            changed.append(keep(axes.xaxis.label, 2 * half, 3))
            middle = (axes.bbox.y0 + axes.bbox.y1) / 2
            changed.append(keep(axes.yaxis.label, 2 * min(middle - own.y0, own.y1 - middle), 2))
        return any(changed)


def figure_of(artist: Artist) -> Figure:
    """The figure that ``artist`` is drawn in."""
    figure = artist.figure
    if not isinstance(figure, Figure):
        raise ValueError(f"{artist} is in no figure")
    return figure


def engine_of(axes: Axes) -> Fitted | None:
    """The layout that fits the figure of ``axes``; None where someone else laid the figure out."""
    engine = figure_of(axes).get_layout_engine()
    return engine if isinstance(engine, Fitted) else None


def cut(text: str, length: int) -> str:
    """``text`` in at most ``length`` characters; the middle goes, since names often differ at the end."""
    if len(text) <= length:
        return text
    tail = (length - 1) // 2
    return f"{text[: length - 1 - tail].rstrip()}…{text[len(text) - tail :].lstrip()}"


_WIDTHS: dict[tuple[str, int, float], float] = {}  # of the figure that is being fitted: the same strings are tried often


def width_of(text: Text, string: str) -> float:
    """How many pixels wide ``string`` would be in the place and the font of ``text``."""
    key = (string, hash(text.get_fontproperties()), figure_of(text).dpi)
    if key not in _WIDTHS:
        was, angle = text.get_text(), text.get_rotation()
        text.set(text=string, rotation=0)
        _WIDTHS[key] = float(text.get_window_extent().width)
        text.set(text=was, rotation=angle)
    return _WIDTHS[key]


def wrapped(text: Text, string: str, width: float, lines: int) -> str:
    """``string`` broken into at most ``lines`` lines of ``width`` pixels, and cut where it still does not fit."""
    whole = broken(text, string, width, lines)
    low, high = 3, len(string)
    while whole is None and low < high:
        length = (low + high + 1) // 2
        if broken(text, cut(string, length), width, lines) is None:
            high = length - 1
        else:
            low = length
    return whole or broken(text, cut(string, low), width, lines) or cut(string, low)


def keep(text: Text, width: float, lines: int) -> bool:
    """Wrap or cut ``text`` if it is longer than ``width`` pixels; whether it was."""
    string = text.get_text()
    if not string or not text.get_visible() or width <= 0 or width_of(text, string) <= width:
        return False
    new = wrapped(text, _JOINED.sub("", string).replace("\n", " "), SLACK * width, lines)
    text.set_text(new)
    return new != string


def broken(text: Text, string: str, width: float, lines: int) -> str | None:
    """``string`` in lines of at most ``width`` pixels, or None if it takes more than ``lines``."""
    done, line = [], ""
    for piece in _PIECE.findall(string) if lines > 1 else [string]:
        if line and width_of(text, (line + piece).rstrip()) > width:
            done.append(line.rstrip())
            line = ""
        line += piece
        if len(done) >= lines or width_of(text, line.rstrip()) > width:
            return None
    return "\n".join([*done, line.rstrip()])


def _shown(figure: Figure) -> list[Axes]:
    return [axes for axes in figure.axes if axes.get_visible() and axes.axison]


def _thin(axes: Axes, axis: Axis) -> bool:
    """Label every second tick only, where labels touch."""
    low, high = sorted(axis.get_view_interval())
    pairs = zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=False)
    shown = [(at, t) for at, t in pairs if low <= at <= high and t.get_visible() and t.get_text()]
    places = sorted(_along(axis, t.get_window_extent()) for _, t in shown)
    if all(b[0] - a[1] >= 1 for a, b in pairwise(places)):
        return False
    axis.set_ticks([at for at, _ in shown[::2]], [t.get_text() for _, t in shown[::2]])
    return True


def _along(axis: Axis, box: Bbox) -> tuple[float, float]:
    return (box.x0, box.x1) if isinstance(axis, XAxis) else (box.y0, box.y1)


def column_width(axes: Axes) -> float:
    """Pixels of the page's width that fall to the panel's column."""
    spec, page = axes.get_subplotspec(), figure_of(axes).bbox.width
    if spec is None:
        return float(page)
    ratios: Any = spec.get_gridspec().get_width_ratios()
    return float(page * sum(ratios[i] for i in spec.colspan) / sum(ratios))
