"""Routing that acts: one pass names and classifies, the promise covers mistakes of naming, strangers are counted."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

import moescope
from moescope.errors import InputError
from moescope.models import LoadedModel
from moescope.runtime.exit.classifier import ExitClassifier
from moescope.runtime.exit.heads import Heads
from moescope.runtime.route.bundle import DispatchBundle, load_dispatcher
from moescope.runtime.route.dispatch import Dispatcher
from moescope.runtime.route.router import KnownPrompts, fit_router
from moescope.runtime.route.watch import name_tasks, prompt_features
from moescope.server import gather
from moescope.server.app import create_app
from moescope.studies.route.act import Stream, answered
from moescope.study.rows import calibrated
from moescope.types import Example, Task
from tests.architectures import tiny_model
from tests.planted_llama import WORDS, planted_llama

TEXTS = [
    "abc abc",
    "a longer text of letters and more",
    "zzz yx",
    "the end",
    "q r s t u v w",
    "an even longer text of them all",
]
NAMES = ("one", "two", "three")
QUICK: dict[str, Any] = {"act": True, "unknown": 0.1, "layer": 1, "timed_texts": 3, "n_random": 39, "k": 3, "margin": 0.06}


def worded(t: int, rows: int = 200, *, foreign: np.ndarray | None = None) -> Task:
    """Task ``t`` of four has ten words of its own, of which it is mostly made; the last word gives the class. Rows
    ``foreign`` have those of the next task."""
    rng, examples = np.random.default_rng(t), []
    for row in range(rows):
        of = t if foreign is None or not foreign[row] else (t + 1) % 4
        own = np.concatenate([np.arange(5) + 5 * of, np.arange(5) + 5 * of + WORDS // 2])
        words = np.where(rng.random(16) < 0.7, rng.choice(own, 16), rng.integers(WORDS, size=16))[: rng.integers(12, 17)]
        last = rng.integers(WORDS // 2) + row % 2 * WORDS // 2
        unlike = [f"u{t}x{row}x{i}" for i in range(12)]  # unknown to the model, so that no text is nearly another
        text = " ".join([*unlike, *(f"w{i}" for i in [*words, last])])
        examples.append(Example(text, row % 2, str(row)))
    return Task(f"t{t}", tuple(examples), ("low", "high"), "made here")


def dispatcher(model: LoadedModel, source: str, *, kinds: tuple[str, ...] = ("pooled", "linear", "circuit")) -> Dispatcher:
    """Three tasks whose prompts are the first texts and what lies near them, heads that are random."""
    layer, rng = 1, np.random.default_rng(0)
    x, tokens = prompt_features(model, TEXTS, source, layer)  # type: ignore[arg-type]
    near = 0.05 * (x.std(0) + 1e-3)
    known = KnownPrompts(
        np.concatenate([np.concatenate([x[t] + near * rng.standard_normal((15, len(near))), [x[t]] * 15]) for t in range(3)]),
        np.repeat(tokens[:3], 30),
        np.repeat(np.arange(3), 30),
        np.arange(90).astype(str),
    )
    router = fit_router(known, known, NAMES, source=source, layer=layer, rate=0.1)  # type: ignore[arg-type]
    checks = tuple(range(layer, model.n_layers))

    def made(t: int) -> ExitClassifier:
        n, width = model.n_layers, 4 if kinds[t] == "circuit" else model.d_model
        weight = tuple(rng.standard_normal((2 + t, width)).astype(np.float32) for _ in range(n))
        bias = tuple(np.zeros(2 + t, np.float32) for _ in range(n))
        columns = tuple(np.arange(4) * (layer + 1) for layer in range(n)) if kinds[t] == "circuit" else None
        heads = Heads(kinds[t], weight, bias, columns)  # type: ignore[arg-type]
        return ExitClassifier(model, heads, tuple("abcd"[: 2 + t]), 0.8, checks, task=NAMES[t])

    return Dispatcher(dataclasses.replace(router, reading=model.reading), tuple(made(t) for t in range(3)))


@pytest.mark.parametrize(("name", "source"), [("llama", "residual"), ("gpt2", "residual"), ("olmoe", "routing")])
def test_one_pass_does_what_router_and_classifiers_do(name: str, source: str) -> None:
    """Named as by the router alone, then as by that task's classifier alone; the unknown as by the nearest at full depth."""
    model = tiny_model(name)
    made = dispatcher(model, source)
    named, probability, depth = made.run(TEXTS)
    assert {one.task for one in named} >= {"one", "two", None}, "texts of several tasks, and unknown ones"
    for one, alone in zip(named, name_tasks(made.router, model, TEXTS), strict=True):
        assert one[:2] == alone[:2]
    for i, text in enumerate(TEXTS):
        classifier = made.classifiers[NAMES.index(named[i].nearest)]
        expected = (classifier if named[i].task else classifier.full).run([text])
        np.testing.assert_allclose(probability[i], expected.probability[0], atol=1e-4)
        assert depth[i] == expected.depth[0]
        single = made.run([text])
        assert (single.named[0][:2], single.depth[0]) == (named[i][:2], depth[i])
    assert all(d == model.n_layers for d, one in zip(depth, named, strict=True) if one.task is None)
    answer = made.classify(TEXTS)[1]
    assert (answer.task, answer.nearest, answer.depth) == (named[1].task, named[1].nearest, depth[1])


