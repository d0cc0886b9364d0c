"""What a GPU trains with is the same arithmetic in the same order: products over all rows, batches by row, captured steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moescope.kernels import dense, reference
from moescope.studies.distill.data import batch_rows, batches, scaling_of
from moescope.studies.distill.students import Student
from moescope.studies.distill.training import Job, TrainSettings, train
from tests.test_distill_training import SHAPE, SPECS, pairs


def test_products_over_all_rows_are_the_gathered_ones_with_their_gradients() -> None:
    draw = torch.Generator().manual_seed(0)
    index = torch.randint(0, 9, (5, 4), generator=draw)  # a row twice in a token among them
    assert any(len(set(row)) < 4 for row in index.tolist())
    for name, left in (("gathered_dot", (5, 7)), ("gathered_sum", (5, 4))):
        grads = []
        for module in (dense, reference):
            a = torch.randn(left, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
            w = torch.randn(9, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64, requires_grad=True)
            out = getattr(module, name)(a, w, index)
            out.square().sum().backward()
            grads.append((out.detach(), a.grad, w.grad))
        for one, two in zip(*grads, strict=True):
            torch.testing.assert_close(one, two)


def test_rows_of_an_epoch_are_its_batches() -> None:
    made = pairs()
    x = made.blocks["train"].x
    rows = batch_rows(made, 128, seed=3, epoch=2)
    expected = list(batches(made, 128, seed=3, epoch=2))
    assert len(rows) == len(expected) > 20
    for row, block in zip(rows, expected, strict=True):
        np.testing.assert_array_equal(x[torch.from_numpy(row)], block.x)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", SPECS)
def test_captured_steps_train_as_those_on_the_cpu(name: str) -> None:
    curves = []
    for device in ("cpu", "cuda"):
        job = Job(Student(SPECS[name], SHAPE, scaling_of(pairs()), seed=1).to(device), 1e-2)
        train(pairs(), {name: job}, TrainSettings(steps=100, batch=128, every=20))
        assert job.status == "trained"
        assert job.optimizer.steps == 100
        curves.append([(point["train"], point["validation"], point.get("unused")) for point in job.curve])
    np.testing.assert_allclose(np.array(curves[1], float), np.array(curves[0], float), rtol=0.02)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_captured_step_that_diverges_is_noticed() -> None:
    job = Job(Student(SPECS["moe"], SHAPE, scaling_of(pairs()), seed=1).to("cuda"), 1e6)
    train(pairs(), {"moe": job}, TrainSettings(steps=40, batch=128, every=20))
    assert job.status.startswith("diverged")
