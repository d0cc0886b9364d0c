"""Where a trace is written, and how it takes the place of another: refused first, written beside, put there once whole."""

from __future__ import annotations

from pathlib import Path

from moescope.capture.manifest import FINISHED, UNFINISHED
from moescope.errors import InputError
from moescope.files.atomic import cannot_write
from moescope.files.folder import check_place, healed, put_in_place, settled
from moescope.files.remote import publish
from moescope.routing.manifest import TraceManifest


def check_trace_target(path: str | Path, *, overwrite: bool) -> Path:
    """The folder to write a trace to, absolute, refused before any work if none could be written.

    Raises:
        InputError: it is a file or cannot be made, holds a store of another kind, a damaged one, or a trace while ``overwrite``
            is off.
    """
    folder = healed(settled(path))
    check_place(folder)
    files_of(folder)
    if (folder / FINISHED).exists() and not overwrite:
        raise InputError(f"{folder}: a trace is there already; name another folder, or replace it by overwrite=True", "out")
    return folder


def files_of(folder: Path) -> list[str]:
    """Names of the files of the store in ``folder``, the manifests first; none where there is no store.

    Raises:
        InputError: a manifest is damaged, or no trace's.
    """
    manifests = [name for name in (UNFINISHED, FINISHED) if (folder / name).exists()]
    return manifests + [shard.file for name in manifests for shard in TraceManifest.read(folder / name).shards]


def beside(folder: Path) -> Path:
    """Where a trace is written that will replace the one in ``folder``."""
    return folder.with_name(f".{folder.name}.begun")


def put_trace(folder: Path, place: Path) -> None:
    """Put the finished trace in ``place`` where the one in ``folder`` is."""
    if place != folder:
        try:
            put_in_place(place, folder, own=files_of(folder))
            publish(folder)
        except OSError as error:
            raise cannot_write(folder, error) from error
