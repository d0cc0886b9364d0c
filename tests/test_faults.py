"""A small part of ``python -m tests.faults``: what is killed, or finds no room, leaves the old output or the new one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

import moescope
from moescope import StudyResult
from moescope.cli import app, main
from moescope.errors import InputError
from moescope.files import folder as folders
from moescope.files.lock import locked
from tests.faults.check import damage_everywhere, strike_everywhere
from tests.faults.commands import COMMANDS
from tests.faults.kinds import Kind, kinds
from tests.seals import flip

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="faults strike in a forked process")
MINE = "years of work"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kind]:
    return kinds(tmp_path_factory.mktemp("made"))


@pytest.mark.parametrize(("name", "step"), [("result with a mask", 5), ("classifier alone", 2), ("routing trace", 5)])
@pytest.mark.parametrize("fault", ["kill", "full disk"])
def test_the_old_or_the_new(made: dict[str, Kind], name: str, step: int, fault: str, tmp_path: Path) -> None:
    tally = strike_everywhere(made[name], tmp_path, fault, replacing=True, step=step)  # type: ignore[arg-type]
    assert tally.struck > 2
    assert tally.wrong == []


@pytest.mark.parametrize("name", ["result with a classifier", "student alone", "mask alone (json)", "moments, checkpoints"])
def test_damage_is_named(made: dict[str, Kind], name: str, tmp_path: Path) -> None:
    flipped, cut = damage_everywhere(made[name], tmp_path, flips=40, cuts=8)
    assert flipped.wrong + cut.wrong == []


def test_a_converted_model_is_checked_when_it_is_loaded(made: dict[str, Kind], tmp_path: Path) -> None:
    kind = made["converted checkpoint"]
    kind.new(tmp_path / "out")
    flip(tmp_path / "out" / "model.safetensors", at=0.9)
    with pytest.raises(InputError, match=r"model\.safetensors is damaged"):
        moescope.load_model(tmp_path / "out")


def result(n: int) -> StudyResult:
    return StudyResult("x", {"seed": n})


@pytest.mark.parametrize("at", [1, 2])
def test_without_an_exchange_the_old_one_is_put_back(at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems cannot exchange two folders; a kill between the two renames then leaves none in the place."""
    out = tmp_path / "out"
    result(0).save(out, figures=False)
    done = []

    class Killed(BaseException):
        pass

    def killed(a: Path, b: Path) -> None:
        done.append(a)
        if len(done) >= at:
            raise Killed
        rename(a, b)

    rename = os.rename
    monkeypatch.setattr(folders, "exchange", lambda a, b: False)
    with monkeypatch.context() as patch:
        patch.setattr(folders.os, "rename", killed)
        with pytest.raises(Killed):
            result(1).save(out, overwrite=True, figures=False)
    assert out.exists() == (at == 1)
    assert moescope.load(out) == result(0)
    result(1).save(out, overwrite=True, figures=False)
    assert moescope.load(out) == result(1)
    assert os.listdir(tmp_path) == ["out"]


def test_two_processes_on_one_output(tmp_path: Path) -> None:
    out = tmp_path / "out"
    hold = f"import time; from pathlib import Path; from moescope.files.lock import locked\nwith locked(Path({str(out)!r})):"
    other = subprocess.Popen([sys.executable, "-c", f"{hold}\n print(flush=True)\n time.sleep(99)"], stdout=subprocess.PIPE)
    assert other.stdout is not None
    other.stdout.readline()
    try:
        with pytest.raises(InputError, match=rf"out is being written by another process \({other.pid}\)"):
            result(0).save(out, figures=False)
        with pytest.raises(InputError, match="is being written by another process"):
            moescope.prune("moe-tiny", run=moescope.Run(out=out))
    finally:
        other.kill()
        other.wait()
    result(0).save(out, figures=False)  # the lock dies with its holder
    assert os.listdir(tmp_path) == ["out"]
    with locked(out), locked(out):  # one process may hold it twice
        result(1).save(out, overwrite=True, figures=False)
    assert moescope.load(out) == result(1)


def test_what_a_killed_run_left_is_cleared_and_nothing_else(tmp_path: Path) -> None:
    stale = tmp_path / ".out.abcd_123.partial"
    stale.mkdir()
    (stale / "weights").write_text("half")
    for name in (".out.mine.partial", ".other.abcd_123.partial", ".out.partial"):
        (tmp_path / name).mkdir()
    result(0).save(tmp_path / "out", figures=False)
    assert sorted(os.listdir(tmp_path)) == [".other.abcd_123.partial", ".out.mine.partial", ".out.partial", "out"]


def test_artifacts_replace_no_file_of_others(made: dict[str, Kind], tmp_path: Path) -> None:
    for name in ("mask alone (json)", "mask alone (safetensors)", "student alone", "moments, checkpoints", "trace as Parquet"):
        place = tmp_path / made[name].place
        place.write_text(MINE)
        with pytest.raises(InputError, match="is there already"):
            made[name].new(place)
        assert place.read_text() == MINE


def test_a_mistyped_model_leaves_the_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "trace"
    main(["trace", "moe-tiny", "--limit", "2", "--new-tokens", "0", "--out", str(out)])
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    with pytest.raises(SystemExit):
        main(["trace", "moe-tinny", "--limit", "2", "--new-tokens", "0", "--out", str(out), "--overwrite"])
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert os.listdir(tmp_path) == ["trace"]
    assert "moe-tinny" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_command_in_one_line(number: signal.Signals, code: int, tmp_path: Path) -> None:
    line = [sys.executable, "-m", "moescope", "prune", "moe-tiny", "--out", str(tmp_path / "made" / "out"), "--quiet"]
    # a shell's background job hands an ignored SIGINT on, which is to stay ignored
    heard = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    running = subprocess.Popen(line, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    while not list(tmp_path.iterdir()) and running.poll() is None:  # the lock: the study has begun
        time.sleep(0.02)
    running.send_signal(number)
    said = running.communicate()[1].strip().splitlines()
    assert (said[-1], running.returncode) == ("interrupted; nothing was written", code)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("other", [False, True])
def test_a_lock_that_is_interrupted_while_it_is_taken_leaves_nothing_of_its_own(
    other: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")
    place = tmp_path / ".out.lock"
    held = os.open(place, os.O_RDWR | os.O_CREAT) if other else None
    real, calls = fcntl.flock, iter([KeyboardInterrupt()])
    if held is not None:
        real(held, fcntl.LOCK_EX)

    def flock(file: int, how: int) -> None:
        for struck in calls:
            raise struck
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(KeyboardInterrupt), locked(tmp_path / "out"):
        pass
    assert place.exists() is other  # another process's stays
    if held is not None:
        os.close(held)
    with locked(tmp_path / "out") as first:
        assert first
    assert not place.exists()


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_signal_after_the_work_is_done_makes_no_failure_of_it() -> None:
    script = "import os, signal, sys; from moescope.cli import main; sys.argv[1:] = ['models']; main()"
    ended = subprocess.run(
        [sys.executable, "-c", f"{script}; os.kill(os.getpid(), signal.SIGTERM); os.kill(os.getpid(), signal.SIGINT)"],
        capture_output=True,
    )
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("name", list(COMMANDS))
def test_the_commands_of_the_table_are_commands(name: str) -> None:
    app.parse_args([name, *COMMANDS[name], "--out", "out"], exit_on_error=False, print_error=False)
