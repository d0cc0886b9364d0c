"""A prompt's task from the first layers: calibrated on what it knows, the same in a batch, in generate() and in a stream."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

import moescope
from moescope.capture import capture
from moescope.capture.encode import encode
from moescope.cli import main
from moescope.errors import InputError
from moescope.models import LoadedModel, load
from moescope.runtime.route.router import KnownPrompts, Named, TaskRouter, fit_router, source_sites
from moescope.runtime.route.store import ModelRouter, load_router
from moescope.runtime.route.watch import name_tasks, prompt_features, stream, watching
from moescope.types import Example, Site, Task
from tests.architectures import tiny_model
from tests.chat import HEAD, chat_model

WIDTH = 100  # more than the basis keeps


def prompts(rng: np.random.Generator, n: int, task: int, *, shift: float = 0.0, spread: float = 1.0) -> KnownPrompts:
    """Means over 5 to 40 tokens: task 0 sits at -2 along axis 0, task 1 at +2; ``shift`` is along axis 1."""
    tokens = rng.integers(5, 41, n)
    x = 0.1 * rng.standard_normal((n, WIDTH)) + spread * rng.standard_normal((n, WIDTH)) / np.sqrt(tokens)[:, None]
    x[:, 0] += 4 * task - 2
    x[:, 1] += shift
    return KnownPrompts(x, tokens, np.full(n, task), np.array([f"{task}/{i}" for i in range(n)]))


def joined(*parts: KnownPrompts) -> KnownPrompts:
    return KnownPrompts(*(np.concatenate([getattr(p, field) for p in parts]) for field in ("x", "tokens", "task", "groups")))


def made_router(seed: int = 0, n: int = 200, rate: float = 0.1) -> TaskRouter:
    rng = np.random.default_rng(seed)
    train, held = (joined(prompts(rng, n, 0), prompts(rng, n, 1)) for _ in range(2))
    return fit_router(train, held, ("left", "right"), source="residual", layer=1, rate=rate)


def test_unknowns_are_calibrated_and_found() -> None:
    known, strange, right = [], [], []
    for seed in range(20):
        router, rng = made_router(seed), np.random.default_rng(1000 + seed)
        rows = joined(prompts(rng, 200, 0), prompts(rng, 200, 1))
        named = router.name(rows.x, rows.tokens)
        known.append(np.mean([n.task is None for n in named]))
        right.append(np.mean([n.nearest == router.tasks[t] for n, t in zip(named, rows.task, strict=True)]))
        away = prompts(rng, 200, 0, shift=4.0)
        strange.append(np.mean([n.task is None for n in router.name(away.x, away.tokens)]))
        assert all((n.task is None) == (n.p <= 0.1) for n in named)
    assert np.mean(known) <= 0.1 + 0.01
    assert np.mean(known) > 0.03
    assert np.mean(right) > 0.9
    assert np.mean(strange) > 0.95


def test_a_long_text_amid_short_ones_is_strange() -> None:
    """The middle of a cloud of short prompts is no place for a mean over 400 tokens of another text."""
    router, rng = made_router(), np.random.default_rng(5)
    rows = prompts(rng, 300, 0)
    short = router.strange(rows.x, rows.tokens)[:, 0]
    long = router.strange(rows.x, np.full(300, 400))[:, 0]
    assert np.mean(long > np.quantile(short, 0.95)) > 0.8


def test_what_the_basis_leaves_counts() -> None:
    router, rng = made_router(), np.random.default_rng(6)
    rows = prompts(rng, 100, 1)
    outside = np.linalg.qr(np.column_stack([router.basis, rng.standard_normal(WIDTH)]))[0][:, -1]
    away = rows.x + 12 * outside * router.scale
    np.testing.assert_allclose(router._project(away)[0], router._project(rows.x)[0], atol=1e-8)
    assert np.mean([n.task is None for n in router.name(away, rows.tokens)]) > 0.95


def test_one_calibration_prompt_counts_for_a_group() -> None:
    rng = np.random.default_rng(7)
    held = joined(prompts(rng, 40, 0), prompts(rng, 40, 1))
    pairs = KnownPrompts(held.x, held.tokens, held.task, np.array([f"{t}/{i // 2}" for i, t in enumerate(held.task)]))
    router = fit_router(held, pairs, ("left", "right"), source="residual", layer=0, rate=0.1)
    assert len(router.strangeness) == 40
    with pytest.raises(InputError, match="at least 24 calibration groups, task left has 20"):
        fit_router(held, pairs, ("left", "right"), source="residual", layer=0, rate=0.04)


def test_which_row_of_a_calibration_group_counts_is_drawn() -> None:
    """The second of each pair lies further out: as often as a new prompt does, so must those that calibrate."""
    rng = np.random.default_rng(8)

    def pairs(n: int) -> KnownPrompts:
        near, far = (joined(prompts(rng, n, 0, spread=s), prompts(rng, n, 1, spread=s)) for s in (1.0, 1.5))
        both = [np.stack([getattr(near, k), getattr(far, k)], 1).reshape(4 * n, -1) for k in ("x", "tokens", "task")]
        return KnownPrompts(both[0], both[1][:, 0], both[2][:, 0], np.repeat(np.arange(2 * n).astype(str), 2))

    router = fit_router(pairs(200), pairs(200), ("left", "right"), source="residual", layer=0, rate=0.1)
    new = pairs(400)
    unknown = np.mean([n.task is None for n in router.name(new.x, new.tokens)])
    assert 0.05 < unknown < 0.15


def on(model: LoadedModel, source: str, layer: int = 1) -> TaskRouter:
    """A router fitted on the model's own features of two kinds of text."""
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list(letters), rng.integers(6, 20))) for letters in ("abcd", "wxyz") for _ in range(60)]
    x, tokens = prompt_features(model, texts, source, layer)  # type: ignore[arg-type]
    task = np.repeat([0, 1], 60)
    rows = KnownPrompts(x, tokens, task, np.arange(120).astype(str))
    return fit_router(rows, rows, ("early", "late"), source=source, layer=layer, rate=0.1)  # type: ignore[arg-type]


