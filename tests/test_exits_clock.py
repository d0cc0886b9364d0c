"""The clock of an early exit: layers weighed by their time, what surrounds them told apart, and a budget that is kept."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from torch import nn

from moescope.capture.encode import Encoded
from moescope.models import LoadedModel
from moescope.runtime.exit.classifier import ExitClassifier
from moescope.runtime.exit.heads import Heads
from moescope.runtime.exit.layers import Stepper
from moescope.studies.exit.speed import measure
from tests.architectures import tiny_model

TEXTS = Encoded.from_ids([np.arange(n) % 7 + 1 for n in (6, 5, 5, 4)])


class Clock:
    """Time that passes in modules alone, and a little at every look."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now, self.patch = 0.0, patch

    def perf_counter(self) -> float:
        self.now += 1e-6
        return self.now

    def charge(self, module: nn.Module, seconds: float) -> None:
        """Every run of ``module`` takes as long: within its forward, not in what is hooked on it."""
        forward = module.forward

        def spend(*args: object, **kwargs: object) -> object:
            self.now += seconds
            return forward(*args, **kwargs)

        self.patch.setattr(module, "forward", spend)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock(monkeypatch)
    monkeypatch.setattr("moescope.studies.exit.speed.time", made)
    return made


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
    assert (full["share"], full["speedup"]) == (1, 1)
    assert row["share"] == pytest.approx(0.1, abs=1e-4)
    assert row["speedup"] == pytest.approx(10, abs=0.01)
    assert row["of_layers"] == pytest.approx(1, abs=1e-3)
    for name, low, high in (("speedup", "low", "high"), ("of_layers", "of_layers_low", "of_layers_high")):
        if batch == 1:
            assert row[low] <= row[name] <= row[high]
            assert full[low] == full[high] == 1
        else:
            assert np.isnan([row[low], row[high]]).all()  # one batch says nothing of another
    assert (row["batch"], row["texts"], row["batches"], row["turns"]) == (batch, 4, 4 if batch == 1 else 1, 3)
    assert row["outside"] < 1e-4
    assert row["inside"] == pytest.approx(1, abs=1e-3)


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
    """As many batches as fit into what was given, each with all of its turns."""
    made.run(TEXTS)  # how a model batches is tried once
    for layer in model.structure.layers:
        clock.charge(layer, 1.0)
    contenders = {"full depth": made.full, "first layer": made.fixed(0)}
    n = model.n_layers
    text = 4 * n + 4  # full depth asked once and timed three times, the first layer timed three times and noted once
    for seconds, texts in ((0.0, 1), (2.5 * text, 2), (1e6, 4)):
        began = clock.now
        timed = measure(contenders, TEXTS, 1, seconds=seconds)
        assert [row["texts"] for row in timed.rows] == [texts, texts]
        assert len(timed.texts) == len(timed.ends) == texts
        assert clock.now - began == pytest.approx(texts * text + n, abs=0.1)  # and one that warms up


def test_a_stall_in_one_turn_does_not_count(model: LoadedModel, made: ExitClassifier, clock: Clock) -> None:
    """A pause of the machine amid one of three turns leaves the figures as they are."""
    for layer in model.structure.layers:
        clock.charge(layer, 1.0)
    calls = itertools.count()
    stall = {1 + 4 + 8 * text + text % 3 for text in range(4)}  # one pass of each text's turns

    def pause(*_: object) -> None:
        clock.now += 1000.0 * (next(calls) in stall)

    handle = model.body.get_input_embeddings().register_forward_hook(pause)  # type: ignore[operator]
    row = measure({"full depth": made.full, "first layer": made.fixed(0)}, TEXTS, 1, seconds=1e6).rows[1]
    handle.remove()
    assert row["speedup"] == pytest.approx(model.n_layers, abs=1e-3)


def test_the_interval_is_over_texts(model: LoadedModel, made: ExitClassifier, clock: Clock) -> None:
    """Texts of which some gain more than others: the interval holds both their ratio and the spread, not the clock alone."""
    for layer in model.structure.layers:
        clock.charge(layer, 1.0)
    checks = dataclasses.replace(made, threshold=0.995)
    depths = checks.exit_depth(TEXTS)
    assert len(np.unique(depths)) > 1
    row = measure({"full depth": made.full, "early exit": checks}, TEXTS, 1, seconds=1e6).rows[1]
    assert row["speedup"] == pytest.approx(model.n_layers / depths.mean(), abs=1e-3)
    assert row["low"] < 0.95 * row["speedup"]
    assert row["high"] > 1.05 * row["speedup"]
    assert row["of_layers_high"] - row["of_layers_low"] < 1e-3  # every layer that is left out is gained


def test_what_asking_takes_is_not_inside(
    model: LoadedModel, made: ExitClassifier, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time beside the layers, in what decides who leaves, is told apart from theirs."""
    for layer in model.structure.layers:
        clock.charge(layer, 1.0)
    after = Stepper.after

    def slow(stepper: Stepper, layer: int, output: object) -> object:
        clock.now += 1.0
        return after(stepper, layer, output)

    monkeypatch.setattr(Stepper, "after", slow)
    row = measure({"full depth": made.full, "first layer": made.fixed(0)}, TEXTS, 1, seconds=1e6).rows[1]
    assert row["inside"] == pytest.approx(0.5, abs=1e-3)
