"""The clock of an early exit: layers weighed by their time, what surrounds them told apart, and a budget that is kept."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from torch import nn

from moescope.capture.encode import Encoded
from moescope.models import LoadedModel
from moescope.runtime.exit.classifier import ExitClassifier
from moescope.runtime.exit.heads import Heads
from moescope.studies.exit.speed import measure
from tests.architectures import tiny_model

TEXTS = Encoded.from_ids([np.arange(n) % 7 + 1 for n in (6, 5, 5, 4)])


class Clock:
    """Time that passes in modules alone, and a little at every look."""

    def __init__(self) -> None:
        self.now, self.handles = 0.0, []  # type: ignore[var-annotated]

    def perf_counter(self) -> float:
        self.now += 1e-6
        return self.now

    def charge(self, module: nn.Module, seconds: float) -> None:
        """Every run of ``module`` takes as long."""

        def spend(*_: object) -> None:
            self.now += seconds

        self.handles.append(module.register_forward_hook(spend, prepend=True))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    made = Clock()
    monkeypatch.setattr("moescope.studies.exit.speed.time", made)
    yield made
    for handle in made.handles:
        handle.remove()


@pytest.fixture
def model() -> LoadedModel:
    return tiny_model("llama")


@pytest.fixture
def made(model: LoadedModel) -> ExitClassifier:
    shape = (model.n_layers, 2, model.d_model)
    weight = tuple(np.random.default_rng(0).standard_normal(shape).astype(np.float32))
    heads = Heads("linear", weight, tuple(np.zeros((model.n_layers, 2), np.float32)))
    return ExitClassifier(model, heads, ("a", "b"), 0.6, tuple(range(model.n_layers)))


@pytest.mark.parametrize("batch", [1, 64])
def test_a_layer_weighs_what_it_takes(model: LoadedModel, made: ExitClassifier, clock: Clock, batch: int) -> None:
    """The last layer takes nine tenths of the time: who leaves it out alone leaves those out, and gets them back."""
    n = model.n_layers
    for number, layer in enumerate(model.structure.layers):
        clock.charge(layer, 9.0 if number == n - 1 else 1 / (n - 1))
    full, row = measure({"full depth": made.full, "without the last": made.fixed(n - 2)}, TEXTS, batch, seconds=1e6).rows
    assert (full["share"], full["speedup"], full["low"], full["high"]) == (1, 1, 1, 1)
    assert row["share"] == pytest.approx(0.1, abs=1e-4)
    assert row["speedup"] == pytest.approx(10, abs=0.01)
    assert row["of_layers"] == pytest.approx(1, abs=1e-3)
    assert row["low"] <= row["speedup"] <= row["high"]
    assert (row["batch"], row["texts"], row["turns"]) == (batch, 4, 5)
    assert row["outside"] < 1e-4


def test_what_comes_before_the_layers_is_told(model: LoadedModel, made: ExitClassifier, clock: Clock) -> None:
    """No layer that is left out gives back what the embedding takes."""
    n = model.n_layers
    clock.charge(model.body.get_input_embeddings(), 1.0)  # type: ignore[operator]
    for layer in model.structure.layers:
        clock.charge(layer, 1.0)
    timed = measure({"full depth": made.full, "first layer": made.fixed(0)}, TEXTS, 1, seconds=1e6)
    row = timed.rows[1]
    assert row["outside"] == pytest.approx(1 / (n + 1), abs=1e-4)
    assert row["layer_speedup"] == pytest.approx(n, abs=1e-3)
    assert row["speedup"] == pytest.approx((n + 1) / 2, abs=1e-3)
    np.testing.assert_allclose(timed.ends, np.tile(np.arange(1, n + 2), (4, 1)), atol=1e-3)


def test_a_budget_leaves_texts_out(model: LoadedModel, made: ExitClassifier, clock: Clock) -> None:
    """A first pass in which the turns to come have a share, so that all of it takes what was given."""
    for layer in model.structure.layers:
        clock.charge(layer, 1.0)
    contenders = {"full depth": made.full, "first layer": made.fixed(0)}
    for seconds, texts in ((0.0, 1), (15.0 * model.n_layers, 2), (1e6, 4)):
        began = clock.now
        timed = measure(contenders, TEXTS, 1, seconds=seconds)
        assert [row["texts"] for row in timed.rows] == [texts, texts]
        assert len(timed.texts) == len(timed.ends) == texts
        if texts == 2:
            assert clock.now - began < seconds + 2 * model.n_layers
