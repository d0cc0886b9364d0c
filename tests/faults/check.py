"""What must hold after a fault: the old output or the new one, never a third thing, and nothing left beside it."""

from __future__ import annotations

import fnmatch
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moescope.errors import InputError
from tests.faults.kinds import Kind
from tests.faults.strike import BROKEN, DONE, KILLED, REFUSED, Fault, struck

MINE = "years of work"


@dataclass
class Tally:
    """How often a fault struck, and each time that something was not as it must be."""

    struck: int = 0
    wrong: list[str] = field(default_factory=list)

    def add(self, what: str, wrong: str | None) -> None:
        self.struck += 1
        if wrong is not None:
            self.wrong.append(f"{what}: {wrong}")


def strike_everywhere(kind: Kind, work: Path, fault: Fault, *, replacing: bool, step: int = 1) -> Tally:
    """Let ``fault`` strike at every ``step``-th file operation of writing ``kind``.

    Args:
        replacing: an older output stands in the place.
    """
    tally = Tally()
    base = work / "base"
    shutil.rmtree(base, ignore_errors=True)
    base.mkdir()
    older = None
    if replacing:
        kind.old(base / kind.place)
        older = kind.read(base / kind.place)
        if kind.apart:
            (base / kind.place / "notes.txt").write_text(MINE)
    code, operations = struck(lambda: kind.new(_copied(base, work / "all") / kind.place))
    assert code == DONE, (kind.name, code)
    newer = kind.read(work / "all" / kind.place)
    for at in range(1, operations + 1, step):
        here = _copied(base, work / "struck")
        code, _ = struck(lambda here=here: kind.new(here / kind.place), fault, at)
        tally.add(f"{kind.name}, operation {at} of {operations}", _wrong(kind, here, fault, code, older, newer))
    for name in ("base", "all", "struck"):
        shutil.rmtree(work / name, ignore_errors=True)
    return tally


def _copied(base: Path, to: Path) -> Path:
    shutil.rmtree(to, ignore_errors=True)
    return Path(shutil.copytree(base, to, symlinks=True))


def _wrong(kind: Kind, here: Path, fault: Fault, code: int, older: Any, newer: Any) -> str | None:
    """What is wrong with ``here`` after writing ended with ``code``, or None."""
    place = here / kind.place
    if code == BROKEN or (fault == "kill" and code not in (KILLED, DONE)):
        return f"ended with {code}"
    try:
        found = kind.read(place)
    except InputError as error:
        found = None
        if len(str(error).splitlines()) != 1:
            return f"said {error}"
        if older is not None:
            return f"the old one is gone ({error})"
    if found not in (older, newer) or (code == DONE and found != newer) or (code == REFUSED and found not in (older, newer)):
        return "what is read is neither the old nor the new one"
    notes = place / "notes.txt"
    if older is not None and kind.apart and (not notes.is_file() or notes.read_text() != MINE):
        return "a file that is not ours is gone"
    if fault == "full disk" and code == REFUSED and older is None and kind.whole and os.path.lexists(place):
        return "half of it was left"
    kind.new(place)
    if kind.read(place) != newer:
        return "writing again does not mend it"
    if left := {p.name for p in here.iterdir()} - {kind.place}:
        return f"left beside it: {sorted(left)}"
    if older is not None and kind.apart and notes.read_text() != MINE:
        return "a file that is not ours is gone after writing again"
    return None


def damage_everywhere(kind: Kind, work: Path, *, flips: int, cuts: int) -> tuple[Tally, Tally]:
    """Flip one bit, and cut the file off, at so many places of every file that is read; reading must name the file."""
    flipped, cut = Tally(), Tally()
    place = work / kind.place
    kind.new(place)
    for file in _files(place):
        name = file.relative_to(work).as_posix()
        inside = file.relative_to(place).as_posix()
        if any(fnmatch.fnmatch(inside, pattern) for pattern in kind.unread):
            continue
        data = file.read_bytes()
        for at in _spread(len(data) * 8, flips):
            file.write_bytes(data[: at // 8] + bytes([data[at // 8] ^ 1 << at % 8]) + data[at // 8 + 1 :])
            flipped.add(f"{kind.name}, bit {at} of {name}", _unnoticed(kind, place, file))
        for at in _spread(len(data), cuts):
            file.write_bytes(data[:at])
            cut.add(f"{kind.name}, {name} cut to {at} bytes", _unnoticed(kind, place, file))
        file.write_bytes(data)
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    return flipped, cut


def _files(place: Path) -> list[Path]:
    return [p for p in sorted(place.rglob("*")) if p.is_file()] if place.is_dir() else [place]


def _spread(size: int, count: int) -> Iterator[int]:
    """The first quarter of ``count`` at the file's start, where its header is, the rest over all of it."""
    first: Sequence[int] = range(min(size, count // 4))
    yield from first
    yield from (size * n // count for n in range(count) if size * n // count not in first)


def _unnoticed(kind: Kind, place: Path, file: Path) -> str | None:
    try:
        kind.read(place)
    except InputError as error:
        text = str(error)
        return None if "\n" not in text and str(place) in text else f"{file.name} is not named: {text}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return "read as if it were whole"
