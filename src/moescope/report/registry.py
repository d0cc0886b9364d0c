"""The figures of a result by name, drawn from its tables, and as PNG and SVG.

A figure whose tables are missing does not exist; a panel whose table is missing is left out.

Each study has its own module of figures. To add one: write ``studies/STUDY/figures.py`` with ``FIGURES``, a
:data:`TableFigure` each in the order in which the report shows them, or, where these are not known beforehand, a function
``entries(result) -> Iterator[Entry]``, and enter it in :data:`moescope.studies.FIGURES`. ``Entry.draw`` is called inside
:func:`moescope.report.style.look`; make its figure with :func:`moescope.report.style.new_figure`, and take colours, markers
and letters from there too. The HTML page, ``StudyResult.figures`` and ``save`` then show it without further change.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from moescope.errors import InputError
from moescope.files.atomic import write_atomic
from moescope.report.hover import Mark, marks
from moescope.report.style import full_names, levels, look

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from moescope.study.result import StudyResult

STUDIES = "moescope.studies"
"""Where the kinds of result and their figures are listed. By name: this floor knows no study."""
PNG_DPI = 200
_NAMES = ("steering", "category", "change", "criterion")  # columns with names that a figure may have to cut


@dataclass(frozen=True)
class Entry:
    """One figure that can be drawn. ``caption`` says in words what it shows, for a reader who cannot see it too."""

    name: str
    title: str
    caption: str
    draw: Callable[[], Figure]


@dataclass(frozen=True)
class Image:
    """One figure as files, and what its points say."""

    png: bytes
    svg: bytes
    marks: tuple[Mark, ...] = ()


Tables = dict[str, pd.DataFrame]
TableFigure = tuple[str, str, str, str, Callable[[Tables], "Figure"]]
"""Name, the table that it needs, title, caption, and what draws it."""


def drawable(result: StudyResult, figures: Sequence[TableFigure]) -> Iterator[Entry]:
    """Those of ``figures`` whose table has rows."""
    for name, table, title, caption, draw in figures:
        frame = result.tables.get(table, pd.DataFrame())
        if len(frame):
            names = [n for c in _NAMES if c in frame for n in levels(frame, c)]
            yield Entry(name, title, caption + full_names(names, 16), partial(draw, result.tables))


def entries(result: StudyResult) -> list[Entry]:
    """Every figure that the tables of ``result`` allow, in the order in which a report shows them."""
    name = import_module(STUDIES).FIGURES.get(result.kind)
    if name is None:
        return []
    module = import_module(name)
    return list(module.entries(result) if hasattr(module, "entries") else drawable(result, module.FIGURES))


def available(result: StudyResult) -> list[str]:
    """The names of the figures that can be drawn."""
    return [e.name for e in entries(result)]


def draw(result: StudyResult, name: str) -> Figure:
    """Draw the figure ``name``; ``dashboard`` and ``layers`` stand for the first of their kind.

    Raises:
        InputError: there is no such figure; the message names those that can be drawn.
    """
    found = entries(result)
    for entry in (*(e for e in found if e.name == name), *(e for e in found if e.name.rsplit("-", 1)[0] == name)):
        with look():
            return entry.draw()
    names = ", ".join(e.name for e in found) or "none"
    raise InputError(f"this result has no figure {name!r}; it can draw: {names}")


def rendered(result: StudyResult, name: str) -> Image:
    """The figure ``name`` as PNG (200 dots per inch) and SVG (text drawn as paths)."""
    return render(draw(result, name))


def render(figure: Figure) -> Image:
    """``figure`` as PNG and SVG; the bytes are the same for the same figure."""
    png, svg = io.BytesIO(), io.BytesIO()
    with look():
        figure.savefig(png, format="png", dpi=PNG_DPI, metadata={"Software": "moescope"})
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": "moescope"})
        return Image(png.getvalue(), svg.getvalue(), marks(figure))


def save_figure(figure: Figure, folder: str | Path, name: str) -> tuple[Path, Path]:
    """Write ``folder/name.png`` and ``folder/name.svg``, each whole or not at all; what was there is replaced.

    Returns:
        The two paths.

    Raises:
        InputError: ``folder`` is a file, or the disk is full or not writable.
    """
    folder, image = Path(folder), render(figure)
    paths = (folder / f"{name}.png", folder / f"{name}.svg")
    for path, data in zip(paths, (image.png, image.svg), strict=True):
        write_atomic(path, [data])
    return paths
