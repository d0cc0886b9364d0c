"""Clients that hold, starve or flood a server: each is turned away, and others are answered meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from moescope.capture.encode import Encoded, encode
from moescope.server import Limits, Served, gather
from moescope.server.app import create_app
from moescope.server.lane import Answered, Lane
from moescope.server.limits import Refused
from moescope.server.run import Server, bind
from moescope.server.served import Classifier
from moescope.server.service import Service
from moescope.server.thread import SLICE, ModelThread
from moescope.server.wire import StreamBody
from moescope.server.writer import Sampling, Writer
from tests.architectures import save_tiny, tiny_model
from tests.planted_llama import planted_llama
from tests.served_studies import wandering

pytestmark = pytest.mark.skipif(os.name != "posix", reason="sockets and signals are used as on POSIX")
LINE = b"Host: 127.0.0.1\r\n"


@pytest.fixture(scope="module")
def served() -> Served:
    model = planted_llama()
    return Served(model, {"wandering": Classifier(wandering(model), None)})


@contextmanager
def serving(served: Served, limits: Limits, **options: Any) -> Iterator[int]:
    """The port of a server in a thread of its own."""
    opened = bind("127.0.0.1", 0)
    port = opened.getsockname()[1]
    server = Server(create_app(served, limits, **options), opened)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield port
    finally:
        server.handle_exit(signal.SIGINT, None)
        thread.join(30)
    assert not thread.is_alive()


def connect(port: int, sent: bytes = b"") -> socket.socket:
    made = socket.create_connection(("127.0.0.1", port), timeout=20)
    made.sendall(sent)
    return made


def ask(port: int, path: str, body: dict[str, Any] | None = None, token: str = "") -> tuple[int, dict[str, str], Any]:
    """Status, headers and the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    head = {"content-type": "application/json"} | ({"authorization": token} if token else {})
    connection.request("POST" if body is not None else "GET", path, json.dumps(body) if body is not None else None, head)
    answer = connection.getresponse()
    said = answer.read().decode()
    connection.close()
    headers = {name.lower(): value for name, value in answer.getheaders()}
    return answer.status, headers, json.loads(said) if headers["content-type"] == "application/json" else said


def everything(sock: socket.socket) -> bytes:
    """What comes until the other side closes."""
    parts = []
    with sock, contextlib.suppress(ConnectionResetError):
        while part := sock.recv(65536):
            parts.append(part)
    return b"".join(parts)


def measured(port: int) -> dict[str, float]:
    """name and labels -> value"""
    status, _, text = ask(port, "/metrics")
    assert status == 200
    families = list(text_string_to_metric_families(text))
    return {f"{s.name}{''.join(sorted(s.labels.values()))}": s.value for family in families for s in family.samples}


