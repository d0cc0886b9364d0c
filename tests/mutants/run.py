"""Apply faults to copies of the sources, run the tests that should notice, and tell what they said."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import multiprocessing.connection
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.mutants.fault import Fault

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "moescope"
# What shows a fault: a test's own assertion, or the study that finds its control or its rows at fault itself.
_SAID = ("AssertionError", "ControlFault", "RowsOverlap")
_LIMIT = 900  # seconds, after which a fault's tests count as hung
# Imported once and shared by every run, which is forked off: they take longer than most tests do.
_HEAVY = (
    "matplotlib.pyplot",
    "numba",
    "pandas",
    "scipy.stats",
    "sklearn.linear_model",
    "torch",
    "transformers.models.llama.modeling_llama",
    "transformers.models.olmoe.modeling_olmoe",
)


@dataclass(frozen=True)
class Outcome:
    """What a run of tests came to: those that passed, and for each that did not the name of what it raised."""

    passed: list[str]
    failed: dict[str, str]
    seconds: float
    trouble: str = ""

    @property
    def caught(self) -> list[str]:
        """Tests whose own assertion failed, or whose study refused; one that broke down otherwise has shown nothing."""
        return [test for test, raised in self.failed.items() if raised in _SAID]


def check(faults: Sequence[Fault], *, jobs: int = 1) -> int:
    """Try every fault and print a table; 0 if all were caught, else 1."""
    sources = {fault.file: (ROOT / "src" / PACKAGE / fault.file).read_text() for fault in faults if _stands(fault)}
    for fault in faults:
        if fault.file not in sources:
            return _refused(f"{fault.name}: there is no {fault.file}")
        try:
            fault.applied(sources[fault.file])
        except ValueError as error:
            return _refused(str(error))
    _import_heavy()
    named = sorted({test for fault in faults for test in fault.tests})
    with _copy() as source:
        child = _Child(source, named)
        child.receiver.poll(_LIMIT)
        clean = child.outcome()
    absent = [test for test in named if not any(ran.partition("[")[0] == test or ran == test for ran in clean.passed)]
    if clean.trouble or clean.failed or absent:
        failed = ", ".join(f"{test} ({raised})" for test, raised in clean.failed.items())
        wrong = clean.trouble or failed or f"{absent[0]} did not run"
        return _refused(f"without any fault the tests must pass, and do not: {wrong}")
    print(f"without a fault: {len(clean.passed)} tests pass, {clean.seconds:.0f} s", flush=True)
    head = ("fault", "study", "control or split", "caught by", "s")
    print(f"{head[0]:<39} {head[1]:<11} {head[2]:<26} {head[4]:>5}  {head[3]}", flush=True)
    began, survived = time.time(), []
    for fault, outcome in _outcomes(faults, max(1, jobs)):
        by = ", ".join(test.partition("::")[2] for test in outcome.caught)
        if not by:
            survived.append(fault)
            broke = ", ".join(f"{test.partition('::')[2]}: {raised}" for test, raised in outcome.failed.items())
            by = f"NOT CAUGHT {outcome.trouble or broke}"
        print(f"{fault.name:<39} {fault.study:<11} {fault.where:<26} {outcome.seconds:>5.1f}  {by}", flush=True)
    print(f"{len(faults) - len(survived)} of {len(faults)} faults caught, {time.time() - began:.0f} s")
    for fault in survived:
        print(f"survived: {fault.name}: {fault.breaks}")
    return 1 if survived else 0


def _outcomes(faults: Sequence[Fault], jobs: int) -> Iterator[tuple[Fault, Outcome]]:
    """Each fault as its tests end, ``jobs`` of them at a time, from one thread, since runs are forked off it."""
    waiting, running = list(faults), {}
    with contextlib.ExitStack() as copies:
        while waiting or running:
            while waiting and len(running) < jobs:
                fault = waiting.pop(0)
                source = copies.enter_context(_copy())
                file = source / PACKAGE / fault.file
                file.write_text(fault.applied(file.read_text()))
                child = _Child(source, list(fault.tests))
                running[child.receiver] = (fault, child)
            left = min(child.began for _, child in running.values()) + _LIMIT - time.time()
            ended = multiprocessing.connection.wait(list(running), timeout=max(0, left))
            late = [connection for connection, (_, child) in running.items() if time.time() > child.began + _LIMIT]
            for connection in dict.fromkeys([*ended, *late]):
                fault, child = running.pop(connection)
                yield fault, child.outcome()


def _stands(fault: Fault) -> bool:
    return (ROOT / "src" / PACKAGE / fault.file).is_file()


def _refused(why: str) -> int:
    print(f"error: {why}", file=sys.stderr)
    return 1


@contextlib.contextmanager
def _copy() -> Iterator[Path]:
    """A folder with a copy of the package, which nothing else touches."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        ignore = shutil.ignore_patterns("zoo", "data")
        shutil.copytree(ROOT / "src" / PACKAGE, Path(folder) / PACKAGE, ignore=ignore)
        # weights and texts are large and no fault is in them
        for heavy in (ROOT / "src" / PACKAGE).rglob("*"):
            if heavy.is_dir() and heavy.name in ("zoo", "data"):
                (Path(folder) / PACKAGE / heavy.relative_to(ROOT / "src" / PACKAGE)).symlink_to(heavy)
        yield Path(folder)


def _import_heavy() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for name in _HEAVY:
        importlib.import_module(name)
    loaded = [name for name in sys.modules if name.partition(".")[0] == PACKAGE]
    assert not loaded, f"{loaded[0]} is imported already, so a copy of it would not be"


class _Child:
    """Tests that run on the package in ``source``, in a process of their own."""

    def __init__(self, source: Path, tests: list[str]) -> None:
        context: Any = multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn")
        self.began = time.time()
        self.receiver, sender = context.Pipe(duplex=False)
        self._process = context.Process(target=_run, args=(source, tests, sender))
        self._process.start()
        sender.close()

    def outcome(self) -> Outcome:
        """What came of them; to be asked when ``receiver`` is ready, or when there was enough of waiting."""
        answer: tuple[list[str], dict[str, str], str] = ([], {}, f"no answer within {_LIMIT} s")
        try:
            if self.receiver.poll():
                answer = self.receiver.recv()
        except EOFError:
            answer = ([], {}, "the process ended without an answer")
        seconds = time.time() - self.began
        if answer[2]:
            self._process.kill()
        self._process.join()
        return Outcome(answer[0], answer[1], seconds, answer[2])


def _run(source: Path, tests: list[str], sender: Any) -> None:
    os.environ["PYTHONPATH"] = f"{source}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    sys.path.insert(0, str(source))
    importlib.invalidate_caches()
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None or not Path(found.origin).is_relative_to(source):
        return sender.send(([], {}, f"{PACKAGE} would be imported from {found and found.origin}, not from the copy"))
    os.chdir(ROOT)
    notes = _Notes()
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        code = pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=no", *tests], plugins=[notes])
    trouble = "" if code in (0, 1) else f"pytest could not run the tests (exit {int(code)}) {notes.trouble}"
    sender.send((notes.passed, notes.failed, trouble))


class _Notes:
    """What each test came to."""

    def __init__(self) -> None:
        self.passed: list[str] = []
        self.failed: dict[str, str] = {}
        self.trouble = ""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
        report = yield
        if call.excinfo is not None:
            self.failed[item.nodeid] = call.excinfo.typename
        elif report.when == "call" and report.passed:
            self.passed.append(item.nodeid)
        return report

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.trouble = str(report.longrepr).strip().splitlines()[-1]
