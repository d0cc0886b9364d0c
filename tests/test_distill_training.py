"""Training: it learns, it resumes after a kill to the same curve, it stops what diverges, and it chooses on validation."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from moescope.errors import InputError
from moescope.studies.distill.comparisons import log_interval, log_ratio
from moescope.studies.distill.data import ArrayPairs, Block, scaling_of
from moescope.studies.distill.evaluate import Evaluation, evaluate
from moescope.studies.distill.optimizer import RowAdam
from moescope.studies.distill.revive import revive
from moescope.studies.distill.runs import run_students
from moescope.studies.distill.settings import DistillSettings
from moescope.studies.distill.spec import StudentSpec
from moescope.studies.distill.students import LayerShape, Student
from moescope.studies.distill.training import Job, TrainSettings, train

SHAPE = LayerShape(8, 5, "relu", False)
SPECS = {
    "dense": StudentSpec(kind="dense", shared=6),
    "moe": StudentSpec(shared=3, experts=40, active=3, rank=4),
    "transcoder": StudentSpec(kind="transcoder", experts=30, active=4),
}


def pairs(n: int = 4000) -> ArrayPairs:
    draw = torch.Generator().manual_seed(0)
    up, down = torch.randn(20, 8, generator=draw), torch.randn(5, 20, generator=draw)

    def block(size: int) -> Block:
        x = torch.randn(size, 8, generator=draw)
        return Block(x, torch.relu(x @ up.T) @ down.T, None)

    return ArrayPairs("mlp", {"train": block(n), "validation": block(500), "test": block(500)}, buffer=1000)


def jobs(lr: float = 1e-2) -> dict[str, Job]:
    scaling = scaling_of(pairs())
    return {name: Job(Student(spec, SHAPE, scaling, seed=1), lr) for name, spec in SPECS.items()}


def test_students_learn_and_their_loss_is_their_fvu() -> None:
    made = jobs()
    train(pairs(), made, TrainSettings(steps=300, batch=128, every=100))
    for name, job in made.items():
        assert job.status == "trained"
        assert [point["step"] for point in job.curve] == [100, 200, 300]
        found = evaluate(job.student, pairs(), "validation")
        assert job.validation == pytest.approx(found.fvu, rel=1e-4)
        assert job.curve[-1]["train"] == pytest.approx(found.fvu, rel=0.25)
        assert found.fvu < 0.5, name
    load = evaluate(made["moe"].student, pairs(), "test").load
    assert load.sum() == pytest.approx(3)  # three experts a token


def test_many_in_one_pass_are_the_same_as_each_alone() -> None:
    together, settings = jobs(), TrainSettings(steps=20, batch=128, every=20)
    train(pairs(), together, settings)
    for name in SPECS:
        alone = {name: jobs()[name]}
        train(pairs(), alone, settings)
        assert alone[name].curve == together[name].curve


def test_learning_rate_falls_along_a_cosine() -> None:
    """With a gradient of one sign Adam moves by about lr each step: the whole way is the sum of the schedule."""

    weight = torch.nn.Parameter(torch.zeros(1))
    adam = RowAdam([weight])
    total = 50
    for step in range(total):
        weight.grad = torch.ones(1)
        adam.step(0.1 * 0.5 * (1 + np.cos(np.pi * step / total)))
    assert float(weight.detach()) == pytest.approx(-0.1 * (total + 1) / 2, rel=1e-4)


def test_resuming_gives_the_same_curve_and_weights(tmp_path: Path) -> None:
    settings = TrainSettings(steps=90, batch=128, every=20)  # epochs end in between: 31 batches each
    whole_run = jobs()
    train(pairs(), whole_run, settings)
    kept = TrainSettings(steps=90, batch=128, every=20, checkpoint=tmp_path / "c.safetensors")

    def interrupt(step: int, total: int) -> None:
        if step == 53:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(pairs(), jobs(), kept, interrupt)
    steps: list[int] = []
    resumed = jobs()
    train(pairs(), resumed, kept, lambda step, total: steps.append(step))
    assert steps[0] == 41  # from the last point of the curve, not from the start
    for name in SPECS:
        assert resumed[name].curve == whole_run[name].curve
        for a, b in zip(resumed[name].student.parameters(), whole_run[name].student.parameters(), strict=True):
            assert torch.equal(a, b)


def test_a_killed_process_resumes_to_the_same_curve(tmp_path: Path) -> None:
    """SIGKILL in the middle of training, not an exception that the code could tidy up after."""
    file = tmp_path / "c.safetensors"
    code = f"""
import time, torch
from pathlib import Path
from moescope.studies.distill.training import TrainSettings, train
from tests.test_distill_training import jobs, pairs
settings = TrainSettings(steps=90, batch=128, every=20, checkpoint=Path({str(file)!r}))
train(pairs(), jobs(), settings, lambda step, total: time.sleep(0.02 if step < 45 else 60))
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[1])
    try:
        deadline = time.monotonic() + 60
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(1)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    settings = TrainSettings(steps=90, batch=128, every=20)
    expected, resumed, steps = jobs(), jobs(), []
    train(pairs(), expected, settings)
    kept = TrainSettings(steps=90, batch=128, every=20, checkpoint=file)
    train(pairs(), resumed, kept, lambda step, total: steps.append(step))
    assert 21 <= steps[0] <= 61
    assert {n: j.curve for n, j in resumed.items()} == {n: j.curve for n, j in expected.items()}


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "c.safetensors"
    train(pairs(), jobs(), TrainSettings(steps=10, batch=128, every=10, checkpoint=file))
    with pytest.raises(InputError, match="other settings"):
        train(pairs(), jobs(), TrainSettings(steps=20, batch=128, every=10, checkpoint=file))
    with pytest.raises(InputError, match="other students"):
        train(pairs(), jobs(lr=1e-3), TrainSettings(steps=10, batch=128, every=10, checkpoint=file))
    with pytest.raises(InputError, match="other data"):
        train(pairs(3000), jobs(), TrainSettings(steps=10, batch=128, every=10, checkpoint=file))


