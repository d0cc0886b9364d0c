"""Write a whole folder or nothing: beside its place under another name, then renamed once."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import os
import shutil
import sys
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path, PurePath

from moescope.errors import InputError
from moescope.files.atomic import sync
from moescope.files.lock import hidden, locked, standing
from moescope.files.remote import local, publish


def settled(folder: str | Path) -> Path:
    """``folder`` as an absolute path; a link to a folder stays, and stands for what it points to. Of an address the copy.

    Raises:
        InputError: no folder can have this name, which is too long or whose links run in a circle.
    """
    path = Path(os.path.abspath(local(folder)))
    try:
        return path.resolve() if path.is_symlink() else path
    except (OSError, RuntimeError) as error:
        raise InputError(f"{folder}: {getattr(error, 'strerror', None) or error}; name another folder") from error


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
def output(folder: Path) -> Iterator[None]:
    """Hold ``folder`` against other processes, and clear away what dead ones left beside it.

    Raises:
        InputError: another process is writing to it.
    """
    with locked(folder) as first:
        if first:
            _recover(folder)
        yield


@contextlib.contextmanager
def draft_of(folder: Path) -> Iterator[Path]:
    """An empty folder beside ``folder``, or beside the first of its parents that is to be made; removed at the end."""
    above = standing(folder)
    draft = Path(tempfile.mkdtemp(prefix=f"{hidden(folder, above)}.", suffix=".partial", dir=above))
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextlib.contextmanager
def whole_folder(folder: Path, own: Collection[str | PurePath]) -> Iterator[Path]:
    """An empty folder to write into, which takes ``folder``'s place when the body ends, and is removed if it fails.

    Of a folder that stood there, the files that ``own`` lists go (paths below it). Everything else is carried over, under
    ``NAME.kept`` where the new folder has such a name itself. Links are carried over or removed, never followed.

    Raises:
        InputError: the disk is full or cannot be written to, or another process writes there; what stood there stands there
            still.
    """
    with output(folder), system_errors(folder), _parents(folder.parent), draft_of(folder) as draft:
        yield draft
        put_in_place(draft, folder, own=own)
        publish(folder)


def put_in_place(draft: Path, folder: Path, *, own: Collection[str | PurePath]) -> None:
    """Rename ``draft``, a folder beside ``folder``, to ``folder``, as :func:`whole_folder` does at its end.

    Everything is on the disk before the one rename. A folder that stood there is exchanged for it, and what is not ``own``
    stands in both until then; ``draft`` is the old one afterwards.
    """
    _flush(draft)
    if not folder.exists():
        os.rename(draft, folder)
        sync(folder.parent)
        return
    for path in _foreign(folder, {PurePath(path) for path in own}, PurePath()):
        place = draft / path
        while os.path.lexists(place):
            place = place.with_name(f"{place.name}.kept")
        place.parent.mkdir(parents=True, exist_ok=True)
        if (folder / path).is_dir() and not (folder / path).is_symlink():
            shutil.copytree(folder / path, place, symlinks=True, copy_function=_double)
        else:
            _double(folder / path, place)
        sync(place.parent)
    if not exchange(draft, folder):
        old = _old(folder)
        os.rename(folder, old)
        try:
            os.rename(draft, folder)
        except OSError:
            os.rename(old, folder)
            raise
        os.rename(old, draft)
    sync(folder.parent)
    shutil.rmtree(draft, ignore_errors=True)


def healed(folder: Path) -> Path:
    """``folder``. One that a kill caught between two renames, where a system cannot exchange, is put back first."""
    with contextlib.suppress(OSError):
        if _old(folder).is_dir() and not os.path.lexists(folder):
            os.rename(_old(folder), folder)
    return folder


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _recover(folder: Path) -> None:
    healed(folder)
    left = [_old(folder)]
    for above in folder.parents[:2]:  # the second held it while the first was not there
        with contextlib.suppress(OSError):
            left += above.glob(f"{glob.escape(hidden(folder, above))}.????????.partial")
    for path in left:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)


def exchange(a: Path, b: Path) -> bool:
    """Let two folders change places in one step; False where the system or the file system cannot."""
    names = os.fsencode(a), os.fsencode(b)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            done = libc.renamex_np(*names, 2)  # RENAME_SWAP
        else:
            done = libc.renameat2(-100, names[0], -100, names[1], 2)  # AT_FDCWD, RENAME_EXCHANGE
    except (OSError, AttributeError, TypeError):  # no such function
        return False
    if done == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(a))


def _double(source: str | Path, target: str | Path) -> None:
    """The same file under a second name; a copy where it cannot have one. Of a link, the link."""
    try:
        os.link(source, target, follow_symlinks=False)
    except (OSError, NotImplementedError):
        shutil.copy2(source, target, follow_symlinks=False)


def _flush(folder: Path) -> None:
    """Put a folder on the disk, readable by whom the umask lets read: writers of weights make them private."""
    mask = umask()
    for path in (folder, *folder.rglob("*")):
        if path.is_symlink():
            continue
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
        sync(path)


def _foreign(folder: Path, own: Collection[PurePath], at: PurePath) -> Iterator[PurePath]:
    """What stands in ``folder`` and is not ``own``: the topmost of each."""
    for entry in sorted(folder.iterdir()):
        here = at / entry.name
        folded = entry.is_dir() and not entry.is_symlink()
        if here in own and not folded:
            continue
        if folded and any(here in path.parents for path in own):
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
