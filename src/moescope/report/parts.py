"""Parts of a figure that are fitted to the room they got: names along an axis, legends, the numbers of a heat map."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis, XAxis, YAxis
from matplotlib.figure import Figure
from matplotlib.text import Text

from moescope.report.fit import SLACK, broken, column_width, figure_of, keep, wrapped

_SMALLEST = 4.5  # points: names shrink to this before they are cut


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
        point = figure_of(axes).dpi / 72
        slot = self._slot()
        line = 1.25 * self.size * point
        if isinstance(self.axis, YAxis):
            size = min(self.size, max(_SMALLEST, slot / 1.25 / point))
            model.set_fontsize(size)
            texts = [wrapped(model, n, self.room * column_width(axes), max(1, min(2, int(slot / line)))) for n in self.names]
            return self._set(texts, fontsize=size)
        for angle in (0, 30, 90):
            if angle < self._angle:
                continue  # never back, so that the layout settles
            if angle == 0:
                level = [broken(model, n, slot - 3 * point, 3) for n in self.names]
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
        length = box.width if isinstance(self.axis, XAxis) else box.height
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


@dataclass
class Legend:
    """A legend above the data of ``axes``, in as many columns as its width allows; the data end at ``high``."""

    axes: Axes
    columns: int
    low: float
    high: float
    axis: None = None

    def fit(self) -> bool:
        box, point = self.axes.bbox, figure_of(self.axes).dpi / 72
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
    room = figure.bbox.width * SLACK

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
    axis: None = None

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
