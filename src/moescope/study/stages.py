"""Finished stages of an unfinished run, kept beside its output until the result is saved, so that the next run goes on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, cast

import numpy as np
import torch

from moescope.errors import InputError
from moescope.files.checkpoint import load_arrays, save_arrays
from moescope.files.lock import hidden, standing
from moescope.files.parse import parse_json
from moescope.study.encode import plain
from moescope.study.provenance import spent, versions
from moescope.study.repeat import STUDY, read_yaml, study_yaml
from moescope.study.tree import Trees, value_of

_V = TypeVar("_V")
WORK = ".work"
"""how the names of folders with stages end"""
_FORMAT, _TREE = "moescope-stage-1", "tree"
_NOTHING: Mapping[str, object] = MappingProxyType({})


def work_of(folder: Path) -> Path:
    """Where the stages of a run are kept whose result is to be ``folder`` (absolute)."""
    above = standing(folder)
    return above / f"{hidden(folder, above)}{WORK}"


def output_of(work: Path) -> Path:
    """For which result the stages in ``work`` are kept: :func:`work_of` the other way round."""
    return work.parent / work.name.removeprefix(".").removesuffix(WORK).replace("+", os.sep)


def unfinished(folder: Path) -> dict[str, Any] | None:
    """What repeats the run that was cut off on its way to ``folder`` (absolute); None where none was."""
    try:
        return read_yaml(work_of(folder) / STUDY)
    except InputError:
        return None


def kept_stages(folder: Path) -> int:
    """How many stages are kept for a result in ``folder`` (absolute)."""
    return len(list(work_of(folder).rglob("*.safetensors")))


class Stages:
    """The stages of one run. What is kept of a run that differs in anything that decides its result is removed.

    Args:
        folder: where they are kept, made when the first is; None: nowhere.
        run: what the run is, as far as its settings say.
        record: what repeats it, to stand beside the stages as ``study.yaml``.
    """

    def __init__(self, folder: Path | None, run: Any, record: Mapping[str, Any] | None = None) -> None:
        self.seconds = self.cpu_seconds = 0.0
        """that the stages took which an earlier process finished"""
        self._folder, self._record = folder, record
        self._inputs: list[str] = []
        self._names: Counter[str] = Counter()
        if folder is None or not os.path.lexists(folder):
            pass
        elif folder.is_symlink() or (os.name != "nt" and folder.stat().st_uid != os.getuid()):
            self._folder = None  # another user could have made what is in it
        self._run = ""
        if self._folder is not None:
            # the number of threads decides the order of sums, and so the last digits
            self._run = _digest(json.dumps([plain(run), versions(), _code(), torch.get_num_threads()]))
            for left in list(self._folder.iterdir()) if self._folder.is_dir() else ():
                if not left.name.startswith(self._run):
                    _remove(left)

    def read(self, *values: Any) -> None:
        """Say what the stages that follow depend on beside settings: values as of :mod:`moescope.study.tree`."""
        if self._folder is not None:
            trees = Trees({})
            self._inputs.append(_digest(json.dumps(trees.tree(list(values))), *trees.arrays.values()))

    def place(self, name: str) -> Path | None:
        """Where the stage ``name`` is kept, as ``NAME.safetensors``; None where none can be."""
        if self._folder is not None:
            try:
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                if self._record is not None:
                    (self._folder / STUDY).write_text(study_yaml(self._record), encoding="utf-8")
                    self._record = None
                return self._folder / f"{self._run}-{_digest(json.dumps([name, *self._inputs]))}.safetensors"
            except OSError:
                self._folder = None
        return None

    @property
    def inner(self) -> Path | None:
        """The folder for the stages of a study within this one."""
        return None if self._folder is None else self._folder / f"{self._run}-inner"

    def run(
        self,
        name: str,
        compute: Callable[[], _V],
        shared: Mapping[str, object],
        said: Sequence[list[Any]],
        tell: Callable[[str, int, int], None],
    ) -> _V:
        """See :meth:`moescope.study.protocol.Context.stage`; what is added to the lists of ``said`` is kept too."""
        if self._folder is None:
            return compute()
        self._names[name] += 1
        if self._names[name] > 1:  # two edits may be called alike
            name = f"{name} ({self._names[name]})"
        kept = self.kept(name, shared)
        if kept is None:
            had, began, used = [len(one) for one in said], time.monotonic(), spent()["cpu_seconds"]
            value = compute()
            added = [one[n:] for one, n in zip(said, had, strict=True)]
            took = (time.monotonic() - began, spent()["cpu_seconds"] - used)
            return cast(_V, self.keep(name, (value, added, took), shared)[0])
        value, added, took = kept
        for one, more in zip(said, added, strict=True):
            one += more
        self._resumed(name, took, tell)
        return cast(_V, value)

    def each(
        self,
        names: Sequence[str],
        compute: Callable[[list[int]], Iterator[tuple[int, _V]]],
        tell: Callable[[str, int, int], None],
    ) -> list[_V]:
        """See :meth:`moescope.study.protocol.Context.each`."""
        found: dict[int, _V] = {}
        for number, name in enumerate(names):
            if (kept := self.kept(name)) is not None:
                found[number], took = kept
                self._resumed(name, took, tell)
        began, used = time.monotonic(), spent()["cpu_seconds"]
        for number, value in compute([n for n in range(len(names)) if n not in found]):
            now = time.monotonic(), spent()["cpu_seconds"]
            found[number] = self.keep(names[number], (value, (now[0] - began, now[1] - used)))[0]
            began, used = now
        return [found[number] for number in range(len(names))]

    def _resumed(self, name: str, took: Sequence[float], tell: Callable[[str, int, int], None]) -> None:
        self.seconds, self.cpu_seconds = self.seconds + took[0], self.cpu_seconds + took[1]
        tell(f"resumed: {name}", 1, 1)

    def kept(self, name: str, shared: Mapping[str, object] = _NOTHING) -> Any:
        """What :meth:`keep` kept last; None where there is nothing, or nothing whole."""
        place = self.place(name)
        if place is None or not place.is_file():
            return None
        try:
            arrays, _ = load_arrays(place, _FORMAT, mapped=True)
            return value_of(parse_json(arrays.pop(_TREE).tobytes()), arrays, shared)
        except (InputError, KeyError, TypeError, ValueError, AttributeError, ImportError):
            _remove(place)
            return None

    def keep(self, name: str, value: Any, shared: Mapping[str, object] = _NOTHING) -> Any:
        """Keep ``value`` in the place of what was; gives what :meth:`kept` will. A disk without room for it keeps nothing from
        here on.

        Raises:
            TypeError: it holds what cannot be kept, see :mod:`moescope.study.tree`.
        """
        place = self.place(name)
        if place is None:
            return value
        trees = Trees(shared)
        tree = trees.tree(value)
        text = np.frombuffer(json.dumps(tree).encode(), np.uint8)
        try:
            save_arrays(place, {**trees.arrays, _TREE: text}, {"format": _FORMAT})
        except InputError:
            self.clear()  # the room is wanted for the result
            self._folder = None
        return value_of(tree, trees.arrays, shared)

    def clear(self) -> None:
        """Remove all of it."""
        if self._folder is not None:
            _remove(self._folder)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _digest(text: str, *arrays: np.ndarray) -> str:
    digest = hashlib.sha256(text.encode())
    for array in arrays:
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]


@cache
def _code() -> tuple[str, ...]:
    """What tells one state of moescope's own code from another: a stage is none of an older one's."""
    root = Path(__file__).parents[1]
    found = ((path, path.stat()) for path in sorted(root.rglob("*.py")))
    return tuple(f"{path.relative_to(root)} {stat.st_size} {stat.st_mtime_ns}" for path, stat in found)