@pytest.mark.parametrize("steps", [None, 10])
def test_too_little_data_for_a_batch_is_refused(steps: int | None) -> None:
    with pytest.raises(InputError, match=r"4000 training vectors \(buffer 1000\) do not fill a batch of 2000"):
        train(pairs(), jobs(), TrainSettings(steps=steps, batch=2000))


def test_divergence_stops_one_student_with_its_step_and_spares_the_others() -> None:
    made = jobs()
    made["wild"] = Job(Student(SPECS["moe"], SHAPE, scaling_of(pairs()), seed=1), 1e6)
    train(pairs(), made, TrainSettings(steps=30, batch=128, every=10))
    assert made["wild"].status.startswith("diverged at step ")
    assert made["wild"].validation == float("inf")
    assert made["moe"].status == "trained"
    assert np.isfinite(made["moe"].validation)


def test_bf16_comes_close_to_fp32() -> None:
    made = {precision: jobs() for precision in ("fp32", "bf16")}
    for precision, these in made.items():
        train(pairs(), these, TrainSettings(steps=150, batch=128, every=150, precision=precision))
    for name in SPECS:
        a, b = (made[precision][name].validation for precision in ("fp32", "bf16"))
        assert a != b
        assert b < 1.3 * a + 0.02, name


def test_rate_is_chosen_on_validation_and_every_seed_is_tested() -> None:
    settings = DistillSettings(layer=0, experts=40, active=(3,), rank=4, lr=(1e-5, 1e-2), seeds=3, steps=60, batch=128)
    runs = run_students(pairs(), SPECS, SHAPE, settings)
    rows = runs.rows
    assert set(rows[rows["chosen"]]["lr"]) == {1e-2}
    assert (rows[rows["chosen"]].groupby("student")["seed"].nunique() == 3).all()
    rejected = rows[~rows["chosen"]]
    assert len(rejected) == 3
    assert rejected["fvu"].isna().all()  # the test split is not looked at before the choice
    assert rows[rows["chosen"]]["fvu"].nunique() == 9


def test_revived_experts_get_used() -> None:
    student = Student(StudentSpec(shared=2, experts=60, active=2, router="full"), SHAPE, scaling_of(pairs()), seed=0)
    with torch.no_grad():
        student.router.weight[20:] = student.router.weight[0] * 0.01  # never among the best two
    before = evaluate(student, pairs(), "validation").load
    dead = torch.from_numpy(before == 0)
    assert float(dead.float().mean()) > 0.5
    optimizer = RowAdam(student.parameters())
    loss = evaluate(student, pairs(), "validation").fvu
    block = pairs().load("train", np.arange(2000))
    assert revive(student, optimizer, dead, block, seed=0) == int(dead.sum())
    after = evaluate(student, pairs(), "validation").load
    assert (after[dead.numpy()] > 0).mean() > 0.5
    assert evaluate(student, pairs(), "validation").fvu < loss * 1.5  # they begin without a say


def test_load_statistics() -> None:
    even, skewed = Evaluation(0.1, 100, np.full(8, 0.25)), Evaluation(0.1, 100, np.array([1.0, 1.0, 0, 0, 0, 0, 0, 0]))
    assert even.dead == 0
    assert even.load_entropy == pytest.approx(1)
    assert skewed.dead == 0.75
    assert skewed.load_entropy == pytest.approx(1 / 3)
    assert even.touched(1) == pytest.approx(2)
    assert even.touched(1000) == pytest.approx(8)
    assert skewed.touched(1000) == pytest.approx(2)


def test_ratio_pairs_documents_and_its_interval_covers() -> None:
    """Documents differ by a factor of ten in both students alike: unpaired the interval would be wide."""
    rng = np.random.default_rng(0)
    size = np.exp(rng.normal(0, 1, 30))
    exact = log_ratio(np.tile(2 * size, (3, 1)), np.tile(size, (3, 1)))
    assert exact.interval == pytest.approx((np.log(2), np.log(2)))
    assert exact.agrees
    for documents in (8, 30, 200):
        hits = 0
        for seed in range(400):
            draw = np.random.default_rng(seed)
            size = np.exp(draw.normal(0, 0.5, documents))
            worse, better = (size * np.exp(draw.normal(-0.02, 0.2, (3, documents))) for _ in range(2))
            low, high = log_ratio(worse, better, seed).interval
            hits += low <= 0 <= high
        assert hits / 400 == pytest.approx(0.95, abs=0.035), documents


def test_seeds_that_disagree_widen_the_interval_until_it_holds_them_all() -> None:
    size = np.exp(np.random.default_rng(0).normal(0, 1, 60))
    better = np.outer(np.exp([-0.2, -0.3, 0.1]), size)  # two seeds gain, one loses: on every document
    found = log_ratio(np.tile(size, (3, 1)), better)
    assert not found.agrees
    assert found.value > 0.1
    assert found.interval[0] <= -0.1
    assert found.p > 0.05


def test_interval_over_seeds_covers() -> None:
    rng = np.random.default_rng(0)
    hits = [low <= 1 <= high for low, high in (log_interval(np.exp(rng.normal(0, 0.1, 3))) for _ in range(2000))]
    assert np.mean(hits) == pytest.approx(0.95, abs=0.015)