TEXTS = ["abcdabcd", "wxyzwxyzwxyzwxyz", "hello there"]


@pytest.mark.parametrize(("name", "source"), [("llama", "residual"), ("gpt2", "residual"), ("olmoe", "routing")])
def test_watching_equals_reading(name: str, source: str) -> None:
    """In generate(), left-padded, the prompt and what follows give what the same tokens give when read at once."""
    model = tiny_model(name, head=True, padding_side="left")
    router = on(model, source)
    alone = name_tasks(router, model, TEXTS)
    batch = model.tokenizer(TEXTS, return_tensors="pt", padding=True)
    updates: list[list[Named]] = []
    with watching(router, model, updates.append) as watch:
        out = model.module.generate(**batch, max_new_tokens=4, do_sample=False, eos_token_id=None)
        last = watch.now()
    assert len(updates) == 4  # the prompt, then each new token that is fed back
    for a, b in zip(updates[0], alone, strict=True):
        assert a[:2] == b[:2]
        assert a.p == pytest.approx(b.p, abs=1e-6)
    from moescope.capture import Encoded

    rows = [out[i, :-1][torch.cat([batch["attention_mask"][i], torch.ones(3)]).bool()].tolist() for i in range(3)]
    assert [n[:2] for n in name_tasks(router, model, Encoded.from_ids(rows))] == [n[:2] for n in last]


def test_features_leave_out_the_first_token_and_padding() -> None:
    model = tiny_model("llama")
    x, tokens = prompt_features(model, TEXTS, "residual", 2)
    for row, text in enumerate(TEXTS):
        ids = torch.tensor([model.tokenizer(text)["input_ids"]])
        with capture(model, [Site("resid", 2)]) as session:
            seen = session.run(ids)[Site("resid", 2)][0, 1:]
        np.testing.assert_allclose(x[row], seen.mean(0).numpy(), atol=1e-5)
        assert tokens[row] == len(seen)


