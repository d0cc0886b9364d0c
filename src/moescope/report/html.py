"""One HTML page that says what was found: verdicts first, then figures, tables and provenance.

The page is one file that loads nothing: styles and figures are inside it. It works without its script, ``page.js``, by which
tables are sorted, filtered and downloaded; the policy in its head lets no other run. Every text of a result is escaped. The
markup is in ``page.html`` beside this module, what it shares with other pages in ``base.css``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pandas as pd
from jinja2 import Environment, StrictUndefined

from moescope.errors import Note
from moescope.report.answer import answer
from moescope.report.format import (
    DASH,
    beside,
    headline,
    interval,
    number,
    numbers,
    page_script,
    page_source,
    tally,
    verdict_style,
)
from moescope.report.glossary import Glossary
from moescope.report.registry import Image, available, entries, rendered
from moescope.report.texts import texts
from moescope.study.names import model_name, slug
from moescope.types import Claim

if TYPE_CHECKING:
    from moescope.study.result import StudyResult

ROWS_SHOWN = 50  # of each table at least; all rows are in the result's folder
_ROWS_MORE, _CELLS = 500, 12_000  # rows of a table where the page has not that many cells yet
_UNQUOTED = " !$*+,-./;=?@[]^_`{|}~\n"
_CELL = 200  # characters of one table cell
# What provenance shows first, in this order; whatever else `meta` holds follows. `title` and `notes` stand at the top.
_FIRST = ("model", "fingerprint", "tasks", "data", "seed", "command", "versions", "git_revision", "date")
_ABOVE = ("title", "notes", "study")  # which stand in places of their own


@dataclass(frozen=True)
class _Figure:
    name: str
    title: str
    caption: str
    source: str  # data URI
    marks: list[
        tuple[str, str, str, str, str, str]
    ]  # x, y, width, height as shares of the figure; what it says; where it leads


@dataclass(frozen=True)
class _Table:
    name: str
    columns: list[tuple[str, bool]]  # (name, whether its cells are numbers)
    rows: list[list[tuple[str, str]]]  # (as it is read, in full where that says more)
    total: int


def html_report(result: StudyResult, images: Mapping[str, Image | None] | None = None) -> str:
    """``result`` as one self-contained HTML page that opens offline.

    Args:
        images: the figures by name where they are drawn already (see :func:`moescope.report.registry.rendered`); a figure
            that is not among them is drawn, and one that is None could not be.
    """
    images = images or {}
    drawn = {e.name: images[e.name] if e.name in images else _drawn(result, e.name) for e in entries(result)}
    template = environment().from_string(page_source(__package__))
    examples = texts(result.tables)
    figures = list(_figures(result, drawn, {group.address for group in examples}))
    script, digest = page_script(__package__)
    glossary = Glossary()
    return template.render(
        gloss=glossary.link,
        shown_terms=glossary.shown,
        study=result.study,
        script=script,
        script_hash=digest,
        command=result.meta.get("command"),
        addresses=_addresses(result.claims),
        answer=answer(result.claims, map(str, result.meta.get("tasks") or ())),
        lead=figures[0] if figures else None,
        title=_title(result),
        kind=result.kind,
        model=model_name(result),
        headline=headline(result.claims),
        notes=_texts(result.meta.get("notes")) + [f"Figure {n} could not be drawn." for n, i in drawn.items() if i is None],
        verdicts=tally(result.claims),
        claims=result.claims,
        circuits=result.circuits,
        figures=figures[1:],
        texts=examples,
        tables=list(_tables(result.tables)),
        provenance=_provenance(result.meta),
    )


def notebook_html(result: StudyResult) -> str:
    """What a notebook shows of a result: the answer, the claims with their verdicts, and the figure that comes first."""
    first = next(iter(entries(result)), None)
    image = None if first is None else _drawn(result, first.name)
    template = environment().from_string(files(__package__).joinpath("notebook.html").read_text(encoding="utf-8"))
    return template.render(
        title=_title(result),
        answer=answer(result.claims, map(str, result.meta.get("tasks") or ())),
        claims=result.claims,
        figure=None if first is None or image is None else _Figure(first.name, first.title, first.caption, _uri(image), []),
    )


def environment() -> Environment:
    """In which pages are made: every text is escaped, and figures and verdicts are written as everywhere."""
    made = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.globals["zip"] = zip
    made.filters |= {"number": number, "numbers": numbers, "interval": interval, "style": verdict_style, "beside": beside}
    return made


def _title(result: StudyResult) -> str:
    return str(result.meta.get("title") or f"{result.kind.capitalize()} study of {model_name(result)}")


def _share(value: float) -> str:
    """To a thousandth of the figure: about a pixel."""
    return f"{value:.3f}".lstrip("0")


def _uri(image: Image) -> str:
    # As an image and not inline: the ids inside two figures cannot clash, and nothing in it can run.
    # Percent-encoded where it must be: paths are digits, and base64 would make a third more of them.
    return f"data:image/svg+xml,{quote(image.svg, safe=_UNQUOTED)}"


def _addresses(claims: Sequence[Claim]) -> list[str]:
    """An id for each claim, from its statement."""
    found: list[str] = []
    for claim in claims:
        name = f"claim-{slug(claim.statement).lower()}"
        found.append(name if name not in found else f"{name}-{len(found)}")
    return found


def _drawn(result: StudyResult, name: str) -> Image | None:
    try:
        return rendered(result, name)
    except Exception as error:  # whatever it is: the result must not be lost to its display
        why = " ".join(str(error).split())
        warnings.warn(f"figure {name} could not be drawn ({type(error).__name__}: {why})", Note, stacklevel=2)
        return None


def _figures(result: StudyResult, images: Mapping[str, Image | None], parts: Set[str]) -> Iterator[_Figure]:
    """Those that could be drawn; of what their marks lead to, ``parts`` are on the page."""
    for entry in entries(result):
        image = images[entry.name]
        if image is None:
            continue
        marks = [
            (_share(m.x), _share(m.y), _share(m.width), _share(m.height), m.text, m.leads if m.leads in parts else "")
            for m in image.marks
        ]
        yield _Figure(entry.name, entry.title, entry.caption, _uri(image), marks)


def _tables(tables: Mapping[str, pd.DataFrame]) -> Iterator[_Table]:
    """As many rows of each as the page has room for."""
    room = _CELLS
    for name, table in tables.items():
        rows = min(len(table), _ROWS_MORE)
        if rows * len(table.columns) > room:
            rows = min(len(table), ROWS_SHOWN)
        room -= rows * len(table.columns)
        yield _table(name, table, rows)


def _table(name: str, table: pd.DataFrame, n_rows: int) -> _Table:
    numeric = {str(c): pd.api.types.is_numeric_dtype(table[c]) and not pd.api.types.is_bool_dtype(table[c]) for c in table}
    rows = [[(_cell(value), _full(value)) for value in row] for row in table.head(n_rows).itertuples(index=False, name=None)]
    return _Table(name, list(numeric.items()), rows, len(table))


def _full(value: Any) -> str:
    """A number in all its digits, where the page rounds it."""
    return repr(float(value)) if isinstance(value, float) and _cell(value) not in (DASH, repr(float(value))) else ""


def _cell(value: Any) -> str:
    if isinstance(value, list):
        value = ", ".join(_cell(v) for v in value)
    elif value is pd.NA or value is pd.NaT:
        value = DASH
    text = number(value)
    return text if len(text) <= _CELL else text[: _CELL - 1] + "…"


def _texts(value: Any) -> list[str]:
    return [str(v) for v in value] if isinstance(value, list) else [str(value)] if value else []


def _provenance(meta: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """(what, its lines); a line is (key, value), the key empty where the value stands alone."""
    names = [n for n in _FIRST if n in meta] + [n for n in meta if n not in _FIRST and n not in _ABOVE]
    return [(name.replace("_", " "), list(_lines(meta[name]))) for name in names]


def _lines(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Nested values laid flat, keys joined with dots; members of a list by their name, else by their number from 1."""
    if isinstance(value, dict) and value:
        for k, v in value.items():
            yield from _lines(v, f"{key}.{k}" if key else str(k))
    elif isinstance(value, list) and any(isinstance(v, dict | list) for v in value):
        for i, v in enumerate(value, 1):
            named = isinstance(v, dict) and "name" in v and len(v) > 1
            member = str(v["name"]) if named else str(i)
            rest = {k: w for k, w in v.items() if k != "name"} if named else v
            yield from _lines(rest, f"{key}.{member}" if key else member)
    elif isinstance(value, list | dict):
        yield key, ", ".join(map(str, value)) or DASH
    else:
        yield key, DASH if value is None else {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def write_pages(result: StudyResult, folder: Path) -> None:
    """Write ``figures/*.png``, ``figures/*.svg`` and ``report.html`` into ``folder``. A figure that fails is left out with a
    :class:`~moescope.errors.Note`, and named on the page."""
    (folder / "figures").mkdir()
    images: dict[str, Image | None] = {name: _drawn(result, name) for name in available(result)}
    for name, image in images.items():
        if image is None:
            continue
        (folder / "figures" / f"{name}.png").write_bytes(image.png)
        (folder / "figures" / f"{name}.svg").write_bytes(image.svg)
    (folder / "report.html").write_text(html_report(result, images=images), encoding="utf-8")
