"""Give a reader damaged input and judge what it does: the only good ends are an InputError and a use that succeeds."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from zlib import crc32

import numpy as np

from moescope.errors import InputError
from tests.fuzz import given, recorded, saved  # noqa: F401  (what they register)
from tests.fuzz.folders import Files, damaged_files
from tests.fuzz.registry import READERS, Reader

SECONDS = 5.0
"""of the processor, that a reader may take at most"""
MEMORY = 512 * 2**20
"""bytes that a reader may take at most, of inputs of a few kilobytes"""
_ADDRESSES = 3 * 2**30  # of address space beyond what the process has: what asks for more gets a MemoryError


@dataclass
class Tally:
    """What came of the inputs of one reader."""

    inputs: int = 0
    refused: int = 0
    read: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    """by kind and place"""
    first: dict[str, int] = field(default_factory=dict)
    """number of the first input with each fault"""

    @property
    def failed(self) -> int:
        return self.faults.total()


def fuzz(reader: Reader, inputs: int, *, seed: int = 0, first: int = 0) -> Tally:
    """``inputs`` damaged versions of the reader's valid input, the same for the same seed."""
    tally = Tally()
    with _scratch() as scratch, _limits(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        valid = seeds(reader, scratch / "seed")
        for number in range(first, first + inputs):
            rng = np.random.default_rng([seed, crc32(reader.name.encode()), number])
            fault = attempt(reader, damaged_files(valid, rng), scratch / "folder-of-input")
            tally.inputs += 1
            if fault is None:
                tally.read += 1
            elif fault == "":
                tally.refused += 1
            else:
                tally.faults[fault] += 1
                tally.first.setdefault(fault, number)
    return tally


def seeds(reader: Reader, folder: Path) -> Files:
    """The files of the reader's valid input, which it reads.

    Raises:
        AssertionError: it does not.
    """
    folder.mkdir()
    reader.make(folder)
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    for _ in range(2):  # the first imports what the reader needs
        fault = attempt(reader, files, folder.with_name("valid"))
    assert fault == (None if reader.valid else ""), f"{reader.name}: {fault or 'its valid input is refused'}"
    return files


def attempt(reader: Reader, files: Files, folder: Path) -> str | None:
    """Let ``reader`` at ``files``, written into ``folder``: None if it used them, "" if it refused them, else how it failed."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    folder.mkdir(exist_ok=True)
    before, start = _reset_peak(), time.process_time()
    end: str | None = None
    try:
        reader.read(folder)
    except InputError as error:
        end = _wording(str(error), folder, files if reader.files else {})
    except Exception as error:
        return f"{type(error).__name__} at {_place(error)}"
    if time.process_time() - start > SECONDS:
        return f"took longer than {SECONDS:g} s"
    if before is not None and _peak() - before > MEMORY:
        return f"took more than {MEMORY >> 20} MiB"
    return end


def _wording(message: str, folder: Path, files: Files) -> str:
    """What is wrong with the one line that a user sees; empty if nothing is."""
    if not message.isprintable():
        return "message with control characters"
    if len(message) > 3000:
        return "message of more than 3,000 characters"
    # a model is named by its folder
    named = any(folder.name in message or any(part in message for part in Path(name).parts) for name in files)
    return "" if named or not files else "message that names no file"


def _place(error: BaseException) -> str:
    """The innermost line of the package that the error passed."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/moescope/" in f.filename]
    if not frames:
        frames = traceback.extract_tb(error.__traceback__)[-1:]
    file = frames[-1].filename.rpartition("/moescope/")[2]
    return f"{os.path.relpath(file) if os.path.isabs(file) else file}: {frames[-1].name}"


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


@contextlib.contextmanager
def _limits() -> Iterator[None]:
    """Where the system has them: a header that lies must not take the machine along."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError):
        yield
        return
    old = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + _ADDRESSES, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, old)


def _reset_peak() -> int | None:
    """Begin to count the most memory that is used; what is used now. None where the system does not tell."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return _peak()


def _peak() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return 0


def chosen(names: list[str]) -> list[Reader]:
    """Readers by the beginnings of their names; all where none is given."""
    return [r for r in READERS.values() if not names or any(r.name.startswith(n) for n in names)]
