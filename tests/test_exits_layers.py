"""Rows leave a running batch and the rest goes on as if it had always been alone, in every architecture."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from moescope.capture import activations
from moescope.capture.encode import Batch, Encoded, encode, pad
from moescope.errors import InputError
from moescope.files import atomic
from moescope.files.checkpoint import load_arrays, save_arrays
from moescope.models import LoadedModel
from moescope.runtime.exit.classifier import ExitClassifier
from moescope.runtime.exit.features import read_features
from moescope.runtime.exit.heads import Heads
from moescope.runtime.exit.layers import Stepper, check_leaving
from moescope.runtime.exit.rule import Guarantee
from moescope.runtime.exit.store import load_exit
from moescope.types import Site
from tests.architectures import SETTINGS, tiny_model

# as many rows as the longest has tokens: a tensor's first size alone must not be taken for its rows
TEXTS = [("to be or not to be "[i:] + "x" * (i % 5))[: 4 + i] for i in range(11)]


def classifier(model: LoadedModel, kind: str, threshold: float = 0.55, seed: int = 0) -> ExitClassifier:
    """Random heads, scaled so that rows leave at different depths."""
    rng = np.random.default_rng(seed)
    n, width = model.n_layers, model.d_model
    columns = None
    if kind == "circuit":
        columns = tuple(np.sort(rng.choice((layer + 1) * width, 6, replace=False)) for layer in range(n))
    size = width if columns is None else 6
    weight = tuple((0.1 * rng.standard_normal((3, size))).astype(np.float32) for _ in range(n))
    bias = tuple(np.zeros(3, np.float32) for _ in range(n))
    heads = Heads(kind, weight, bias, columns)  # type: ignore[arg-type]
    return ExitClassifier(model, heads, ("a", "b", "c"), threshold, tuple(range(n)), task="made")


@pytest.mark.parametrize("name", SETTINGS)
def test_batched_equals_one_by_one(name: str) -> None:
    model = tiny_model(name)
    kinds = ("linear", "circuit", "pooled")
    for kind in kinds if name in ("llama", "gpt2", "bert") else kinds[:1]:
        full = classifier(model, kind).full.run(TEXTS)
        # a threshold in the middle of what the first head says, so that the batch really shrinks
        first = classifier(model, kind).fixed(0).run(TEXTS).probability.max(1)
        shrinking = classifier(model, kind, threshold=float(np.sort(first)[5:7].mean()))
        together = shrinking.run(TEXTS)
        assert len(np.unique(together.depth)) >= 2, together.depth
        for row, text in enumerate(TEXTS):
            alone = shrinking.run([text])
            assert alone.depth[0] == together.depth[row]
            np.testing.assert_allclose(alone.probability[0], together.probability[row], atol=1e-5)
        stayed = together.depth == model.n_layers
        np.testing.assert_allclose(together.probability[stayed], full.probability[stayed], atol=1e-5)


def test_layers_after_the_last_exit_do_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    made = classifier(model, "linear")
    assert model.batching.allows("right")  # measured before runs are counted
    ran: list[tuple[int, int]] = []
    for number, layer in enumerate(model.structure.layers):
        inner = layer.forward

        def counted(*args: object, number: int = number, inner: object = inner, **kwargs: object) -> object:
            ran.append((number, len(args[0])))  # type: ignore[arg-type]
            return inner(*args, **kwargs)  # type: ignore[operator]

        monkeypatch.setattr(layer, "forward", counted)
    made.fixed(1).run(TEXTS[:4])
    assert ran == [(0, 4), (1, 4)]
    first = made.fixed(0).run(TEXTS).probability.max(1)
    ran.clear()
    depth = dataclasses.replace(made, threshold=float(np.median(first))).run(TEXTS, batch_tokens=10**6).depth
    rows = [sum(n for layer, n in ran if layer == at) for at in range(model.n_layers)]
    assert rows == [int((depth > at).sum()) for at in range(model.n_layers)]
    assert rows[1] < rows[0]


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "bert"])
def test_padding_leaves_with_the_longest_row(name: str) -> None:
    """A batch is as wide as the longest row still in it, also where it was as wide as a head (8 in these models)."""
    model = tiny_model(name)
    encoded = Encoded.from_ids([np.arange(n) % 7 + 1 for n in (8, 3, 5, 4)])
    made = classifier(model, "linear")
    heads = made.heads
    toward = read_features(model, encoded, max_tokens=None, batch_tokens=64, progress=None).final[:, 0]
    # after layer 0 only the longest row is sure
    weight = np.stack([toward[0] - toward[1:].mean(0), *np.zeros((2, model.d_model))]).astype(np.float32)
    bias = np.array([-(weight[0] @ toward.T)[:2].mean(), 0, 0], np.float32)
    first = dataclasses.replace(heads, weight=(weight, *heads.weight[1:]), bias=(bias, *heads.bias[1:]))
    leaving = dataclasses.replace(made, heads=first, checks=(0,))
    said = leaving.fixed(0).run(encoded).probability.max(1)
    assert said.argmax() == 0
    leaving = dataclasses.replace(leaving, threshold=float(np.sort(said)[-2:].mean()))
    shapes: list[tuple[int, ...]] = []
    handles = [
        layer.register_forward_hook(lambda *a: shapes.append(_hidden(a[-1]).shape[:2])) for layer in model.structure.layers
    ]
    with leaving.running() as run:
        out = run(pad(encoded, np.arange(4)))
    for handle in handles:
        handle.remove()
    assert out.depth.tolist() == [1, *[model.n_layers] * 3]
    assert shapes == [(4, 8), *[(3, 5)] * (model.n_layers - 1)]
    full = made.full.run(encoded).probability
    np.testing.assert_allclose(out.probability[1:], full[1:], atol=1e-5)


def _hidden(output: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output[0]


def test_heads_read_what_capture_reads() -> None:
    """The running classifier against heads on captured activations, for every kind."""
    model = tiny_model("mistral")
    features = read_features(model, TEXTS, max_tokens=None, batch_tokens=64, progress=None)
    want = activations(model, TEXTS, [Site("resid", 1)], position="mean")[:, 0]
    np.testing.assert_allclose(features.mean[:, 1], want, atol=1e-5)
    for kind in ("linear", "circuit", "pooled"):
        made = classifier(model, kind)
        said = made.heads.probabilities(features)
        for layer in range(model.n_layers):
            np.testing.assert_allclose(made.fixed(layer).run(TEXTS).probability, said[:, layer], atol=1e-5)


def test_scikit_learn_names() -> None:
    made = classifier(tiny_model("gpt2"), "linear")
    out = made.run(TEXTS)
    assert made.classes_.tolist() == ["a", "b", "c"]
    assert made.predict(TEXTS).tolist() == [made.classes[i] for i in out.probability.argmax(1)]
    np.testing.assert_allclose(made.predict_proba(TEXTS).sum(1), 1, atol=1e-5)
    assert set(made.exit_depth(TEXTS)) <= set(range(1, 4))


def test_hooks_are_removed() -> None:
    model = tiny_model("llama")
    before = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.body.modules()]
    with pytest.raises(InputError):
        classifier(model, "linear").run(["fine", ""])
    with pytest.raises(ZeroDivisionError), classifier(model, "linear").running():
        raise ZeroDivisionError
    assert before == [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.body.modules()]


def test_a_text_does_not_pay_for_a_search_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the layers are and what the body takes is known once a classifier stands: to look it up takes longer than a text."""
    made = classifier(tiny_model("llama"), "linear")
    said = made.run(TEXTS)

    def searched(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("moescope.models.experts.layers.find_layers", searched)
    monkeypatch.setattr("moescope.models.inputs.first_position", searched)
    np.testing.assert_array_equal(made.run(TEXTS).depth, said.depth)


def test_a_text_without_tokens_is_named() -> None:
    """Also where a caller makes the batches."""
    made = classifier(tiny_model("llama"), "linear")
    nothing = torch.zeros(1, 3, dtype=torch.bool)
    batch = Batch(np.array([0]), np.array([7]), torch.ones(1, 3, dtype=torch.int64), nothing, nothing)
    with made.running() as run, pytest.raises(InputError, match="text 7 has only 0 tokens"):
        run(batch)


def test_an_architecture_that_cannot_shrink_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without cutting what comes beside the hidden state, the check must notice, by an error or by other values."""
    monkeypatch.setattr(Stepper, "before", lambda self, args, kwargs: None)
    with pytest.raises(InputError, match=r"'llama'.*not supported"):
        check_leaving(tiny_model("llama"))


def test_a_check_that_other_rows_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks of the wrong rows run without an error: only the values tell."""
    whole = Stepper._rest

    def reversed_rows(self: Stepper, value: object, path: tuple[str | int, ...]) -> object:
        cut = whole(self, value, path)
        return cut.flip(0) if isinstance(cut, torch.Tensor) and cut.dim() > 1 else cut

    monkeypatch.setattr(Stepper, "_rest", reversed_rows)
    with pytest.raises(InputError, match="not supported"):
        check_leaving(tiny_model("llama"))


def test_routing_that_mixes_rows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moescope.models.experts.mixes_tokens", lambda model, layers: True)
    with pytest.raises(InputError, match="what else is in the batch"):
        check_leaving(tiny_model("olmoe"))


def test_right_padding_of_a_single_batch() -> None:
    model = tiny_model("qwen2")
    made = classifier(model, "pooled")
    encoded = encode(model, TEXTS)
    with made.running() as run:
        out = run(pad(encoded, np.array([3, 0, 9]), pad_id=7))
    np.testing.assert_allclose(out.probability, made.run(TEXTS).probability[[3, 0, 9]], atol=1e-5)


@pytest.mark.parametrize("kind", ["linear", "circuit"])
def test_saved_and_loaded(kind: str, tmp_path: Path) -> None:
    model = tiny_model("llama")
    promise = Guarantee(float("inf"), 0.02, 0.1, "accuracy", "ltt", 200, 0.0)
    made = dataclasses.replace(classifier(model, kind, threshold=float("inf")), guarantee=promise, max_tokens=9)
    back = load_exit(made.write(tmp_path / "x"), model)
    assert sorted(p.name for p in (tmp_path / "x").iterdir()) == ["exit.safetensors"]
    assert (back.guarantee, back.threshold, back.checks, back.max_tokens) == (promise, made.threshold, made.checks, 9)
    np.testing.assert_array_equal(back.run(TEXTS[:3]).probability, made.run(TEXTS[:3]).probability)


def test_what_cannot_be_loaded(tmp_path: Path) -> None:
    model = tiny_model("llama")
    folder = classifier(model, "linear").write(tmp_path / "x")
    with pytest.raises(InputError, match="was made for"):
        load_exit(folder, tiny_model("llama", seed=1))
    with pytest.raises(InputError, match=r"exit\.safetensors is missing"):
        load_exit(tmp_path, model)
    file = folder / "exit.safetensors"
    data = file.read_bytes()
    arrays, note = load_arrays(file, "moescope-exit-3")
    save_arrays(file, arrays, {**note, "kind": "oracle"})
    with pytest.raises(InputError, match="oracle"):
        load_exit(folder, model)
    for at in (20, len(data) // 2, len(data) - 1):
        file.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(InputError, match=r"exit\.safetensors: .*damaged"):
            load_exit(folder, model)
    file.write_bytes(data[:40])
    with pytest.raises(InputError, match="damaged"):
        load_exit(folder, model)


class Killed(BaseException):
    """What a kill is to the code that it ends: nothing after it runs."""


def test_a_write_that_is_killed_leaves_the_old_classifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    old = classifier(model, "linear")
    heads = dataclasses.replace(old.heads, weight=tuple(-w for w in old.heads.weight))
    new = dataclasses.replace(old, heads=heads)
    folder = old.write(tmp_path / "x")

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "replace", killed)
        with pytest.raises(Killed):
            new.write(folder)
    np.testing.assert_array_equal(load_exit(folder, model).predict(TEXTS), old.predict(TEXTS))
    back = load_exit(new.write(folder), model)
    np.testing.assert_array_equal(back.predict(TEXTS), new.predict(TEXTS))
    assert (back.predict(TEXTS) != old.predict(TEXTS)).any()


def test_a_classifier_of_another_shape_is_refused() -> None:
    llama, made = tiny_model("llama"), classifier(tiny_model("gpt2"), "linear")
    with pytest.raises(InputError, match="3 layers"):
        dataclasses.replace(made, model=llama)
    with pytest.raises(InputError, match="layer 4 does not exist"):
        classifier(llama, "linear").fixed(4)