def test_what_stands_before_every_prompt_names_no_task() -> None:
    """The head of a chat template is left out, in texts that are read and in one that is generated from."""
    model = chat_model().read_as(chat=True)
    head = len(model.tokenizer(HEAD, add_special_tokens=False)["input_ids"])
    x, tokens = prompt_features(model, TEXTS, "residual", 2)
    encoded = encode(model, TEXTS)
    for row in range(len(TEXTS)):
        with capture(model, [Site("resid", 2)]) as session:
            seen = session.run(torch.from_numpy(encoded[row].astype(np.int64))[None])[Site("resid", 2)][0, head:]
        np.testing.assert_allclose(x[row], seen.mean(0).numpy(), atol=1e-5)
        assert tokens[row] == len(seen)
    router = dataclasses.replace(on(model, "residual"), reading=model.reading)
    steps = list(stream(router, model, TEXTS[0], max_new_tokens=1))
    assert steps[0][1].p == pytest.approx(name_tasks(router, model, TEXTS[:1])[0].p, abs=1e-6)


def test_routing_features_are_the_routers_softmax() -> None:
    model = tiny_model("olmoe")
    x, _ = prompt_features(model, TEXTS, "routing", 1)
    assert x.shape == (3, 12)  # two layers of six experts
    np.testing.assert_allclose(x.reshape(3, 2, 6).sum(-1), 1, atol=1e-5)


def test_a_stream_names_every_step() -> None:
    model = tiny_model("llama", head=True)
    router = on(model, "residual")
    steps = list(stream(router, model, TEXTS[1], 3))
    assert len(steps) == 4
    assert steps[0][0] == TEXTS[1]
    assert steps[0][1][:2] == name_tasks(router, model, TEXTS[1:2])[0][:2]
    with pytest.raises(InputError, match="head=True"):
        next(stream(router, tiny_model("llama"), "abc", 1))


def test_hooks_are_removed_and_an_unused_watch_says_so() -> None:
    model = tiny_model("llama", head=True)
    router = on(model, "residual")
    before = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.module.modules()]
    with watching(router, model) as watch, pytest.raises(InputError, match="fewer than 2 tokens"):
        watch.now()
    assert before == [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.module.modules()]