def test_a_text_is_read_once() -> None:
    """The first layers run once for naming and classifying, and no layer after the one at which all have left."""
    model = tiny_model("llama")
    made = dispatcher(model, "residual")
    made = dataclasses.replace(made, classifiers=tuple(dataclasses.replace(c, threshold=0.0) for c in made.classifiers))
    ran: list[int] = []
    handles = [
        model.tap_point(site).module.register_forward_hook(lambda *_, n=site.layer: ran.append(n))
        for site in model.sites("resid")
    ]
    try:
        (answer,) = made.classify(TEXTS[:1])
    finally:
        for handle in handles:
            handle.remove()
    assert answer.task is not None
    assert (ran, answer.depth) == ([0, 1], 2)


def test_saved_and_loaded_as_one(tmp_path: Path) -> None:
    model = tiny_model("llama")
    made = dispatcher(model, "residual")
    DispatchBundle(made.router, model, made).write(tmp_path / "route")
    assert load_dispatcher(tmp_path, model).classify(TEXTS) == made.classify(TEXTS)
    dataclasses.replace(made.classifiers[1], threshold=0.5).write(tmp_path / "route" / "two")
    with pytest.raises(InputError, match=r"damaged .*two/exit\.safetensors is not the one that was saved with it"):
        load_dispatcher(tmp_path, model)
    with pytest.raises(InputError, match=r"moescope route --act makes one"):
        load_dispatcher(tmp_path / "elsewhere", model)


def test_a_mistake_of_naming_is_a_loss() -> None:
    """Two texts of two tasks, all heads right of their own: the one that is taken for another's is lost at every confidence."""
    said = tuple(np.full((2, 3, 2), 0.5) + np.array([0.4, -0.4]) for _ in range(2))
    stream = Stream(np.array([0, 1]), np.array([0, 0]), np.array(["a", "b"]), said)
    candidates = np.array([np.inf, 0.5])
    found = answered(stream, np.array([0, 0]), np.array([True, True]), (1, 2), "accuracy", candidates)
    np.testing.assert_array_equal(found.lost, [[False, False], [True, True]])
    np.testing.assert_array_equal(found.layers, [[3, 2], [3, 2]])
    unknown = answered(stream, np.array([0, 1]), np.array([True, False]), (1, 2), "disagreement", candidates)
    np.testing.assert_array_equal(unknown.lost, np.zeros((2, 2), bool))
    np.testing.assert_array_equal(unknown.layers, [[3, 2], [3, 3]])


@pytest.fixture(scope="module")
def study() -> moescope.StudyResult:
    return moescope.route(planted_llama(), [worded(t) for t in range(4)], moescope.RouteSettings(**QUICK))


