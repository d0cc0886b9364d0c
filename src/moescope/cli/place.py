"""Where a command's result goes that was told no folder: never where something stands, and on where it was cut off."""

from __future__ import annotations

import contextlib
import glob
import itertools
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from moescope.errors import InputError
from moescope.files.folder import output, settled
from moescope.study.repeat import STUDY, study_yaml
from moescope.study.run import Run
from moescope.study.stages import WORK, kept_stages, output_of, unfinished, work_of
from moescope.study.store import check_target

OUT = Path("moescope-out")
_SUBJECTS = (
    "model",
    "model_a",
    "model_b",
    "checkpoints",
    "models",
    "trace",
    "trace_a",
    "trace_b",
    "vllm",
    "sglang",
    "llama_cpp",
)


def name_of(command: str, inputs: Mapping[str, Any]) -> str:
    """``COMMAND-MODEL``: of an id or a path the last part, of two models both, of a series the first."""
    parts = []
    for key in _SUBJECTS:
        value = inputs.get(key)
        value = value[0] if isinstance(value, list) and value else value
        if isinstance(value, dict):
            value = value.get("id")
        if value:
            path = Path(str(value).rstrip("/"))
            named = path.stem if path.suffix in (".gguf", ".jsonl", ".npz", ".npy", ".csv") else path.name
            parts.append(re.sub(r"[^A-Za-z0-9._]+", "-", named).strip("-.")[:60])
    return "-".join([command, *filter(None, parts)])


@contextlib.contextmanager
def folder_for(
    run: Run, name: str, record: Mapping[str, Any] | None = None, *, check: Callable[..., object] = check_target
) -> Iterator[Path]:
    """The folder that a command writes to, held against other processes until the body ends.

    ``run.out`` where that is given. Else ``moescope-out/NAME``, or the first of ``NAME-2``, ``NAME-3`` … at which nothing
    stands, no other process writes and no run of something else waits to go on; but one where a run of the same ``record``
    was cut off comes first. ``run.overwrite`` asks for ``NAME`` itself.

    Args:
        check: refuses a folder before any work.

    Raises:
        InputError: the folder cannot be written to.
    """
    if run.out is not None:
        check(run.out, overwrite=run.overwrite)
        yield run.out
        return
    made = not OUT.exists()
    with contextlib.suppress(OSError):  # what is wrong with it is said where it is written to
        OUT.mkdir(exist_ok=True)
    try:
        with contextlib.ExitStack() as held:
            for folder in [OUT / name] if run.overwrite else _candidates(name, record):
                try:
                    held.enter_context(output(settled(folder)))
                except InputError:
                    if run.overwrite:
                        raise
                    continue  # another process's
                check(folder, overwrite=run.overwrite)
                yield folder
                return
    finally:
        if made:
            with contextlib.suppress(OSError):
                OUT.rmdir()  # where nothing was written


def begin(folder: Path, record: Mapping[str, Any]) -> None:
    """Say beside ``folder`` what is being written to it, for :func:`folder_for`; for what keeps no stages."""
    work = work_of(settled(folder))
    with contextlib.suppress(OSError):
        work.mkdir(mode=0o700, parents=True, exist_ok=True)
        (work / STUDY).write_text(study_yaml(record), encoding="utf-8")


def end(folder: Path) -> None:
    """Take back what :func:`begin` said."""
    shutil.rmtree(work_of(settled(folder)), ignore_errors=True)


def _candidates(name: str, record: Mapping[str, Any] | None) -> Iterator[Path]:
    begun = (output_of(path).name for path in sorted(OUT.glob(f".{glob.escape(name)}*{WORK}")))
    if record is not None:
        known = (OUT / own for own in begun if re.fullmatch(re.escape(name) + r"(-\d+)?", own))
        yield from (folder for folder in known if unfinished(settled(folder)) == record)
    yield from (folder for folder in numbered(name) if not _stands(folder) and not kept_stages(settled(folder)))


def numbered(name: str) -> Iterator[Path]:
    """``moescope-out/NAME``, ``NAME-2``, ``NAME-3`` …"""
    yield OUT / name
    yield from (OUT / f"{name}-{n}" for n in itertools.count(2))


def free(name: str) -> Path:
    """The first of these at which nothing stands."""
    return next(folder for folder in numbered(name) if not _stands(folder))


def _stands(folder: Path) -> bool:
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


def interrupted(folder: Path) -> str:
    """What to say; empty where nothing was kept."""
    kept = kept_stages(settled(folder))
    if not kept:
        end(folder)
    stages = "1 finished stage" if kept == 1 else f"{kept} finished stages"
    return f"interrupted; no result was written, the same command goes on after {stages}, to {folder}" if kept else ""
