"""What makes a drawn figure readable: its texts lie on the page and not on each other; and the fonts to draw it in."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
import matplotlib.text
import numpy as np
import pytest
from fontTools.ttLib import TTFont
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager

from moescope.report import fonts
from moescope.report.style import look

TTF = Path(mpl.get_data_path()) / "fonts" / "ttf"
Placed = tuple[str, np.ndarray]  # a text and its corners (4, 2) in pixels, one after the other


@contextmanager
def only_shipped_fonts(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """The fonts that matplotlib brings, as on a machine without any other."""
    shipped = [font for font in fontManager.ttflist if Path(font.fname).parent == TTF]
    patch.setattr(fontManager, "ttflist", shipped)
    _forget_fonts()
    yield
    _forget_fonts()


def wider(folder: Path, factor: float) -> list[Path]:
    """DejaVu Sans, regular and bold, with every glyph and advance ``factor`` as wide, as the font family "Wide Sans"."""
    paths = []
    for name in ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf"):
        font = TTFont(TTF / name)
        glyphs = font["glyf"]
        for glyph in glyphs.keys():  # noqa: SIM118  (not a mapping)
            outline = glyphs[glyph]
            if outline.isComposite():
                for part in outline.components:
                    part.x = round(part.x * factor)
            elif outline.numberOfContours > 0:
                outline.coordinates.scale((factor, 1))
                outline.recalcBounds(glyphs)
        font["hmtx"].metrics = {g: (round(w * factor), round(b * factor)) for g, (w, b) in font["hmtx"].metrics.items()}
        for table in ("GPOS", "GSUB", "kern", "fpgm", "prep", "cvt "):  # kerning and hints of the narrower outlines
            if table in font:
                del font[table]
        for glyph in glyphs.keys():  # noqa: SIM118
            glyphs[glyph].removeHinting()
        for record in font["name"].names:
            if record.nameID in (1, 4, 16):
                record.string = "Wide Sans"
        paths.append(folder / name)
        font.save(paths[-1])
    return paths


@contextmanager
def drawn_in(paths: list[Path], patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Figures drawn in the fonts of ``paths``, which are one family."""
    with only_shipped_fonts(patch):
        for path in paths:
            fontManager.addfont(path)
        patch.setattr(fonts, "FONT", fontManager.ttflist[-1].name)
        yield
        patch.undo()
        _forget_fonts()


def _forget_fonts() -> None:
    fonts.further_fonts.cache_clear()
    fonts.drawable.cache_clear()


def drawn_texts(figure: Figure) -> list[Placed]:
    """Every text that is really painted, and where."""
    found: list[Placed] = []
    paint = matplotlib.text.Text.draw

    def record(self: matplotlib.text.Text, renderer: object, *args: object, **kwargs: object) -> None:
        if self.get_visible() and self.get_text().strip():
            found.append((self.get_text(), _corners(self, renderer)))
        paint(self, renderer, *args, **kwargs)

    with look(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(matplotlib.text.Text, "draw", record)
        figure.canvas.draw()
    return found


def _corners(text: matplotlib.text.Text, renderer: object) -> np.ndarray:
    """The corners of the text's own rectangle, which a slanted text's bounding box is far larger than."""
    box, angle = text.get_window_extent(renderer), text.get_rotation()
    middle = np.array([box.x0 + box.x1, box.y0 + box.y1]) / 2
    if angle % 90:
        text.set_rotation(0)
        level = text.get_window_extent(renderer)
        text.set_rotation(angle)
        size, turn = np.array([level.width, level.height]), np.deg2rad(angle)
    else:
        size, turn = np.array([box.width, box.height]), 0.0
    around = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) / 2 * size
    return middle + around @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])


def check_texts(name: str, figure: Figure) -> list[str]:
    """No text leaves the page, and no two overlap by more than a pixel.

    Returns:
        The texts.
    """
    texts, page = drawn_texts(figure), figure.bbox
    for text, corners in texts:
        inside = (corners >= [page.x0 - 1, page.y0 - 1]).all() and (corners <= [page.x1 + 1, page.y1 + 1]).all()
        assert inside, f"{name}: {text!r} leaves the page"
    for (a, one), (b, other) in itertools.combinations(texts, 2):
        assert _apart(one, other), f"{name}: {a!r} lies on {b!r}"
    return [text for text, _ in texts]


def _apart(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two rectangles lie at most a pixel in each other: some side of theirs divides them."""
    if (one.min(0) > other.max(0)).any() or (other.min(0) > one.max(0)).any():
        return True
    for corners in (one, other):
        for side in (corners[1] - corners[0], corners[2] - corners[1]):
            a, b = (shape @ side / (np.linalg.norm(side) or 1) for shape in (one, other))
            if min(a.max(), b.max()) - max(a.min(), b.min()) <= 1:
                return True
    return False


def check_legends(name: str, figure: Figure) -> None:
    for axes in figure.axes:
        if axes.get_legend() is None:
            continue
        box = axes.get_legend().get_window_extent()
        for line in axes.lines:
            if line.get_transform() == axes.transData:
                points = axes.transData.transform(np.column_stack([line.get_xdata(), line.get_ydata()]).astype(float))
                assert not any(box.contains(*p) for p in points), f"{name}: a curve runs under a legend"
