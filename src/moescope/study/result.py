"""What every study returns: a frozen result that saves, loads, plots and tells its verdict."""

from __future__ import annotations

import re
import shutil
import warnings
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd

from moescope.errors import InputError, Note
from moescope.study.claims import claims_frame
from moescope.study.encode import circuit_json, claim_json, plain, tidy_claim
from moescope.study.repeat import study_yaml
from moescope.study.store import load_result, save_result
from moescope.types import Circuit, Claim

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The floor above, by name: a result can be drawn, but does not need to be.
_FIGURES, _PAGE = "moescope.report.registry", "moescope.report.html"
_NAME = re.compile(r"[A-Za-z0-9_]+")


class Artifact(Protocol):
    """What a study made for others to run: a classifier, a router, a mask, a student, a checkpoint."""

    def write(self, folder: Path, /) -> object:
        """Write its files into ``folder``, which is there and empty."""


@dataclass(frozen=True)
class Stored:
    """An artifact of a result that was read from disk, its checksums compared."""

    folder: Path
    files: tuple[str, ...]

    def write(self, folder: Path, /) -> None:
        """Copy its files."""
        for file in self.files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.folder / file, folder / file)


@dataclass(frozen=True, eq=False, repr=False)
class StudyResult:
    """The outcome of one study.

    ``meta``, ``claims`` and ``tables`` are put in the form in which they are stored when the result is made (numpy
    scalars become Python numbers, tuples in ``meta`` and in table cells become lists, NaN in ``meta`` becomes None),
    so that a result equals what is loaded back from disk.

    ``meta`` says where the result comes from. The report knows the keys ``title``, ``model`` (a name, or a mapping
    with ``name``), ``tasks``, ``seed``, ``command``, ``versions``, ``git_revision``, ``fingerprint``, ``data`` and
    ``notes``; any other is shown as it is.

    Raises:
        InputError: a table's name is not made of letters, digits and underscores.
    """

    kind: str
    meta: dict[str, Any] = field(default_factory=dict)
    claims: tuple[Claim, ...] = ()
    circuits: dict[str, Circuit] = field(default_factory=dict)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    """by name, which is also the folder that it is saved in (``"mask"``, ``"exit/certainty"``), but that of a
    ``"checkpoint"`` is the result's own; :class:`Stored` once loaded"""

    def __post_init__(self) -> None:
        for name in self.tables:
            if not _NAME.fullmatch(name) or name == "claims":
                raise InputError(f"table name {name!r} cannot be used: take letters, digits and underscores, not 'claims'")
        object.__setattr__(self, "meta", plain(self.meta))
        object.__setattr__(self, "claims", tuple(tidy_claim(c) for c in self.claims))
        object.__setattr__(self, "circuits", dict(self.circuits))
        object.__setattr__(self, "artifacts", dict(self.artifacts))
        object.__setattr__(self, "tables", {name: _storable(table) for name, table in self.tables.items()})

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, StudyResult):
            return NotImplemented
        if self.json() != other.json() or self.tables.keys() != other.tables.keys():
            return False
        if self.artifacts.keys() != other.artifacts.keys():
            return False
        return all(_same(self.tables[name], other.tables[name]) for name in self.tables)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        parts = [f"{len(self.claims)} claims", f"tables: {', '.join(self.tables) or 'none'}"]
        if self.artifacts:
            parts.append(f"artifacts: {', '.join(self.artifacts)}")
        return f"<{self.meta.get('title') or f'{self.kind} result'}; {'; '.join(parts)}>"

    def _repr_html_(self) -> str:
        """What a notebook shows: the answer, the claims and a figure."""
        return str(import_module(_PAGE).notebook_html(self))

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Which rows fitted, selected, calibrated and judged, as the study put it on record."""
        return list(self.meta.get("rows") or [])

    @property
    def study(self) -> str | None:
        """The YAML that ``moescope run`` takes to do it again; None of a result that no verb made."""
        record = self.meta.get("study")
        return study_yaml(record) if isinstance(record, dict) and record else None

    def table(self, name: str = "claims") -> pd.DataFrame:
        """A copy of the table ``name``, by default of the claims (columns: :data:`moescope.study.claims.COLUMNS`).

        Raises:
            InputError: there is no such table; the message names those that there are.
        """
        if name == "claims":
            return claims_frame(self.claims)
        if name not in self.tables:
            raise InputError(f"this result has no table {name!r}; it has: {', '.join(['claims', *self.tables])}")
        return self.tables[name].copy()

    @property
    def figures(self) -> list[str]:
        """The names of the figures that this result's tables allow."""
        return list(_drawing().available(self))

    def figure(self, name: str) -> Figure:
        """Draw one figure. ``dashboard`` is the dashboard of the first task.

        Raises:
            InputError: no such figure can be drawn; the message names those that can.
        """
        figure: Figure = _drawing().draw(self, name)
        return figure

    def plot(self) -> Figure:
        """The dashboard of the first task, or the first figure that can be drawn.

        Raises:
            InputError: the result has no table that any figure shows.
        """
        names = self.figures
        if not names:
            raise InputError("this result has no table that a figure could show")
        return self.figure(next((n for n in names if n.startswith("dashboard")), names[0]))

    def report(self) -> str:
        """One self-contained HTML page: verdicts first, then figures, tables and provenance."""
        return str(import_module(_PAGE).html_report(self))

    def json(self) -> dict[str, Any]:
        """Kind, meta, claims and circuits as plain values that strict JSON can hold (NaN is None)."""
        return {
            "kind": self.kind,
            "meta": plain(self.meta),
            "claims": [claim_json(c) for c in self.claims],
            "circuits": {name: circuit_json(c) for name, c in self.circuits.items()},
        }

    def _show(self, folder: Path) -> None:
        """Write figures and page into ``folder``. Where they cannot be made, what was measured is kept, with a note."""
        try:
            import_module(_PAGE).write_pages(self, folder)
        except OSError:  # of the disk: the folder appears whole or not at all
            raise
        except Exception as error:
            why = " ".join(str(error).split())
            warnings.warn(f"figures and report could not be made ({type(error).__name__}: {why})", Note, stacklevel=2)

    def save(self, folder: str | Path, *, overwrite: bool = False, figures: bool = True) -> Path:
        """Write the result as a folder: results.json, study.yaml, tables/, figures/, report.html and the artifacts.

        The folder appears whole or not at all. Files in it that are not of the result survive an overwrite.

        Args:
            folder: where to; its parents are made.
            overwrite: replace a moescope result that stands there.
            figures: draw the figures and write report.html too.

        Raises:
            InputError: ``folder`` is a file, holds something else or a result that may not be replaced, or the disk
                is full or not writable.
        """
        show = self._show if figures else None
        return save_result(self.json(), self.tables, self.artifacts, Path(folder), overwrite=overwrite, show=show)


