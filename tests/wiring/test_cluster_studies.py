"""What a study finds does not depend on how many processes read for it: real ranks of torchrun, and Ray on this machine."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moescope
from moescope import Run, StudyResult
from moescope.routing import RoutingTrace
from moescope.routing.store import load_trace
from tests.same_result import difference
from tests.test_resume import VERBS

ROOT = Path(__file__).parents[2]
RUN = Run(limit=32, seed=3)

_SCRIPT = """
import dataclasses, os, sys, time
from pathlib import Path
from moescope.cli.signals import terminable
from moescope.cluster import ProcessLost, ranks
from moescope.studies.convert import layers
from moescope.studies.distill import training
from tests.wiring.test_cluster_studies import RUN, STUDIES, traced

out, dies, names, told = Path(sys.argv[1]), sys.argv[2] == "dies", sys.argv[3:], []

def dying(module, name):
    act = getattr(module, name)

    def last(*given, **options):
        act(*given, **options)
        while not list(out.glob("*.work/*.safetensors")):  # until the first rank, too, has done something
            time.sleep(0.05)
        os.kill(os.getpid(), 9)

    setattr(module, name, last)

if dies and os.environ["RANK"] == "1":
    dying(layers, "_layer")
    dying(training, "_save")
try:
    with terminable(), ranks():  # torchrun ends the ranks that are left when one dies
        for name in names:
            if name == "trace":
                traced(dataclasses.replace(RUN, out=out / name))
                continue
            run = dataclasses.replace(RUN, work=out / f"{name}.work", progress=lambda stage, *_: told.append(stage))
            STUDIES[name](run).save(out / name, figures=False)
        print(sorted({stage for stage in told if stage.startswith("resumed: splitting")}))
except ProcessLost as error:
    print(f"error: {error}")
"""


def distilled(run: Run) -> StudyResult:
    few: dict[str, Any] = {"experts": 16, "active": (2,), "rank": 4, "lr": (1e-2, 2e-2), "steps": 6, "tokens": 1500}
    return moescope.distill("dense-tiny", settings=moescope.DistillSettings(layer=1, control=("twin",), **few), run=run)


def converted(run: Run) -> StudyResult:
    few: dict[str, Any] = {"calibration_tokens": 1024, "heldout_tokens": 256, "speed": False}
    return moescope.convert("dense-tiny", settings=moescope.ConvertSettings(experts=8, active=4, **few), run=run)


STUDIES = {name: VERBS[name][0] for name in ("exit", "route", "signatures")} | {"distill": distilled, "convert": converted}


def traced(run: Run) -> RoutingTrace:
    """Also of what is drawn at random, and with what the routers said of every expert."""
    settings = moescope.TraceSettings(new_tokens=3, sample=True, scores=True)
    return moescope.trace("moe-tiny", "routing-80", settings, run=run)


@cache
def alone(name: str) -> StudyResult:
    """What one process finds."""
    return STUDIES[name](RUN)


def launched(out: Path, *names: str, then: str = "lives") -> subprocess.CompletedProcess[str]:
    script = out / "script.py"
    script.write_text(_SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(script), str(out), then, *names]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    return subprocess.run(command, capture_output=True, text=True, timeout=1500, env=settings)


@pytest.fixture(scope="module")
def by_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ranks")
    done = launched(out, *STUDIES, "trace")
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    module = pytest.importorskip("ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    module.init(num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
    yield
    module.shutdown()


def spread_over_two(result: StudyResult, name: str) -> bool:
    engine = result.meta["engine"]
    return (engine["name"], engine["processes"]) == (name, 2) and engine["shards_elsewhere"] >= 2


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_two_ranks_find_what_one_process_finds(by_ranks: Path, name: str) -> None:
    found = moescope.load(by_ranks / name)
    assert spread_over_two(found, "torchrun")
    assert difference(found, alone(name)) is None


@pytest.mark.slow
def test_two_ranks_trace_what_one_process_traces(by_ranks: Path) -> None:
    same_trace(load_trace(by_ranks / "trace"), traced(RUN))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["distill", "convert"])
def test_a_rank_that_dies_is_named_and_the_run_goes_on(name: str, tmp_path: Path) -> None:
    died = launched(tmp_path, name, then="dies")
    assert died.stdout.startswith("error: rank 1 died; torchrun's report names its exit code."), died.stdout
    assert not (tmp_path / name).exists()
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / f"{name}.work").glob("*.safetensors")}
    assert kept
    again = launched(tmp_path, name)
    assert again.returncode == 0, again.stderr
    assert ("resumed: splitting layer 0" in again.stdout) == (name == "convert")
    assert difference(moescope.load(tmp_path / name), alone(name)) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_ray_finds_what_one_process_finds(ray: None, name: str) -> None:
    found = STUDIES[name](dataclasses.replace(RUN, engine="ray"))
    assert spread_over_two(found, "ray")
    assert difference(found, alone(name)) is None


@pytest.mark.slow
def test_ray_traces_what_one_process_traces(ray: None) -> None:
    same_trace(traced(dataclasses.replace(RUN, engine="ray")), traced(RUN))


def same_trace(found: RoutingTrace, wanted: RoutingTrace) -> None:
    """To the last bit."""
    assert found.sequences == wanted.sequences
    for name in ("ids", "tokens", "weights", "scores"):
        assert getattr(found, name).dtype == getattr(wanted, name).dtype
        assert np.array_equal(getattr(found, name), getattr(wanted, name)), name
