"""What a figure's points, bars and cells say when they are pointed at, taken from the drawn figure itself.

matplotlib draws every figure; here its artists are read back: where each point lies on the page, and its values in the words
of its axes. So a figure says what it shows, and no figure has to be written for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import PathCollection
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter

from moescope.report.format import number

MOST = 2500
"""marks of a figure; one with more of them, as a picture of every pair of prompts, has those of its other panels only"""
_RADIUS = 5.0  # points, that a pointer need come near to
_CLOUD = 150  # points of a scatter that are a shape together, and nothing each but for a text of their own
_LONGEST = 240  # characters
_TEXTS: WeakKeyDictionary[Any, tuple[str, ...]] = WeakKeyDictionary()
_LEADS: WeakKeyDictionary[Any, tuple[str, ...]] = WeakKeyDictionary()
_NAMES: WeakKeyDictionary[Axis, tuple[str, ...]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Mark:
    """A place of a figure, as shares of its width and height from the top left, what it says, and which part of the page
    (:attr:`moescope.report.texts.Texts.address`) it stands for."""

    x: float
    y: float
    width: float
    height: float
    text: str
    leads: str = ""


def says(artist: Any, texts: Sequence[str]) -> None:
    """Let each point of ``artist`` (a line's or a scatter's) also say a text of its own, such as its prompt."""
    _TEXTS[artist] = tuple(texts)


def leads(artist: Any, addresses: Sequence[str]) -> None:
    """Let each point, bar or cell (row by row) of ``artist`` lead to a part of the page, where a page has that part."""
    if isinstance(artist, BarContainer):
        for bar, address in zip(artist, addresses, strict=True):
            _LEADS[bar] = (address,)
    else:
        _LEADS[artist] = tuple(addresses)


def named(axis: Axis, names: Sequence[str]) -> None:
    """Whole names of what stands at 0, 1, … along ``axis``, which its tick labels may have to cut."""
    _NAMES[axis] = tuple(names)


def marks(figure: Figure) -> tuple[Mark, ...]:
    """What the points of ``figure`` say, which has been laid out."""
    found: list[Mark] = []
    for axes in figure.axes:
        if getattr(axes, "_colorbar", None) is None:
            here = list(_of_axes(axes))
            found += here if len(found) + len(here) <= MOST else []
    return tuple(found)


def _of_axes(axes: Axes) -> Iterator[Mark]:
    errors = {bars.lines[0]: str(bars.get_label()) for bars in axes.containers if isinstance(bars, ErrorbarContainer)}
    for line in axes.lines:
        if line.get_transform() == axes.transData and (_has_marker(line) or len(np.asarray(line.get_xdata())) > 2):
            yield from _points(axes, line, np.asarray(line.get_xydata(), dtype=float), errors.get(line, str(line.get_label())))
    for group in axes.collections:
        if isinstance(group, PathCollection):
            yield from _points(axes, group, np.ma.getdata(group.get_offsets()).astype(float), str(group.get_label()))
    for bars in axes.containers:
        if isinstance(bars, BarContainer):
            yield from _bars(axes, bars)
    for image in axes.images:
        yield from _cells(axes, image)


def _has_marker(line: Line2D) -> bool:
    return line.get_marker() not in ("", " ", "None", "none", None)


def _points(axes: Axes, artist: Any, data: np.ndarray, label: str) -> Iterator[Mark]:
    if not len(data):
        return
    box, size = axes.bbox, _RADIUS * axes.figure.dpi / 72
    texts = _TEXTS.get(artist, ())
    if len(data) > _CLOUD and not texts:
        return
    for i, ((x, y), place) in enumerate(zip(data, axes.transData.transform(data), strict=True)):
        if np.isfinite(place).all() and _inside(box, place):
            values = [] if i < len(texts) else [_value(axes.xaxis, x), _value(axes.yaxis, y)]
            own = [texts[i]] if i < len(texts) else []
            yield _mark(axes, place[0] - size, place[1] - size, 2 * size, 2 * size, [_label(label), *values, *own], artist, i)


def _inside(box: Any, place: np.ndarray) -> bool:
    return bool(box.x0 - 1 <= place[0] <= box.x1 + 1 and box.y0 - 1 <= place[1] <= box.y1 + 1)


def _bars(axes: Axes, bars: BarContainer) -> Iterator[Mark]:
    along, across = (axes.yaxis, axes.xaxis) if bars.orientation == "horizontal" else (axes.xaxis, axes.yaxis)
    for bar in bars:
        area = bar.get_window_extent()
        if bars.orientation == "horizontal":
            place, length = bar.get_y() + bar.get_height() / 2, bar.get_width()
        else:
            place, length = bar.get_x() + bar.get_width() / 2, bar.get_height()
        if area.width > 0 and area.height > 0:
            words = [_label(str(bars.get_label())), _value(along, place), _value(across, length)]
            yield _mark(axes, area.x0, area.y0, area.width, area.height, words, bar, 0)


def _cells(axes: Axes, image: AxesImage) -> Iterator[Mark]:
    values = np.ma.filled(np.ma.asarray(image.get_array()).astype(float), np.nan)
    if values.ndim != 2 or values.size > MOST:
        return
    left, right, bottom, top = image.get_extent()
    rows, columns = values.shape
    for i in range(rows):
        for j in range(columns):
            if np.isfinite(values[i, j]):
                x = left + (j + 0.5) * (right - left) / columns
                y = top + (i + 0.5) * (bottom - top) / rows
                a = axes.transData.transform((left + j * (right - left) / columns, top + i * (bottom - top) / rows))
                b = axes.transData.transform((left + (j + 1) * (right - left) / columns, top + (i + 1) * (bottom - top) / rows))
                low, size = np.minimum(a, b), np.abs(a - b)
                words = [_value(axes.yaxis, y), _value(axes.xaxis, x), number(values[i, j])]
                yield _mark(axes, low[0], low[1], size[0], size[1], words, image, i * columns + j)


def _mark(axes: Axes, x: float, y: float, width: float, height: float, words: Sequence[str], artist: Any, i: int) -> Mark:
    """Of part ``i`` of ``artist``."""
    page, to = axes.figure.bbox, _LEADS.get(artist, ())
    text = "; ".join(word for word in words if word)
    text = text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
    return Mark(
        x / page.width, 1 - (y + height) / page.height, width / page.width, height / page.height, text, to[i] if to else ""
    )


def _label(label: str) -> str:
    return "" if label.startswith("_") else label


def _value(axis: Axis, value: float) -> str:
    """A place on an axis in its words: a name, or what the axis measures and how much."""
    names = _NAMES.get(axis)
    if names is None and isinstance(axis.get_major_formatter(), FixedFormatter):
        at = np.asarray(axis.get_majorticklocs(), dtype=float)
        near = np.flatnonzero(np.abs(at - value) < 0.5) if len(at) else at
        labels = [text.get_text() for text in axis.get_majorticklabels()]
        if len(near) == 1 and near[0] < len(labels) and labels[int(near[0])]:
            names_here = " ".join(labels[int(near[0])].split())
            return f"{axis.get_label_text()} {names_here}".strip() if names_here.isdigit() else names_here
    if names is not None and 0 <= round(value) < len(names):
        return names[round(value)]
    if not len(axis.get_majorticklocs()) and not axis.get_label_text():
        return ""
    about = " ".join(axis.get_label_text().split())
    return f"{about} {number(float(value))}".strip()