def test_saved_and_loaded(tmp_path: Path) -> None:
    model = tiny_model("llama")
    router = on(model, "residual")
    back = load_router(ModelRouter(router, model).write(tmp_path / "r"), model)
    assert name_tasks(back, model, TEXTS) == name_tasks(router, model, TEXTS)
    with pytest.raises(InputError, match="was made for"):
        load_router(tmp_path / "r", tiny_model("gpt2"))
    file = tmp_path / "r" / "route.safetensors"
    data = file.read_bytes()
    for at in (20, len(data) // 2, len(data) - 1):
        file.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(InputError, match=r"route\.safetensors: .*damaged"):
            load_router(tmp_path / "r", model)


def test_what_cannot_be_read() -> None:
    with pytest.raises(InputError, match="layer 9 does not exist"):
        source_sites(tiny_model("llama"), "residual", 9)
    with pytest.raises(InputError, match="is dense"):
        source_sites(tiny_model("llama"), "routing", 1)
    with pytest.raises(InputError, match="no router up to layer 0"):
        source_sites(tiny_model("glm4_moe"), "routing", 0)


def alphabet(name: str, letters: str, n: int = 160) -> Task:
    rng = np.random.default_rng(len(letters))
    texts = ["".join(rng.choice(list(letters), rng.integers(6, 20))) for _ in range(n)]
    return Task(name, tuple(Example(t, i % 2, str(i)) for i, t in enumerate(texts)), ("a", "b"), "made here")


def test_the_study() -> None:
    """Three alphabets: named apart, though a bag of characters would do; a task left out is told from the others."""
    tasks = [alphabet("one", "abcd"), alphabet("two", "wxyz."), alphabet("three", "012345")]
    model = tiny_model("llama")
    study_layers = model.n_layers
    study = moescope.route(model, tasks, moescope.RouteSettings(layer=0, timed_texts=3, margin=0.06))
    first, rate, *_ = study.claims
    assert first.statement == "the task is named from residual features of layer 0, better than from a surface cue"
    assert first.measured > 0.9
    assert (first.id, first.outcome, first.explanation) == ("H16", "holds", "trivial cue")  # a bag of characters does as well
    assert first.control is not None
    assert isinstance(first.control.value, float)
    assert rate.statement == "of prompts of known tasks 5.0% are called unknown, as asked"
    assert rate.measured < 0.12
    left_out = [c for c in study.claims if "left out" in c.statement]
    assert [c.outcome for c in left_out if c.measured > 0.5] == ["holds"] * sum(c.measured > 0.5 for c in left_out)
    table = study.table("unknown").set_index("prompts")["unknown"]
    assert table.filter(like="left out").mean() > 0.5
    layers = study.table("layers").iloc[0]
    assert (layers["layer"], layers["used"], layers["share"]) == (0, True, 1 / study_layers)
    assert layers["accuracy"] == first.measured
    assert layers["cue_accuracy"] == first.control.value
    assert layers["chance"] == 1 / 3
    confusion = study.table("named")
    np.testing.assert_allclose(confusion.filter(like="as ").sum(axis=1), 1)


@pytest.mark.parametrize(("name", "source", "layer"), [("llama", "residual", 2), ("olmoe", "routing", 1)])
def test_a_router_after_each_layer(name: str, source: Literal["residual", "routing"], layer: int) -> None:
    """Each is the router that a study of that layer alone keeps, and they are drawn beside the cue and chance."""
    tasks = [alphabet("one", "abcdef"), alphabet("two", "defghi")]

    def study(number: int) -> moescope.StudyResult:
        settings = moescope.RouteSettings(layer=number, features=source, timed_texts=1)
        return moescope.route(tiny_model(name), tasks, settings)

    whole = study(layer)
    table = whole.table("layers").set_index("layer")
    assert list(table.index) == list(range(layer + 1))
    assert list(table["used"]) == [False] * layer + [True]
    alone = study(0).table("layers").iloc[0]
    assert alone["accuracy"] == table.loc[0, "accuracy"]
    assert alone["low"] == table.loc[0, "low"]
    shown = " ".join(whole.figure("layers").axes[0].get_legend_handles_labels()[1])
    assert [word for word in ("nearest task", "router's layer", "no layer", "chance") if word not in shown] == []


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    given = ["--task", "a=halueval", "--task", "b=uci-sentiment", "--limit", "240", "--unknown", "0.1"]
    main(["route", "dense-tiny", *given, "--out", str(out), "--json"])
    assert json.loads(capsys.readouterr().out)["kind"] == "route"
    model = load("dense-tiny")
    named = name_tasks(load_router(out / "route", model), model, ["Question: Who wrote Hamlet?\nAnswer: Shakespeare wrote it."])
    assert named[0].nearest == "a"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--task", "a=halueval"], ["at least two tasks"]),
        (["--task", "a=halueval", "--task", "b=uci-sentiment", "--unknown", "0"], ["--unknown"]),
        (["--task", "a=halueval", "--task", "b=uci-sentiment", "--limit", "40"], ["--unknown", "at least 19", "calibration"]),
        (["--task", "a=halueval", "--task", "b=uci-sentiment", "--layer", "6"], ["--layer", "6", "0 to 5"]),
        (["--task", "a=halueval", "--task", "b=uci-sentiment", "--features", "routing"], ["routing", "dense"]),
    ],
)
def test_bad_input(given: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["route", "dense-tiny", *given, "--out", str(tmp_path / "out")])
    assert stop.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert [w for w in words if w not in lines[0]] == [], lines[0]
    assert not (tmp_path / "out").exists()


def test_too_few_prompts_for_the_rate_are_said_before_a_model_is_read() -> None:
    """By a study whose model is not even there."""
    task = {"text": [f"text {i}" for i in range(40)], "label": ["a", "b"] * 20}
    with pytest.raises(InputError, match=r"task one has 16: give more prompts, or 0\.059"):
        moescope.route("no-such-model", {"one": task, "two": task | {"text": [f"line {i}" for i in range(40)]}})