def test_what_is_planted_is_found(study: moescope.StudyResult) -> None:
    """Tasks by their words, classes by the last one: layers are saved, nothing is lost, and a bag of words does as much."""
    promise, again, _, bag, _, saved, *_ = study.claims
    assert promise.statement.startswith("routed by the first layers, the mixed stream loses no more than was promised")
    assert (promise.outcome, again.outcome) == ("holds", "holds")
    assert promise.measured < 0.05
    assert again.measured == 0
    assert saved.measured > 0.2
    assert (bag.outcome, bag.explanation) == ("contradicted", "trivial cue")
    stream = study.table("stream").set_index("way")
    assert stream["accuracy"].drop("one probe for all tasks, at one depth").min() > 0.9
    assert stream.loc["told the task, full depth", "share"] == 1
    assert not stream.loc["one probe for all tasks, at one depth", "promised"], "a mean over words does not know the last"
    table = study.table("resplits")
    assert len(table) == 200
    assert table["judged"].mean() <= 0.05
    assert len(table["share"].round(6).unique()) > 1, "rows are dealt out anew"


def test_a_task_never_seen_is_answered_as_another(study: moescope.StudyResult) -> None:
    table = study.table("strangers")
    assert list(table["task"]) == ["t0", "t1", "t2", "t3"]
    assert [row.task for row in table.itertuples() if row.mostly == row.task] == []
    np.testing.assert_allclose(table["unknown"] + table["routed"], 1)
    assert (table["early"] <= table["routed"]).all()


def test_it_is_saved_and_served(study: moescope.StudyResult, tmp_path: Path) -> None:
    folder = study.save(tmp_path / "out", figures=False)
    texts = [e.text for e in worded(2, rows=12).examples]
    model = planted_llama()
    expected = load_dispatcher(folder, model).classify(texts)
    assert np.mean([one.nearest == "t2" for one in expected]) > 0.8
    served = gather(model, route=folder)
    with TestClient(create_app(served), "http://127.0.0.1") as client:
        (answer,) = client.post("/v1/classify", json={"texts": texts}).json()["answers"]
        said = [(one["task"], one["nearest"], one["label"], one["depth"]) for one in answer["results"]]
        assert said == [(one.task, one.nearest, one.label, one.depth) for one in expected]
        assert client.post("/v1/classify", json={"texts": texts, "task": "t2"}).status_code == 404
        assert client.get("/v1/info").json()["router"]["acts"]
        assert client.post("/v1/classify", json={"texts": ["w1"]}).status_code == 400


def misnamed(where: str) -> list[Task]:
    """Of every task, in one part of its rows only, every third text is of another task's words."""
    tasks = [worded(t) for t in range(4)]
    examples = [Example(e.text, t, f"{t}/{e.group}") for t, task in enumerate(tasks) for e in task.examples]
    rows = calibrated("prompts", Task("route", tuple(examples), tuple(t.name for t in tasks), ""), 0)
    bad = np.zeros(800, bool)
    bad[getattr(rows, where)] = np.arange(len(getattr(rows, where))) % 3 == 0
    return [worded(t, foreign=part) for t, part in enumerate(bad.reshape(4, 200))]


def promised(where: str) -> str:
    """What became of the promise: its outcome, or why there is none."""
    try:
        return moescope.route(planted_llama(), misnamed(where), moescope.RouteSettings(**QUICK)).claims[0].outcome or ""
    except InputError as error:
        return str(error)


def test_no_promise_where_naming_fails() -> None:
    """Rows that calibrate decide: where naming fails in them alone, nothing is promised."""
    assert promised("calibrate").startswith("risk: 0.05 cannot be promised: before any text leaves early, mistakes of naming")


def test_rows_that_judge_do_not_calibrate() -> None:
    assert promised("judge") == "contradicted"


def test_too_few_rows_for_the_risk_are_said_before_a_model_is_read() -> None:
    with pytest.raises(
        InputError, match=r"risk 0\.01 at delta 0\.1 needs at least 230 calibration groups, a fifth of all are 160"
    ):
        moescope.route("no-such-model", [worded(t) for t in range(4)], moescope.RouteSettings(**QUICK, risk=0.01))
