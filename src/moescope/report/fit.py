"""Texts that keep to their room, whatever font draws them: measured when a figure is drawn, then wrapped, slanted or shortened.

Matplotlib's constrained layout makes room for the height of titles and axis labels, not for their length, and for names along
an axis however long they are. :class:`Fitted` is that layout with one more step, taken the first time that a figure is drawn.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text
from matplotlib.transforms import Bbox

_SLACK = 0.97  # of the room is used, since other resolutions round otherwise
_GAP = 4.0  # points between one panel's text and the next panel
_SMALLEST = 4.5  # points: names shrink to this before they are cut
_ESCAPED = re.compile(r"\\u[0-9a-f]{2}|\\U000")
_JOINED = re.compile(r"(?<=[_/-])\n")
_PIECE = re.compile(r"[^ _/-]*(?:[ _/-]+|$)")  # a text may be broken after a space, and after the joints of a name


class Part(Protocol):
    """What is fitted together: a legend, the names along an axis, the numbers of a heat map."""

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
            keep(title, 0.9 * _column(axes), 2)
        super().execute(fig)
        if self.note is not None and any(_ESCAPED.search(t.get_text()) for t in fig.findobj(Text)):
            self.note.set(text="\\u…: a character that no font here can draw", in_layout=True)
            super().execute(fig)
        for step in (self._parts, self._parts, self._texts, self._parts, self._texts, self._parts):
            if step(fig):
                super().execute(fig)

    def _parts(self, figure: Figure) -> bool:
        named = {part.axis for part in self.parts if isinstance(part, Names)}
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
            return min([page.x1, *(x for x in beside if x > axes.bbox.x0 + point)]) - _GAP * point

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


def engine_of(axes: Axes) -> Fitted | None:
    """The layout that fits the figure of ``axes``; None where someone else laid the figure out."""
    engine = axes.get_figure(root=True).get_layout_engine() if axes.figure else None
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
    key = (string, hash(text.get_fontproperties()), text.get_figure(root=True).dpi)
    if key not in _WIDTHS:
        was, angle = text.get_text(), text.get_rotation()
        text.set(text=string, rotation=0)
        _WIDTHS[key] = float(text.get_window_extent().width)
        text.set(text=was, rotation=angle)
    return _WIDTHS[key]


def wrapped(text: Text, string: str, width: float, lines: int) -> str:
    """``string`` broken into at most ``lines`` lines of ``width`` pixels, and cut where it still does not fit."""
    whole = _broken(text, string, width, lines)
    low, high = 3, len(string)
    while whole is None and low < high:
        length = (low + high + 1) // 2
        if _broken(text, cut(string, length), width, lines) is None:
            high = length - 1
        else:
            low = length
    return whole or _broken(text, cut(string, low), width, lines) or cut(string, low)


def keep(text: Text, width: float, lines: int) -> bool:
    """Wrap or cut ``text`` if it is longer than ``width`` pixels; whether it was."""
    string = text.get_text()
    if not string or not text.get_visible() or width <= 0 or width_of(text, string) <= width:
        return False
    new = wrapped(text, _JOINED.sub("", string).replace("\n", " "), _SLACK * width, lines)
    text.set_text(new)
    return new != string


def _broken(text: Text, string: str, width: float, lines: int) -> str | None:
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
    return (box.x0, box.x1) if axis.axis_name == "x" else (box.y0, box.y1)


@dataclass
class Names:
    """Names of what stands at 0, 1, … along an axis.

    Along x they lie level if they fit, in up to three lines; else they slant, or stand where they are many. Along y they take
    up to ``room`` of the panel's share of the page, in two lines where the rows are far enough apart.
    """

    axis: Axis
    names: Sequence[str]
    at: Sequence[float]
    size: float
    room: float
    _angle: int = field(default=0, init=False)
    _state: tuple[Any, ...] = field(default=(), init=False)

    def fit(self) -> bool:
        labels = [t for t in self.axis.get_ticklabels() if t.get_visible()]
        if len(labels) < len(self.names) or not self.names:
            return False  # an axis shared with the panel that names it
        model, axes = labels[0], self.axis.axes
        model.set_fontsize(self.size)
        point = axes.get_figure(root=True).dpi / 72
        slot = self._slot()
        line = 1.25 * self.size * point
        if self.axis.axis_name == "y":
            size = min(self.size, max(_SMALLEST, slot / 1.25 / point))
            model.set_fontsize(size)
            texts = [wrapped(model, n, self.room * _column(axes), max(1, min(2, int(slot / line)))) for n in self.names]
            return self._set(texts, fontsize=size)
        for angle in (0, 30, 90):
            if angle < self._angle:
                continue  # never back, so that the layout settles
            if angle == 0:
                level = [_broken(model, n, slot - 3 * point, 3) for n in self.names]
                if None not in level:
                    upright = {"rotation": 0, "ha": "center", "va": "top", "rotation_mode": "default"}
                    return self._set([t or "" for t in level], fontsize=self.size, **upright)
            elif angle == 90 or slot > 2.1 * line:
                self._angle = angle
                break
        size = min(self.size, max(_SMALLEST, slot / 1.25 / point))
        model.set_fontsize(size)
        texts = [wrapped(model, n, 62 * point, 1) for n in self.names]
        slant: dict[str, Any] = {"rotation": self._angle, "ha": "right", "rotation_mode": "anchor"}
        return self._set(texts, fontsize=size, va="center" if self._angle == 90 else "baseline", **slant)

    def _slot(self) -> float:
        """Pixels from one name to the next."""
        box = self.axis.axes.bbox
        low, high = self.axis.get_view_interval()
        length = box.width if self.axis.axis_name == "x" else box.height
        steps = [b - a for a, b in pairwise(self.at)]
        return float(length / max(abs(high - low), 1e-9) * min([abs(s) for s in steps] or [1.0]))

    def _set(self, texts: Iterable[str], **style: Any) -> bool:
        texts = _told_apart(texts, self.names)
        state = (texts, tuple(style.items()))
        changed = state != self._state
        self._state = state
        self.axis.set_ticks(self.at, texts, **style)
        return changed


def _told_apart(texts: Iterable[str], names: Sequence[str]) -> list[str]:
    """Different names that came out alike get their number in front."""
    texts = list(texts)
    first: dict[str, str] = {}
    alike = {t for t, n in zip(texts, names, strict=True) if first.setdefault(t, n) != n}
    return [f"{i} {t}" if t in alike else t for i, t in enumerate(texts, 1)]


def _column(axes: Axes) -> float:
    """Pixels of the page's width that fall to the panel's column."""
    spec, page = axes.get_subplotspec(), axes.get_figure(root=True).bbox.width
    if spec is None:
        return float(page)
    ratios = spec.get_gridspec().get_width_ratios()
    return float(page * sum(ratios[i] for i in spec.colspan) / sum(ratios))


@dataclass
class Legend:
    """A legend above the data of ``axes``, in as many columns as its width allows; the data end at ``high``."""

    axes: Axes
    columns: int
    low: float
    high: float

    def fit(self) -> bool:
        box, point = self.axes.bbox, self.axes.get_figure(root=True).dpi / 72
        before = (self.columns, self.axes.get_ylim())
        while (legend := self.draw()).get_window_extent().width > box.width and self.columns > 1:
            self.columns -= 1
        excess = legend.get_window_extent().width - box.width
        if excess > 0:
            widest = max(t.get_window_extent().width for t in legend.get_texts())
            for text in legend.get_texts():
                keep(text, widest - excess, 2)
        share = min(0.7, (legend.get_window_extent().height + 5 * point) / box.height)
        scale = self.axes.yaxis.get_transform()
        low, high = scale.transform([self.low, self.high])
        self.axes.set_ylim(self.low, float(scale.inverted().transform([high + (high - low) * share / (1 - share)])[0]))
        return before != (self.columns, self.axes.get_ylim())

    def draw(self) -> Any:
        legend = self.axes.legend(loc="upper left", ncols=self.columns, columnspacing=1.0, handletextpad=0.5)
        legend.set_in_layout(False)  # it lies within the panel
        return legend


def legend_below(figure: Figure, handles: Sequence[Any], labels: Sequence[str], columns: int) -> None:
    """A legend under all panels in up to ``columns`` columns, as many as the page's width allows.

    It is fitted at once: a figure lists what it draws before it is laid out.
    """
    room = figure.bbox.width * _SLACK

    def draw(count: int) -> Any:
        for old in list(figure.legends):
            old.remove()
        return figure.legend(handles, labels, loc="outside lower center", ncols=count)

    while (legend := draw(columns)).get_window_extent().width > room and columns > 1:
        columns -= 1
    for text in legend.get_texts():
        keep(text, room - 30 * figure.dpi / 72, 1)


@dataclass
class Cells:
    """The numbers in a heat map's cells, as large as the narrowest cell allows."""

    axes: Axes
    texts: Sequence[Text]
    columns: int
    rows: int

    def fit(self) -> bool:
        box = self.axes.bbox
        scale = min(
            min(0.92 * box.width / self.columns / e.width, 0.92 * box.height / self.rows / e.height)
            for e in (t.get_window_extent() for t in self.texts)
        )
        if scale >= 1:
            return False
        size = scale * min(float(t.get_fontsize()) for t in self.texts)
        for text in self.texts:
            text.set_fontsize(size)
        return True
