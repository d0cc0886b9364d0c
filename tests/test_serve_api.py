"""The JSON API says what the library says, refuses in one line, and keeps nothing of what it is told."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient

from moescope.capture import capture
from moescope.capture.encode import encode
from moescope.errors import InputError
from moescope.runtime.route.watch import name_tasks, stream
from moescope.server import Limits, Served, gather
from moescope.server.app import create_app
from moescope.server.writer import Readable
from tests.architectures import tiny_model, tiny_tokenizer
from tests.planted_llama import planted_llama, planted_task
from tests.seals import write_sealed
from tests.served_studies import save_studies, serve_studies

TEXTS = [e.text for e in planted_task(rows=24, seed=5).examples]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_studies(tmp_path_factory.mktemp("studies"))


@pytest.fixture(scope="module")
def served(folder: Path) -> Served:
    return serve_studies(folder)


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[TestClient]:
    with TestClient(create_app(served, Limits(texts=40, characters=300, new_tokens=32)), "http://127.0.0.1") as made:
        yield made


def events(client: TestClient, body: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    answer = client.post("/v1/stream", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    found = re.findall(r"event: (\w+)\ndata: (.*)\n\n", answer.text)
    assert "".join(f"event: {kind}\ndata: {data}\n\n" for kind, data in found) == answer.text
    return [(kind, json.loads(data)) for kind, data in found]


@pytest.mark.parametrize("task", ["planted", "wandering"])
def test_classify_is_the_classifier(client: TestClient, served: Served, task: str) -> None:
    made = served.classifiers[task].exit
    probability, depth = made.run(TEXTS)
    answers = client.post("/v1/classify", json={"texts": TEXTS}).json()["answers"]
    assert [a["task"] for a in answers] == ["planted", "wandering"]
    results = answers[task == "wandering"]["results"]
    assert [r["depth"] for r in results] == depth.tolist()
    assert [r["label"] for r in results] == made.classes_[probability.argmax(1)].tolist()
    given = [[r["probabilities"][name] for name in made.classes] for r in results]
    np.testing.assert_allclose(given, probability, atol=1e-6)
    assert {r["of"] for r in results} == {served.model.n_layers}
    only = client.post("/v1/classify", json={"texts": TEXTS, "task": task}).json()["answers"]
    assert [a["task"] for a in only] == [task]
    assert [r["label"] for r in only[0]["results"]] == [r["label"] for r in results]


def test_what_the_study_said_stands_beside_the_answer(client: TestClient, served: Served, folder: Path, tmp_path: Path) -> None:
    answers = client.post("/v1/classify", json={"texts": TEXTS[:1]}).json()["answers"]
    assert [a["recommendation"] for a in answers] == ["no layer needed: a surface cue does it", None]
    info = client.get("/v1/info").json()
    said = info["classifiers"][0]["recommendation"]
    assert said["verdict"] == "does not hold here, explained by a trivial cue"
    assert said["outcome"] == "contradicted"
    assert said["words"].startswith("the cue is ")
    assert info["router"]["verdict"]["claim"].startswith("the task is named from residual features")
    assert info["circuits"][0]["verdicts"][0]["claim"] == "planted: 3 neurons tell the classes apart"
    # a classifier that was carried elsewhere, and one beside whose place a later study with another promise was saved
    shutil.copytree(folder / "exit" / "exit" / "planted", tmp_path / "alone")
    assert gather(served.model, exits=[tmp_path / "alone"]).classifiers["planted"].recommendation is None
    shutil.copytree(folder / "exit", tmp_path / "later")
    results = tmp_path / "later" / "results.json"
    write_sealed(results, json.loads(results.read_text().replace("at most 5.0% of rows", "at most 1.0% of rows")))
    assert gather(served.model, exits=[tmp_path / "later"]).classifiers["planted"].recommendation is None


def test_route_is_the_router(client: TestClient, served: Served) -> None:
    assert served.router is not None
    texts = [*TEXTS[:6], "w1 w2 w3 w4 w1 w0 w2", "yes no yes no yes no yes no"]
    expected = name_tasks(served.router.router, served.model, texts)
    results = client.post("/v1/route", json={"texts": texts}).json()["results"]
    assert [(r["task"], r["nearest"], round(r["p"], 9)) for r in results] == [
        (n.task, n.nearest, round(n.p, 9)) for n in expected
    ]
    assert len({r["nearest"] for r in results}) == 2


def test_stream_is_greedy_and_names_the_task_as_the_library_does(client: TestClient, served: Served) -> None:
    assert served.router is not None
    text, new = TEXTS[0], 8
    found = events(client, {"prompt": text, "max_new_tokens": new})
    assert [kind for kind, _ in found] == ["prompt", *["token"] * new, "done"]
    assert found[-1][1]["reason"] == "length"
    assert found[-1][1]["new_tokens"] == new
    expected = list(stream(served.router.router, served.model, text, new))
    assert [data["tokens"][-1]["text"].strip() for _, data in found[1:-1]] == [piece for piece, _ in expected[1:]]
    said = [(data["task"]["task"], data["task"]["nearest"], data["task"]["p"]) for _, data in found[:-1]]
    assert said == [(n.task, n.nearest, round(n.p, 4)) for _, n in expected]


def test_circuit_values_are_z_scores_of_the_study(client: TestClient, served: Served) -> None:
    trace = served.circuits[0]
    found = events(client, {"prompt": TEXTS[3], "max_new_tokens": 3})
    tokens = [token for _, data in found[:-1] for token in data["tokens"]]
    ids = np.array([token["id"] for token in tokens])
    sites = sorted({n.site for n in trace.neurons})
    with capture(served.model, sites) as session:
        seen = session.run(torch.from_numpy(ids)[None])
    raw = np.stack([seen[n.site][0, :, n.index].numpy() for n in trace.neurons], axis=1)
    # mean and standard deviation over the texts of the study, by hand
    task = planted_task(rows=600)
    with capture(served.model, sites) as session:
        final = []
        for row in encode(served.model, [e.text for e in task.examples]):
            at = session.run(torch.from_numpy(row.astype(np.int64))[None])
            final.append([float(at[n.site][0, -1, n.index]) for n in trace.neurons])
    mean, sd = np.mean(final, axis=0), np.std(final, axis=0, ddof=1)
    given = np.array([token["circuits"]["planted"] for token in tokens])
    np.testing.assert_allclose(given, (raw - mean) / sd, atol=2e-3)
    labels = np.array([e.label for e in task.examples])
    info = client.get("/v1/info").json()["circuits"][0]
    assert info["unit"] == "z"
    for c, name in enumerate(task.classes):
        np.testing.assert_allclose(
            info["classes"][name], (np.mean(np.array(final)[labels == c], axis=0) - mean) / sd, atol=2e-3
        )


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("classify", {"texts": []}, 400, "texts: none was given"),
        ("classify", {"texts": ["w1"] * 41}, 413, "texts: 41 in one request, but the limit is 40"),
        ("classify", {"texts": ["w1", "w1 " * 101]}, 413, "texts, number 1: 303 characters, but the limit is 300"),
        ("classify", {"texts": ["w1", "   "]}, 400, "text 1: the text is empty"),
        ("classify", {"texts": ["w1"], "task": "poetry"}, 404, "task: 'poetry' has no classifier; there is planted, wandering"),
        ("classify", {"texts": "w1"}, 422, "texts: Input should be a valid list"),
        ("classify", {"texts": ["w1", 2]}, 422, "texts.1: Input should be a valid string"),
        ("classify", {"text": ["w1"]}, 422, "texts: Field required"),
        ("classify", {"texts": ["w1"], "threshold": 0.5}, 422, "threshold: Extra inputs are not permitted"),
        ("route", {"texts": ["w1 w2", "w1"]}, 400, "text 1: one token only"),
        ("stream", {"prompt": "w1", "max_new_tokens": 33}, 413, "max_new_tokens: 33, but the limit is 32"),
        ("stream", {"prompt": "w1", "max_new_tokens": 0}, 422, "max_new_tokens: Input should be greater than"),
        ("stream", {"prompt": "w1 " * 100, "max_new_tokens": 32}, 413, "do not fit into the model's 128 positions"),
        ("stream", {"prompt": "", "max_new_tokens": 3}, 400, "empty"),
        ("stream", {"prompt": "w1", "temperature": -1}, 422, "temperature: Input should be greater than"),
        ("poem", {"prompt": "w1"}, 404, "POST /v1/poem: Not Found"),
        ("info", {}, 405, "POST /v1/info: Method Not Allowed"),
    ],
)
def test_refused_in_one_line(client: TestClient, path: str, body: dict[str, Any], status: int, says: str) -> None:
    answer = client.post(f"/v1/{path}", json=body)
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    assert says in answer.json()["error"]
    assert "\n" not in answer.json()["error"]


def test_not_json_and_not_from_here(client: TestClient) -> None:
    head = {"content-type": "application/json"}
    assert "not JSON" in client.post("/v1/classify", content=b'{"texts": [', headers=head).json()["error"]
    half = client.post("/v1/classify", content=b'{"texts": ["\\ud800"]}', headers=head)
    assert half.status_code == 422
    assert "half of a character" in half.json()["error"]
    plain = client.post("/v1/classify", content=b'{"texts": ["w1"]}', headers={"content-type": "text/plain"})
    assert plain.status_code == 422  # what a page elsewhere may send without asking first
    elsewhere = client.get("/v1/info", headers={"host": "evil.example:8000"})
    assert elsewhere.status_code == 421
    assert "evil.example" in elsewhere.json()["error"]
    assert client.get("/v1/health", headers={"host": "[::1]:8000"}).status_code == 200
    large = client.post("/v1/classify", content=b" " * 150_000, headers=head)
    assert large.status_code == 413
    endless = client.post("/v1/classify", content=iter([b'{"texts": ["w1"]}']), headers=head)
    assert endless.status_code == 411


def test_no_text_is_logged(client: TestClient, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    secret = "w7 xyzzy-17"
    with caplog.at_level(logging.DEBUG):
        client.post("/v1/classify", json={"texts": [secret]})
        client.post("/v1/route", json={"texts": [secret]})
        client.post("/v1/stream", json={"prompt": secret, "max_new_tokens": 2})
        refused = client.post("/v1/classify", json={"texts": [secret, {"secret": secret}]})
    assert "xyzzy" not in refused.text
    assert "xyzzy" not in caplog.text
    captured = capfd.readouterr()
    assert "xyzzy" not in captured.out + captured.err


def test_without_studies_only_text_is_written() -> None:
    with TestClient(create_app(gather(planted_llama())), "http://localhost") as client:
        assert "--exit DIR" in client.post("/v1/classify", json={"texts": ["w1"]}).json()["error"]
        assert "--route DIR" in client.post("/v1/route", json={"texts": ["w1"]}).json()["error"]
        found = events(client, {"prompt": "w1", "max_new_tokens": 2})
        assert found[0][1]["task"] is None
        assert set(found[0][1]["tokens"][0]) == {"id", "text"}


def test_sampling_is_reproducible_and_not_greedy(client: TestClient) -> None:
    def written(**options: Any) -> list[int]:
        found = events(client, {"prompt": TEXTS[1], "max_new_tokens": 16, **options})
        return [data["tokens"][0]["id"] for kind, data in found if kind == "token"]

    greedy, one, two = written(), written(temperature=5.0, seed=1), written(temperature=5.0, seed=2)
    assert one == written(temperature=5.0, seed=1)
    assert one != two
    assert one != greedy
    assert written(temperature=1e-6, seed=1) == greedy


def test_characters_of_many_bytes_are_whole() -> None:
    readable, text = Readable(tiny_tokenizer()), "naïve 🎬 你好"
    ids = tiny_tokenizer()(text)["input_ids"]
    pieces = [readable.add(i) for i in ids]
    assert pieces[0] == "<bos>"
    assert "".join(pieces[1:]) == text
    assert "🎬" in pieces
    broken = Readable(tiny_tokenizer())
    lead = tiny_tokenizer()("🎬", add_special_tokens=False)["input_ids"][0]
    assert any(broken.add(lead) for _ in range(20))  # bytes that never become a character are not held for ever


def test_encoders_and_empty_servers_are_refused(folder: Path) -> None:
    bert = tiny_model("bert", head=True)
    with pytest.raises(InputError, match="is an encoder, which does not generate text; give what it can do: exits="):
        gather(bert)
    with pytest.raises(InputError, match="was made for planted-llama"):
        gather(bert, exits=[folder / "exit"])
    with pytest.raises(InputError, match="has no language-model head"):
        gather(tiny_model("llama"))
    with pytest.raises(InputError, match=r"circuits: .* holds no circuits \(its kind is 'exit'\)"):
        gather(planted_llama(), circuits=folder / "exit")
    with pytest.raises(InputError, match=r"circuits: .* was made for planted-llama .* another model, checkpoint"):
        gather(planted_llama(seed=1), circuits=folder / "circuits")
    with pytest.raises(InputError, match="is the second classifier of task 'planted'"):
        gather(planted_llama(), exits=[folder / "exit", folder / "exit" / "exit"])
    with pytest.raises(InputError, match=r"exits: .*route holds no saved classifier"):
        gather(planted_llama(), exits=[folder / "route"])
    with pytest.raises(InputError, match=r"route: .*nowhere does not exist"):
        gather(planted_llama(), route=folder / "nowhere")