def load(folder: str | Path) -> StudyResult:
    """Read a result that :meth:`StudyResult.save` wrote; every table and artifact is checked against its sha256.

    Raises:
        InputError: the folder or a file in it is absent, damaged, from a newer moescope, or something else.
    """
    if not isinstance(folder, str | Path):
        raise InputError(f"{type(folder).__name__} is no folder; name one that moescope saved a result in", "folder")
    parts = load_result(Path(folder))
    artifacts: dict[str, Artifact] = {name: Stored(*parts_of) for name, parts_of in parts.artifacts.items()}
    try:
        return StudyResult(parts.kind, parts.meta, parts.claims, parts.circuits, parts.tables, artifacts)
    except InputError as error:  # of a claim, which is what the manifest holds
        raise InputError(f"{Path(folder) / 'results.json'} is damaged ({error}); run the study again") from error


def _drawing() -> Any:
    """The module that draws figures."""
    return import_module(_FIGURES)


def _storable(table: pd.DataFrame) -> pd.DataFrame:
    """A copy with a plain row index whose nested cells are lists, as Parquet gives them back."""
    table = table.reset_index(drop=True)
    for column in table.columns:
        if table[column].dtype == object:
            cells = [c.tolist() if isinstance(c, np.ndarray) else list(c) if isinstance(c, tuple) else c for c in table[column]]
            if any(isinstance(c, list) for c in cells):
                table[column] = pd.Series(cells, dtype=object)
            elif all(isinstance(c, str) or c is None for c in cells):
                table[column] = pd.Series(cells, dtype="str")
    return table


def _same(a: pd.DataFrame, b: pd.DataFrame) -> bool:
    if list(a.columns) != list(b.columns) or len(a) != len(b):
        return False
    try:
        pd.testing.assert_frame_equal(a, b, check_exact=True)
    except AssertionError:
        return False
    return True
