"""Write a whole folder or nothing: beside its place under another name, then renamed once."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path, PurePath

from moescope.errors import InputError


def settled(folder: str | Path) -> Path:
    """``folder`` as an absolute path; a link to a folder stays, and stands for what it points to."""
    path = Path(os.path.abspath(folder))
    return path.resolve() if path.is_symlink() else path


def check_place(folder: Path) -> None:
    """Refuse a place where no folder can be.

    Raises:
        InputError: it is a file, or cannot be made.
    """
    above = next(p for p in folder.parents if p.exists())
    if not above.is_dir():
        raise InputError(f"{folder} cannot be made: {above} is a file; name another folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise InputError(f"{folder} cannot be made: no permission to write in {above}; name another folder")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; name a folder for the result")


@contextlib.contextmanager
def whole_folder(folder: Path, own: Collection[str | PurePath]) -> Iterator[Path]:
    """An empty folder to write into, which takes ``folder``'s place when the body ends, and is removed if it fails.

    Of a folder that stood there, what ``own`` lists goes (paths below it; a folder with all that is in it). Everything else is
    carried over, under ``NAME.kept`` where the new folder has such a name itself. Links are moved or removed, never followed.

    Raises:
        InputError: the disk is full or cannot be written to; what stood there stands there still.
    """
    with system_errors(folder), _parents(folder.parent):
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
        try:
            draft.chmod(0o777 & ~umask())  # mkdtemp makes it private; a result is an ordinary folder
            yield draft
            put_in_place(draft, folder, own=own)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def put_in_place(draft: Path, folder: Path, *, own: Collection[str | PurePath]) -> None:
    """Rename ``draft``, a folder beside ``folder``, to ``folder``, as :func:`whole_folder` does at its end."""
    if not folder.exists():
        os.rename(draft, folder)
        return
    kept = list(_foreign(folder, {PurePath(path) for path in own}, PurePath()))
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".old", dir=folder.parent))
    os.rename(folder, old)  # onto the empty folder just made: one step on POSIX
    try:
        os.rename(draft, folder)
    except OSError:
        os.rename(old, folder)
        raise
    for path in kept:
        place = folder / path
        while os.path.lexists(place):
            place = place.with_name(f"{place.name}.kept")
        place.parent.mkdir(parents=True, exist_ok=True)
        os.rename(old / path, place)
    shutil.rmtree(old, ignore_errors=True)


def _foreign(folder: Path, own: Collection[PurePath], at: PurePath) -> Iterator[PurePath]:
    """What stands in ``folder`` and is not ``own``: the topmost of each."""
    for entry in sorted(folder.iterdir()):
        here = at / entry.name
        if here in own:
            continue
        if entry.is_dir() and not entry.is_symlink() and any(here in path.parents for path in own):
            yield from _foreign(entry, own, here)
        else:
            yield here


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextlib.contextmanager
def system_errors(folder: Path) -> Iterator[None]:
    """An OSError of the body as one line about ``folder``."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise InputError(f"{folder} could not be written ({reason}); free some space or name another folder") from error


@contextlib.contextmanager
def _parents(parent: Path) -> Iterator[None]:
    """Make ``parent``; should the body fail, take away again what was made."""
    made = [p for p in (parent, *parent.parents) if not p.exists()]
    parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise
