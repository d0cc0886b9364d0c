"""What is read does not depend on how many processes read it: each shard once, each row at its place, merged in any order."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import moescope
from moescope.capture import Encoded, Moments, activations, moments
from moescope.capture.reduce import RowMoments
from moescope.cluster import LOCAL, engine_of, share
from moescope.errors import InputError
from moescope.intervene import intervene
from moescope.models import LoadedModel, load, random_twin
from moescope.models.forward_tokens import ForwardTokens
from moescope.models.spread import Spread
from moescope.types import Neuron, Site

SITES = [Site("resid", 1), Site("resid", 4)]


class Several:
    """Processes that are none, but that see only what can be pickled, and answer in the order that they end in."""

    name = "several"
    elsewhere = 0

    def __init__(self, processes: int, order: int = 0, forget: bool = False, twice: bool = False) -> None:
        self.processes, self.order, self.forget, self.twice = processes, order, forget, twice
        self.used: set[int] = set()

    def map(self, collect: Any, shards: Sequence[Any], costs: Sequence[float], *, here: Any) -> Iterator[tuple[int, Any]]:
        found = []
        for part, numbers in enumerate(share(costs, self.processes)):
            own = [shards[n] for n in numbers]
            act, own = pickle.loads(pickle.dumps((collect, own))) if part else (here, own)
            self.used |= {part} if numbers else set()
            found += list(zip(numbers, pickle.loads(pickle.dumps(list(act(own)))), strict=True))
        found = found[1:] if self.forget else found + found[:1] if self.twice else found
        yield from (found[i] for i in np.random.default_rng(self.order).permutation(len(found)))


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load("dense-tiny", device="cpu")


@pytest.fixture(scope="module")
def texts() -> Encoded:
    rng = np.random.default_rng(0)
    return Encoded.from_ids([rng.integers(5, 500, n) for n in rng.integers(1, 40, 60)])


def over(model: LoadedModel, engine: Any) -> LoadedModel:
    spread = model.read_as()
    spread.spread = Spread.of(engine, "dense-tiny", {"device": "cpu"})
    return spread


def refusal(call: Callable[[], object]) -> str:
    """What it says when it raises."""
    try:
        call()
    except (InputError, RuntimeError) as error:
        return str(error)
    return ""


def test_every_shard_is_in_one_part_and_none_costs_much_more_than_another() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        costs, parts = rng.integers(1, 1000, rng.integers(0, 40)).tolist(), int(rng.integers(1, 9))
        shared = share(costs, parts)
        assert len(shared) == parts
        assert sorted(number for part in shared for number in part) == list(range(len(costs)))
        loads = [sum(costs[number] for number in part) for part in shared]
        assert max(loads) - min(loads) <= max(costs, default=0)


def test_moments_of_any_shards_merge_to_the_same_in_any_order() -> None:
    rng = np.random.default_rng(0)
    for trial in range(30):
        rows, folds, classes, width = int(rng.integers(2, 80)), int(rng.integers(1, 4)), int(rng.integers(1, 4)), 5
        x = torch.from_numpy(rng.standard_normal((rows, 2, width)) + 10.0 ** rng.integers(-2, 3))
        label, fold = rng.integers(0, classes, rows), rng.integers(0, folds, rows)
        none = Moments.zeros(folds, classes, SITES, width)

        def of(pick: np.ndarray, x: torch.Tensor = x, label: Any = label, fold: Any = fold, none: Moments = none) -> Moments:
            part = RowMoments(torch.ones(len(pick), dtype=torch.int64), x[pick], torch.zeros_like(x[pick]))
            return none.update(part, label[pick], fold[pick])

        whole = of(np.arange(rows))
        shards = [of(part) for part in np.array_split(rng.permutation(rows), int(rng.integers(1, rows + 1)))]
        # left to right, and in pairs of pairs
        pairs = list(shards)
        while len(pairs) > 1:
            pairs = [pairs[i].merge(pairs[i + 1]) if i + 1 < len(pairs) else pairs[i] for i in range(0, len(pairs), 2)]
        for merged in (reduce(Moments.merge, shards), reduce(Moments.merge, shards[::-1]), pairs[0]):
            assert np.array_equal(merged.n, whole.n), trial
            np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-10)
            np.testing.assert_allclose(merged.m2, whole.m2, rtol=1e-10, atol=1e-10 * float(np.square(x.numpy()).sum()))


@pytest.mark.parametrize("processes", [2, 3, 7])
@pytest.mark.parametrize("position", ["final", "mean"])
def test_activations_are_those_of_one_process(model: LoadedModel, texts: Encoded, processes: int, position: Any) -> None:
    engine = Several(processes, order=processes)
    told: list[tuple[int, int]] = []
    found = activations(
        over(model, engine), texts, SITES, position=position, batch_tokens=128, progress=lambda *at: told.append(at)
    )
    assert np.array_equal(found, activations(model, texts, SITES, position=position, batch_tokens=128))
    alone = [activations(model, texts.rows(i, i + 1), SITES, position=position) for i in range(0, 60, 7)]
    np.testing.assert_allclose(found[::7], np.concatenate(alone), rtol=1e-4, atol=1e-4)
    assert len(engine.used) == processes
    assert told[-1] == (len(texts), len(texts))


def test_rounds_of_batches_are_put_together(model: LoadedModel, texts: Encoded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moescope.capture.spread._ROUND_TOKENS", 128)
    found = activations(over(model, Several(2)), texts, SITES, batch_tokens=128)
    assert np.array_equal(found, activations(model, texts, SITES, batch_tokens=128))


def test_moments_are_those_of_one_process(model: LoadedModel, texts: Encoded) -> None:
    label, fold = np.arange(60) % 2, np.arange(60) % 3
    once = moments(model, texts, SITES, label, fold, position="all", batch_tokens=128)
    for processes in (2, 5):
        engine = Several(processes, order=processes)
        found = moments(over(model, engine), texts, SITES, label, fold, position="all", batch_tokens=128)
        assert np.array_equal(found.n, once.n)
        np.testing.assert_allclose(found.mean, once.mean, rtol=1e-10, atol=1e-13)
        np.testing.assert_allclose(found.m2, once.m2, rtol=1e-10)


@pytest.mark.parametrize(("fault", "times"), [("forget", 0), ("twice", 2)])
def test_a_shard_that_is_forgotten_or_read_twice_is_noticed(model: LoadedModel, texts: Encoded, fault: str, times: int) -> None:
    said = refusal(lambda: activations(over(model, Several(2, **{fault: True})), texts, SITES, batch_tokens=128))
    assert f"was read {times} times, not once" in said


def test_the_twin_is_the_twin_in_every_process(model: LoadedModel, texts: Encoded) -> None:
    spread = over(model, Several(2))
    found = activations(random_twin(spread, 3), texts, SITES, batch_tokens=128)
    assert np.array_equal(found, activations(random_twin(model, 3), texts, SITES, batch_tokens=128))
    assert not np.allclose(found, activations(model, texts, SITES, batch_tokens=128))


def test_forward_tokens_of_all_processes_are_counted(model: LoadedModel, texts: Encoded) -> None:
    counted = []
    for one in (model, over(model, Several(3))):
        tokens = ForwardTokens()
        with tokens.of(one, "read"):
            activations(one, texts, SITES, batch_tokens=128)
        counted.append(tokens.totals())
    assert counted[0] == counted[1]
    assert 0 < counted[0]["read"] < texts.lengths.sum()


def test_a_model_that_is_intervened_on_is_read_here(model: LoadedModel, texts: Encoded) -> None:
    engine = Several(2)
    spread = over(model, engine)
    neurons = [Neuron(Site("resid", 0), index) for index in range(20)]
    with intervene(model, neurons, "zero"):
        wanted = activations(model, texts, SITES)
    with intervene(spread, neurons, "zero"):
        found = activations(spread, texts, SITES)
    assert np.array_equal(found, wanted)
    assert not engine.used


def test_another_model_in_another_process_is_refused(model: LoadedModel, texts: Encoded) -> None:
    other = random_twin(model)
    other.spread = Spread.of(Several(2), "dense-tiny", {"device": "cpu"})
    said = refusal(lambda: activations(other, texts, "resid:1", batch_tokens=128))
    assert "dense-tiny is another model in another process" in said


def test_what_is_not_spread_says_so(model: LoadedModel) -> None:
    with pytest.raises(InputError, match=r"^engine: prune is not spread over processes"):
        moescope.prune("moe-tiny", run=moescope.Run(engine="ray"))
    with pytest.raises(InputError, match=r"^address: is that of a Ray cluster"):
        engine_of("local", "auto")
    with pytest.raises(InputError, match=r"^model: is in memory"):
        Spread.of(Several(2), model, {})
    assert Spread.of(LOCAL, model, {}) is None


# What follows starts processes

_SCRIPT = """
import os, sys, time
from moescope.cli.signals import terminable
from moescope.cluster import ProcessLost, engine_of, ranks
from moescope.errors import InputError

def collect(shards):
    for shard in shards:
        if shard in ("bad", "die") and os.environ["RANK"] == "1":
            if shard == "die":
                os.kill(os.getpid(), 9)
            raise InputError(f"{shard}: is bad")
        yield shard, os.environ["RANK"]

def answers(*shards):
    return sorted(engine_of("local").map(collect, shards, [1] * len(shards), here=collect))

try:
    with terminable(), ranks():  # torchrun ends the ranks that are left when one dies
        print(answers("one", "two", "three", "four"))
        answers("one", sys.argv[1])
        time.sleep(5)  # not reached, but where torchrun's signal comes before the silence is heard
except (InputError, ProcessLost) as error:
    print(f"error: {error}")
"""


def launched(folder: Path, *arguments: str, module: bool = False) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *(["-m"] if module else []), *arguments]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=500, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


@pytest.mark.parametrize(
    ("what", "said"), [("bad", "bad: is bad"), ("die", "rank 1 died; torchrun's report names its exit code.")]
)
def test_ranks_answer_fail_and_die(tmp_path: Path, what: str, said: str) -> None:
    (tmp_path / "script.py").write_text(_SCRIPT)
    done = launched(tmp_path, "script.py", what)
    answers, error, *more = done.stdout.splitlines()
    assert answers == "[(0, ('one', '0')), (1, ('two', '1')), (2, ('three', '0')), (3, ('four', '1'))]"
    assert error.startswith(f"error: {said}")
    assert not more


@pytest.mark.slow
def test_torchrun_finds_the_circuits_of_one_process(tmp_path: Path) -> None:
    task = ["dense-tiny", "--task", "certainty=halueval", "--limit", "40", "--ks", "5,10", "--permutations", "50"]
    done = launched(tmp_path, "moescope", "circuits", *task, "--out", "two", "--quiet", module=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report: ") == 1
    subprocess.run([sys.executable, "-m", "moescope", "circuits", *task, "--out", "one", "--quiet"], cwd=tmp_path, check=True)
    one, two = moescope.load(tmp_path / "one"), moescope.load(tmp_path / "two")
    assert one.claims == two.claims
    assert one.meta["forward_tokens"] == two.meta["forward_tokens"]
    engine = two.meta["engine"]
    assert (engine["name"], engine["processes"]) == ("torchrun", 2)
    assert engine["shards_elsewhere"] >= 3  # of the texts, the template and the twin
    for name, table in one.tables.items():
        assert table.equals(two.tables[name]), name


@pytest.mark.slow
def test_ray_finds_the_circuits_and_the_trace_of_one_process(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
    try:
        settings, generated = moescope.CircuitSettings(ks=(5, 10), n_permutations=50), moescope.TraceSettings(new_tokens=2)
        found = [
            moescope.circuits("dense-tiny", ["certainty=halueval"], settings, run=moescope.Run(limit=40, engine=engine))
            for engine in ("local", "ray")
        ]
        assert found[0].claims == found[1].claims
        engine = found[1].meta["engine"]
        assert (engine["name"], engine["processes"]) == ("ray", 2)
        assert engine["shards_elsewhere"] >= 6  # of the texts, the template and the twin
        one, two = (
            moescope.trace("moe-tiny", "routing-80", generated, run=moescope.Run(limit=8, engine=engine))
            for engine in ("local", "ray")
        )
        assert np.array_equal(one.ids, two.ids)
        assert np.array_equal(one.tokens, two.tokens)
    finally:
        ray.shutdown()