def until(true: Callable[[], bool], seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_who_sends_nothing_or_little_is_closed(served: Served) -> None:
    with serving(served, Limits(header_seconds=0.5, body_seconds=0.5)) as port:
        silent = [connect(port) for _ in range(30)]
        half = [connect(port, b"GET /v1/health HTTP/1.1\r\n" + LINE) for _ in range(5)]
        head = b"POST /v1/classify HTTP/1.1\r\n" + LINE + b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n"
        held = [connect(port, head + b'{"texts"') for _ in range(5)]
        drip = connect(port, b"GET /v1/health HTTP/1.1\r\n" + LINE)
        with contextlib.suppress(OSError):  # a header's letter now and then does not win time
            for _ in range(40):
                drip.sendall(b"X")
                time.sleep(0.05)
        assert ask(port, "/v1/health")[0] == 200
        assert [everything(sock) for sock in silent] == [b""] * 30
        for sock, says in [(s, "no whole request came within 0.5") for s in half] + [
            (s, "was not whole after 0.5") for s in held
        ]:
            head, _, body = everything(sock).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 408 ")
            assert says in json.loads(body)["error"]
        until(lambda: measured(port)["moescope_connections"] == 1)


def test_who_does_not_take_its_answers_is_closed(served: Served) -> None:
    with serving(served, Limits(write_seconds=0.5)) as port:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", port))
        sock.settimeout(20)
        with contextlib.suppress(OSError):
            sock.sendall((b"GET /openapi.json HTTP/1.1\r\n" + LINE + b"\r\n") * 3000)
        until(lambda: measured(port)["moescope_connections"] == 1)
        sock.close()


def test_what_is_not_http_is_refused_in_one_line(served: Served) -> None:
    with serving(served, Limits()) as port:
        for sent in (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"GET / HTTP/1.1\r\nX: " + b"a" * 200_000):
            head, _, body = everything(connect(port, sent)).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 400 ")
            assert "this is not HTTP/1.1" in json.loads(body)["error"]


def test_bodies_of_all_requests_together_are_bounded(served: Served) -> None:
    limits = Limits(texts=8, bodies=2)
    head = b"POST /v1/classify HTTP/1.1\r\n" + LINE + b"Content-Type: application/json\r\n"
    with serving(served, limits) as port:
        sent = head + f"Content-Length: {limits.body}\r\n\r\n".encode() + b'{"texts": ["' + b"w1 " * 20_000
        held = [connect(port, sent) for _ in range(2)]
        until(lambda: measured(port)["moescope_large_bodies_bytes"] == 2 * limits.body)
        for sock in [connect(port, sent) for _ in range(8)]:
            answer = everything(sock)
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"retry-after: 1" in answer
        assert ask(port, "/v1/classify", {"texts": ["w1 w2"]})[0] == 200
        for sock in held:
            sock.close()
        until(lambda: measured(port)["moescope_large_bodies_bytes"] == 0)
        assert ask(port, "/v1/classify", {"texts": ["w1 " * 6000] * 8})[0] == 200


def test_more_connections_than_there_is_room_for_wait(served: Served) -> None:
    with serving(served, Limits(connections=3)) as port:
        asked = b"GET /v1/health HTTP/1.1\r\n" + LINE + b"\r\n"
        room = [connect(port, asked) for _ in range(3)]
        assert all(sock.recv(1) for sock in room)
        late = connect(port, asked)
        late.settimeout(0.4)
        with pytest.raises(TimeoutError):
            late.recv(1)
        room[0].close()
        late.settimeout(20)
        assert late.recv(1) == b"H"
        for sock in (*room, late):
            sock.close()


def test_of_many_streams_at_once_as_many_are_let_in_as_the_limit_says(served: Served) -> None:
    """All ask before the model has answered any."""
    service = Service(served, Limits(streams=4), ModelThread())

    async def scenario() -> list[Any]:
        busy = threading.Event()
        service._thread.submit(busy.wait)
        body = StreamBody(prompt="w1 w2", max_new_tokens=4)
        asked = asyncio.gather(*(service.writer(body) for _ in range(50)), return_exceptions=True)
        await asyncio.sleep(0.1)
        busy.set()
        return list(await asked)

    found = asyncio.run(scenario())
    assert [isinstance(one, Writer) for one in found] == [True] * 4 + [False] * 46
    assert {one.status for one in found if isinstance(one, Refused)} == {503}
    assert service.generating == 4
    for writer in found[:4]:
        service.free(writer)
    assert service.generating == 0
    service.close()


def test_fifty_streams_over_the_wire(served: Served) -> None:
    with serving(served, Limits(streams=2)) as port:
        found: list[tuple[int, dict[str, str], Any]] = []
        body = {"prompt": "w1 w2", "max_new_tokens": 60}
        clients = [threading.Thread(target=lambda: found.append(ask(port, "/v1/stream", body))) for _ in range(50)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        whole = [said for status, _, said in found if status == 200]
        assert all('"reason":"length","new_tokens":60' in said for said in whole)
        refused = [(status, head["retry-after"], list(said)) for status, head, said in found if status != 200]
        assert len(refused) >= 20
        assert set(map(str, refused)) == {str((503, "1", ["error"]))}
        assert measured(port)["moescope_generating"] == 0


def test_a_large_request_lets_small_ones_pass(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes in parts, and who comes later and is small goes between two of them."""
    monkeypatch.setattr("moescope.server.lane._LARGEST", 8192)
    order: list[str] = []
    begun: list[int] = []
    gate = threading.Semaphore(0)

    def run(encoded: Encoded) -> list[dict[str, Any]]:
        begun.append(len(encoded))
        gate.acquire()
        order.append("small" if int(encoded.lengths.max()) < 10 else f"part of {len(encoded)}")
        return [{"tokens": int(n)} for n in encoded.lengths]

    async def passed(n: int) -> None:
        while len(order) < n or len(begun) == n:  # and the next part is on its way
            await asyncio.sleep(0.01)

    async def scenario() -> Answered:
        thread = ModelThread()
        lane = Lane(thread, lambda texts, first: encode(served.model, texts, first_row=first, max_tokens=100), run)
        large = asyncio.ensure_future(lane.ask(["w1 w2 " * 400] * 64))
        gate.release()
        await passed(1)
        for n in range(3):  # a small one comes while a part is on its way
            small = asyncio.ensure_future(lane.ask([f"w{n}"]))
            await asyncio.sleep(0.01)
            gate.release(2)
            assert (await small).together == 1
            await passed(2 * n + 3)
        gate.release(64)
        answered = await large
        thread.close()
        return answered

    answered = asyncio.run(scenario())
    assert order[0] == "part of 3"  # 2,400 characters each
    assert [i for i, name in enumerate(order) if name == "small"] == [2, 4, 6]
    assert len(order) > 7
    assert [r["tokens"] for r in answered.results] == [100] * 64
    assert answered.notes[0] == "texts 0 to 2: 3 of 3 texts were longer than 100 tokens; the start of each was dropped"


def test_one_long_text_lets_others_pass_within_it(served: Served) -> None:
    """And neither it nor they are told anything else than they would be alone."""
    long, short, sampling = "w1 w2 w7 " * 2000, "w3 w4 w5", Sampling(new_tokens=2)
    made = served.classifiers["wandering"].exit
    alone = [made.run(encode(made.model, [text])) for text in (" ".join(long.split()[-128:]), short)]
    read = Writer(served, short, sampling).step()
    begun, come = threading.Event(), threading.Event()

    def wait(_: Any, args: tuple[Any, ...]) -> None:
        if args[0].shape[1] > 100:
            begun.set()
            come.wait(20)

    gate = served.model.structure.layers[1].register_forward_pre_hook(wait)
    service, order = Service(served, Limits(), ModelThread()), []

    async def told(name: str, answer: Awaitable[Any]) -> Any:
        said = await answer
        order.append(name)
        return said

    async def scenario() -> list[Any]:
        first = asyncio.ensure_future(told("long", service.classify([long], None)))
        await asyncio.to_thread(begun.wait, 20)
        others = [asyncio.ensure_future(told("short", service.classify([short], None)))]
        others.append(asyncio.ensure_future(told("step", service._thread.do(Writer(served, short, sampling).step))))
        await asyncio.sleep(SLICE)
        come.set()
        return [await first, *(await asyncio.gather(*others))]

    try:
        *answers, step = asyncio.run(scenario())
    finally:
        gate.remove()
        service.close()
    assert sorted(order[:2]) == ["short", "step"]
    for (answer,), (probability, depth) in zip(answers, alone, strict=True):
        assert answer["results"][0]["depth"] == depth[0]
        assert list(answer["results"][0]["probabilities"].values()) == pytest.approx(probability[0].tolist(), abs=1e-6)
    assert step == read
    assert not any(layer._forward_hooks for layer in served.model.structure.layers)


def test_what_small_requests_leave_of_their_turns_is_not_the_large_ones(served: Served) -> None:
    """Ten small ones go together, then a token is written, and only then goes the next part of a large one."""
    order: list[str] = []
    begun, gate = threading.Event(), threading.Event()

    def run(encoded: Encoded) -> list[dict[str, Any]]:
        begun.set()
        gate.wait()
        order.append(f"{len(encoded)}")
        return [{}] * len(encoded)

    async def scenario() -> None:
        thread = ModelThread()
        lane = Lane(thread, lambda texts, first: encode(served.model, texts, first_row=first, max_tokens=100), run)
        large = asyncio.ensure_future(lane.ask(["w1 w2 " * 800] * 12))
        await asyncio.sleep(0)
        begun.wait()
        small = [asyncio.ensure_future(lane.ask(["w1"])) for _ in range(10)]
        await asyncio.sleep(0)
        step = asyncio.ensure_future(thread.do(lambda: order.append("step")))
        await asyncio.sleep(0.05)
        gate.set()
        await asyncio.gather(large, step, *small)
        thread.close()

    asyncio.run(scenario())
    assert order[:3] == ["1", "10", "step"]


def test_a_large_request_ends_although_small_ones_keep_coming(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moescope.server.lane._FIRST", 1024)
    monkeypatch.setattr("moescope.server.lane._LARGEST", 1024)

    def run(encoded: Encoded) -> list[dict[str, Any]]:
        time.sleep(0.01)
        return [{}] * len(encoded)

    async def scenario() -> int:
        thread, answered = ModelThread(), 0
        lane = Lane(thread, lambda texts, first: encode(served.model, texts, first_row=first, max_tokens=100), run, texts=1)
        large = asyncio.ensure_future(lane.ask(["w1 w2 " * 100] * 10))
        waiting = {asyncio.ensure_future(lane.ask(["w1"])) for _ in range(3)}
        while not large.done():
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            answered += len(done)
            waiting |= {asyncio.ensure_future(lane.ask(["w1"])) for _ in done}
            assert answered < 2000
        await asyncio.wait(waiting)
        thread.close()
        return answered

    assert asyncio.run(scenario()) > 10


def test_a_request_whose_client_has_gone_is_dropped(served: Served) -> None:
    """Also one that has been answered in part."""
    passes = 0
    limits = Limits(texts=64)
    with serving(served, limits) as port:
        body = json.dumps({"texts": ["w1 w2 " * 3000] * 64}).encode()
        head = b"POST /v1/classify HTTP/1.1\r\n" + LINE + b"Content-Type: application/json\r\n"
        sock = connect(port, head + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        until(lambda: measured(port)["moescope_waiting"] == 1)
        sock.close()
        until(lambda: measured(port)["moescope_waiting"] == 0)
        found = measured(port)
        passes = sum(value for name, value in found.items() if name.startswith("moescope_exits_total"))
        assert passes < 64
        assert found["moescope_requests_total/v1/classifygone"] == 1


def test_a_long_prompt_is_read_in_parts_with_the_same_result() -> None:
    for model in (planted_llama(), tiny_model("olmoe", head=True)):
        text = "w1 w2 w3 yes no w4 w5 w6 w7 w8 w9"
        whole = Writer(gather(model), text, Sampling(new_tokens=4))
        parts = Writer(gather(model), text, Sampling(new_tokens=4), chunk=3)
        expected = whole.step()
        assert expected is not None
        steps = [parts.step() for _ in range(-(-expected["read"] // 3))]
        assert steps[:-1] == [None] * (len(steps) - 1)
        for one, other in [(steps[-1], expected), (parts.step(), whole.step()), (parts.step(), whole.step())]:
            assert json.loads(json.dumps(one), parse_float=lambda x: round(float(x), 2)) == json.loads(
                json.dumps(other), parse_float=lambda x: round(float(x), 2)
            )


def test_parameters_out_of_range_are_refused_in_one_line(served: Served) -> None:
    with serving(served, Limits(new_tokens=20)) as port:
        assert '"new_tokens":20,' in ask(port, "/v1/stream", {"prompt": "w1"})[2]  # what the server allows
        greedy = ask(port, "/v1/stream", {"prompt": "w1", "max_new_tokens": 4})[2].partition('"seconds"')[0]
        for temperature in (5e-324, 1e-300, 1e-9):
            said = ask(port, "/v1/stream", {"prompt": "w1", "max_new_tokens": 4, "temperature": temperature})[2]
            assert said.partition('"seconds"')[0] == greedy
        for name, value in [
            ("temperature", float("nan")), ("temperature", float("inf")), ("temperature", 101), ("temperature", "hot"),
            ("max_new_tokens", 0), ("max_new_tokens", 1.5), ("max_new_tokens", 10**30), ("seed", -1), ("seed", 2**63),
            ("top_p", 0.9), ("n", 2),
        ]:  # fmt: skip
            status, _, said = ask(port, "/v1/stream", {"prompt": "w1", name: value})
            assert status == 413 if value == 10**30 else 422
            assert said["error"].startswith(f"{name}: ")
            assert "\n" not in said["error"]
        for sent in (b"[" * 100_000, b"\xff\xfe", b'{"seed": ' + b"9" * 5000 + b', "prompt": "w1"}', b"null"):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            connection.request("POST", "/v1/stream", sent, {"content-type": "application/json"})
            answer = connection.getresponse()
            assert answer.status in (400, 422)
            assert list(json.loads(answer.read())) == ["error"]


def test_a_token_opens_the_server(served: Served) -> None:
    with serving(served, Limits(), token="correct-horse-battery") as port:
        for path in ("/v1/info", "/metrics", "/openapi.json", "/v1/nothing"):
            for given in ("", "Bearer wrong-horse-battery", "Basic correct-horse-battery", "Bearer", "Bearer \xe9"):
                status, headers, said = ask(port, path, token=given)
                assert status == 401
                assert headers["www-authenticate"] == "Bearer"
                assert "token is missing or wrong" in said["error"]
        assert ask(port, "/v1/info", token="Bearer correct-horse-battery")[0] == 200
        assert ask(port, "/v1/classify", {"texts": ["w1 w2"]}, "bearer correct-horse-battery")[0] == 200
        assert [ask(port, path)[0] for path in ("/", "/v1/health")] == [200, 200]
        schema = ask(port, "/openapi.json", token="Bearer correct-horse-battery")[2]
        assert schema["security"] == [{"token": []}]
        assert schema["components"]["securitySchemes"] == {"token": {"type": "http", "scheme": "bearer"}}


def test_every_answer_forbids_frames_and_guessing(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    app = create_app(served)
    monkeypatch.setattr(app.state.service, "classify", lambda *_: 1 / 0)
    from fastapi.testclient import TestClient

    with TestClient(app, "http://127.0.0.1", raise_server_exceptions=False) as client:
        answers = [client.get(path) for path in ("/", "/v1/health", "/nothing", "/metrics")]
        answers += [client.post("/v1/classify", json=body) for body in ({}, {"texts": ["w1"]})]
        answers += [client.get("/", headers={"host": "evil.example"})]
        assert [a.status_code for a in answers] == [200, 200, 404, 200, 422, 500, 421]
        for answer in answers:
            assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
            assert answer.headers["x-frame-options"] == "DENY"
            assert answer.headers["x-content-type-options"] == "nosniff"
        assert client.get("/v1/classify").headers["allow"] == "POST"


def test_the_schema_states_its_errors_and_limits(served: Served) -> None:
    from fastapi.testclient import TestClient

    with TestClient(create_app(served, Limits(texts=7, characters=50, new_tokens=9)), "http://127.0.0.1") as client:
        schema = client.get("/openapi.json").json()
    for path, method, statuses in [
        ("/v1/classify", "post", "200 400 401 404 405 408 411 413 421 422 500 503"),
        ("/v1/route", "post", "200 400 401 404 405 408 411 413 421 422 500 503"),
        ("/v1/stream", "post", "200 400 401 405 408 409 411 413 421 422 500 503"),
        ("/v1/card", "get", "200 401 404 405 408 411 413 421 422"),
        ("/v1/info", "get", "200 401 405 408 411 413 421"),
    ]:
        answers = schema["paths"][path][method]["responses"]
        assert " ".join(sorted(answers)) == statuses
        for status in set(answers) - {"200"}:
            assert answers[status]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Failure"}
    assert "Retry-After" in schema["paths"]["/v1/stream"]["post"]["responses"]["503"]["headers"]
    parts = schema["components"]["schemas"]
    texts = parts["ClassifyBody"]["properties"]["texts"]
    assert (texts["minItems"], texts["maxItems"], texts["items"]["maxLength"]) == (1, 7, 50)
    new = parts["StreamBody"]["properties"]["max_new_tokens"]
    assert (new["maximum"], new["default"]) == (9, 9)
    assert "security" not in schema


def test_what_was_done_can_be_read_as_metrics(served: Served) -> None:
    with serving(served, Limits()) as port:
        texts = ["w1 w2 w3", "yes no yes no", "w4 w5"]
        results = ask(port, "/v1/classify", {"texts": texts})[2]["answers"][0]["results"]
        events = ask(port, "/v1/stream", {"prompt": "w1 w2", "max_new_tokens": 5})[2]
        ask(port, "/v1/stream", {"prompt": "w1", "seed": -1})
        ask(port, "/wp-admin")
        found = measured(port)
    assert found["moescope_requests_total/v1/classify200"] == 1
    assert found["moescope_requests_total/v1/stream422"] == 1
    assert found["moescope_requests_total404other"] == 1
    assert found["moescope_request_seconds_count/v1/stream"] == 2
    assert found["moescope_tokens_totalwritten"] == events.count("event: token") == 5
    prompt = json.loads(events.split("data: ")[1].split("\n")[0])["read"]
    assert found["moescope_tokens_totalread"] == sum(r["tokens"] for r in results) + prompt
    for depth in {r["depth"] for r in results}:
        expected = sum(r["depth"] == depth for r in results)
        assert found["moescope_exits_total" + "".join(sorted([str(depth), "wandering"]))] == expected
    assert found["moescope_connections"] == 1
    assert found["moescope_waiting"] == 0


def started(model: Path, *options: str, files: int | None = None) -> tuple[subprocess.Popen[str], int]:
    """The command, and its port."""
    command = [sys.executable, "-m", "moescope", "serve", str(model), "--port", "0", *options]
    few = (lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))) if files else None
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=few)
    assert server.stdout is not None
    line = server.stdout.readline()
    return server, int(line.split(":")[-1].partition("/")[0])


def test_with_few_descriptors_and_a_flood_it_answers_says_little_and_ends_when_told(tmp_path: Path) -> None:
    """A flood of connections over what the process may open; then SIGTERM, while a text is being written, which ends first."""
    server, port = started(save_tiny(tmp_path / "llama"), "--max-new-tokens", "120", files=64)
    try:
        flood = []
        for _ in range(120):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", port))
            flood.append(sock)
        time.sleep(1)
        for sock in flood:
            sock.close()
        assert ask(port, "/v1/health")[0] == 200
        body = json.dumps({"prompt": "a", "max_new_tokens": 120})
        stream = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        stream.request("POST", "/v1/stream", body, {"content-type": "application/json"})
        answer = stream.getresponse()
        assert answer.readline() == b"event: prompt\n"
        server.send_signal(signal.SIGTERM)
        assert '"reason":"length","new_tokens":120' in answer.read().decode()
        out, err = server.communicate(timeout=60)
    finally:
        server.kill()
    assert server.returncode == 143
    assert out == ""
    assert err == "stopped\n"
