"""Many at once give what one at a time gives; who goes away stops what was run for it; the command ends as it is told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from moescope.capture.encode import Encoded, encode
from moescope.cli import main
from moescope.errors import InputError
from moescope.routing.capture import trace_prompts
from moescope.server import Limits, Served, gather
from moescope.server.app import create_app
from moescope.server.lane import Lane
from moescope.server.limits import Refused
from moescope.server.service import Service
from moescope.server.thread import ModelThread
from moescope.server.wire import StreamBody
from moescope.server.writer import Sampling, Writer
from tests.architectures import save_tiny, tiny_model
from tests.planted_llama import planted_llama, planted_task
from tests.served_studies import save_studies, serve_studies

TEXTS = [e.text for e in planted_task(rows=40, seed=7).examples]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_studies(tmp_path_factory.mktemp("studies"))


@pytest.fixture(scope="module")
def served(folder: Path) -> Served:
    return serve_studies(folder)


def written(writer: Writer) -> list[dict[str, Any]]:
    steps = []
    while writer.over is None:
        steps.append(writer.step())
    return steps


@pytest.mark.parametrize("name", ["olmoe", "qwen3_moe", "moe-tiny"])
def test_experts_are_those_that_a_trace_records(name: str) -> None:
    from moescope.models import load

    model = load(name, head=True) if name == "moe-tiny" else tiny_model(name, head=True)
    prompt, new = "the film was", 5
    steps = written(Writer(gather(model), prompt, Sampling(new_tokens=new)))
    tokens = [token for step in steps for token in step["tokens"]]
    asked = SimpleNamespace(id="0", text=prompt, category=None, group=None)
    trace = trace_prompts(model, [asked], max_new_tokens=new, weight_dtype="float32")
    assert trace.tokens is not None
    assert trace.weights is not None
    n = len(trace.tokens)  # the trace lacks the last token, which generate() does not feed back
    assert [t["id"] for t in tokens[:n]] == trace.tokens.tolist()
    assert n == len(tokens) - 1
    assert trace.ids.shape[1] == len(gather(model).experts)
    order = np.argsort(-trace.weights, axis=2, kind="stable")
    assert [t["experts"]["ids"] for t in tokens[:n]] == np.take_along_axis(trace.ids, order, 2).tolist()
    given = np.array([t["experts"]["weights"] for t in tokens[:n]])
    np.testing.assert_allclose(given, np.take_along_axis(trace.weights, order, 2), atol=1e-4)


def test_an_end_token_ends_the_text_and_is_not_shown() -> None:
    model = planted_llama()
    free = written(Writer(gather(model), TEXTS[0], Sampling(new_tokens=6)))
    model.module.generation_config.eos_token_id = [free[3]["tokens"][0]["id"]]
    ended = Writer(gather(model), TEXTS[0], Sampling(new_tokens=6))
    assert (
        written(ended)
        == free[: 1 + next(i for i, s in enumerate(free[1:]) if s["tokens"][0]["id"] == free[3]["tokens"][0]["id"])]
    )
    assert ended.over == "end"


def test_writers_and_classifiers_take_turns_without_trace(served: Served) -> None:
    """Hooks and sums of one are not there while another runs."""
    classify = served.classifiers["wandering"].exit
    alone = [written(Writer(served, text, Sampling(new_tokens=6))) for text in TEXTS[:3]]
    writers = [Writer(served, text, Sampling(new_tokens=6)) for text in TEXTS[:3]]
    together: list[list[dict[str, Any]]] = [[], [], []]
    for _ in range(7):
        for writer, steps in zip(writers, together, strict=True):
            steps.append(writer.step())
            classify.run(TEXTS[10:13])
    assert together == alone
    assert len({json.dumps([step["task"] for step in steps]) for steps in alone}) == 3


def test_who_waits_together_is_answered_together(served: Served) -> None:
    """While the model is busy ten requests come; all go in one pass, and each gets its own answers, or its own refusal."""
    model, made = served.model, served.classifiers["wandering"].exit
    passes: list[int] = []

    def run(encoded: Encoded) -> list[dict[str, Any]]:
        passes.append(len(encoded))
        probability, depth = made.run(encoded)
        return [{"p": p.tolist(), "depth": int(d)} for p, d in zip(probability, depth, strict=True)]

    async def scenario() -> list[Any]:
        thread, busy = ModelThread(), threading.Event()
        lane = Lane(thread, lambda texts, first: encode(model, texts, first_row=first), run, texts=64, waiting=12)
        thread.submit(busy.wait)
        asked = [TEXTS[i : i + 1 + i % 3] for i in range(10)] + [["w1", ""]]
        waiting = [asyncio.ensure_future(lane.ask(texts)) for texts in asked]
        gone = asyncio.ensure_future(lane.ask(TEXTS[:30]))
        await asyncio.sleep(0)
        with pytest.raises(Refused, match="12 requests wait already") as full:
            await lane.ask(["w1"])
        assert full.value.status == 503
        gone.cancel()
        await asyncio.sleep(0)
        busy.set()
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        thread.close()
        return answers

    *answers, refused = asyncio.run(scenario())
    assert passes == [sum(1 + i % 3 for i in range(10))]  # one pass; who had gone is not in it
    assert isinstance(refused, InputError)
    assert "text 1: the text is empty" in str(refused)
    for i, answer in enumerate(answers):
        alone = made.run(TEXTS[i : i + 1 + i % 3])
        assert answer.together == passes[0]
        assert [r["depth"] for r in answer.results] == alone.depth.tolist()
        np.testing.assert_allclose([r["p"] for r in answer.results], alone.probability, atol=1e-5)


def test_a_batch_is_no_larger_than_the_limit(served: Served) -> None:
    passes: list[int] = []

    async def scenario() -> None:
        thread, busy = ModelThread(), threading.Event()

        def run(encoded: Encoded) -> list[dict[str, Any]]:
            passes.append(len(encoded))
            return [{}] * len(encoded)

        lane = Lane(thread, lambda texts, first: encode(served.model, texts, first_row=first), run, texts=8)
        thread.submit(busy.wait)
        waiting = [asyncio.ensure_future(lane.ask(TEXTS[:3])) for _ in range(5)]
        await asyncio.sleep(0)
        busy.set()
        await asyncio.gather(*waiting)
        thread.close()

    asyncio.run(scenario())
    assert passes == [6, 6, 3]


async def _ask(app: Any, body: dict[str, Any], until: int) -> int:
    """Ask the app as a server would, and go away after so many events; how many came."""
    sent = json.dumps(body).encode()
    messages = [{"type": "http.request", "body": sent, "more_body": False}]
    enough = asyncio.Event()
    came = 0

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await enough.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        nonlocal came
        came += message.get("body", b"").count(b"event: ")
        if came >= until:
            enough.set()

    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json"), (b"content-length", str(len(sent)).encode())]
    scope = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "POST"}
    scope |= {"path": "/v1/stream", "raw_path": b"/v1/stream", "query_string": b"", "headers": headers, "scheme": "http"}
    await app(scope | {"client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "state": {}}, receive, send)
    return came


def test_a_client_that_goes_away_stops_its_generation() -> None:
    app = create_app(gather(planted_llama()), Limits(new_tokens=100))
    service: Service = app.state.service
    steps = 0
    do = service._thread.do

    async def counting(work: Any, *when: float | None) -> Any:
        nonlocal steps
        steps += 1
        return await do(work, *when)

    service._thread.do = counting  # type: ignore[method-assign]
    came = asyncio.run(_ask(app, {"prompt": "w1 w2", "max_new_tokens": 100}, until=5))
    service.close()
    assert 5 <= came <= 10
    assert steps <= 12  # of 102
    assert service.generating == 0


def test_generations_at_the_same_time_are_limited() -> None:
    service = Service(gather(planted_llama()), Limits(streams=2), ModelThread())

    async def scenario() -> None:
        body = StreamBody(prompt="w1 w2", max_new_tokens=4)
        one, two = await service.writer(body), await service.writer(body)
        with pytest.raises(Refused, match="2 texts are being generated already") as full:
            await service.writer(body)
        assert full.value.status == 503
        assert [e async for e in service.events(one)][-1].startswith("event: done")
        del two  # a client that has gone before its stream began
        await service.writer(body)
        await service.writer(body)

    asyncio.run(scenario())
    service.close()


def test_an_error_while_writing_is_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(gather(planted_llama()), Limits(), ModelThread())

    async def scenario(error: Exception) -> list[str]:
        writer = await service.writer(StreamBody(prompt="w1 w2"))
        monkeypatch.setattr(writer, "step", lambda: (_ for _ in ()).throw(error))
        found = []
        with contextlib.suppress(RuntimeError):
            async for event in service.events(writer):
                found.append(event)
        return found

    assert asyncio.run(scenario(InputError("layer 2: nothing"))) == ['event: error\ndata: {"error":"layer 2: nothing"}\n\n']
    ours = asyncio.run(scenario(RuntimeError("of w1 w2")))
    assert len(ours) == 1
    assert "w1" not in ours[0]
    service.close()


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["serve", *arguments])
    shown = capsys.readouterr()
    assert stop.value.code == 2, shown.err
    assert shown.out == ""
    lines = shown.err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_refused_by_the_command(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert (
            refused(["dense-tiny", "--port", port], capsys)
            == f"error: --port: {port} is in use; give another, or 0 for any that is free"
        )
    free = ["--port", "0"]
    assert "--host: 'no.such.host.invalid' is not an address" in refused(
        ["dense-tiny", "--host", "no.such.host.invalid"], capsys
    )
    assert "--host: 192.0.2.1 is not an address of this machine" in refused(
        ["dense-tiny", "--host", "192.0.2.1", *free], capsys
    )
    assert "--port: 70000 is not between 0 and 65535" in refused(["dense-tiny", "--port", "70000"], capsys)
    assert "--max-texts: 0 is not a positive number" in refused(["dense-tiny", "--max-texts", "0", *free], capsys)
    llama = str(save_tiny(tmp_path / "llama"))
    tiny_model("bert", head=True).module.save_pretrained(tmp_path / "bert")
    tiny_model("bert").tokenizer.save_pretrained(tmp_path / "bert")
    capsys.readouterr()  # the bars of saving
    assert "was made for planted-llama" in refused([llama, "--exit", str(folder / "exit"), *free], capsys)
    assert "was made for planted-llama" in refused([llama, "--route", str(folder / "route"), *free], capsys)
    assert "was made for planted-llama" in refused([llama, "--circuits", str(folder / "circuits"), *free], capsys)
    assert "is an encoder, which does not generate text; give what it can do: --exit DIR" in refused(
        [str(tmp_path / "bert"), *free], capsys
    )
    monkeypatch.setattr("moescope.cli.serve.find_spec", lambda name: None if name == "uvicorn" else object())
    assert "pip install 'moescope[serve]'" in refused(["dense-tiny"], capsys)


@pytest.mark.skipif(os.name != "posix", reason="signals are sent as on POSIX")
def test_the_command_serves_and_ends_when_interrupted(tmp_path: Path) -> None:
    """An interrupt ends it cleanly although a text is being written."""
    model = save_tiny(tmp_path / "llama")
    command = [sys.executable, "-m", "moescope", "serve", str(model), "--port", "0", "--max-new-tokens", "250"]
    server = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        found = re.fullmatch(r".*: (http://127\.0\.0\.1:\d+/) \(Ctrl-C ends it\)\n", line)
        assert found, line + (server.stderr.read() if server.stderr else "")
        page = urllib.request.urlopen(found[1], timeout=60)
        assert "moescope serve" in page.read().decode()
        body = json.dumps({"prompt": "a", "max_new_tokens": 250}).encode()
        head = {"content-type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(found[1] + "v1/stream", body, head), timeout=60) as stream:
            assert stream.readline() == b"event: prompt\n"
            server.send_signal(signal.SIGINT)
            rest = stream.read().decode()
        assert '"reason":"stopped"' in rest
        out, err = server.communicate(timeout=30)
    finally:
        server.kill()
    assert server.returncode == 0
    assert out == ""
    assert err == "stopped\n"
