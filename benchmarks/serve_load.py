"""`moescope serve` under load: 50 clients of five kinds for a minute, and what each kind waited for.

    python benchmarks/serve_load.py                    # dense-tiny with a classifier: under three minutes

Writes benchmarks/results/serve_load.json; `python tools/serve_load.py` puts it into docs/serve.md. Each client waits for its
answer before it asks again, and for as long as Retry-After says where it is refused. Forty-one ask about one short text; five
let 16 tokens be written, where four may at the same time; one sends the largest request that is allowed (64 texts of 20,000
characters); two open a connection, send half a header and keep it; one announces the largest body, sends half and keeps it.
The first ten seconds are not counted. The memory is the server's resident set once a second.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import psutil

import moescope
from machine import describe
from moescope.server import Limits
from moescope.tasks import load_task
from serve import LIMIT, server

RESULT = Path(__file__).parent / "results" / "serve_load.json"
WARM = 10.0
KINDS = {
    "one short text": 41,
    "16 tokens written": 5,
    "the largest request": 1,
    "half a header, kept": 2,
    "half a body, kept": 1,
}


class Load:
    """Clients of all kinds until it is over."""

    def __init__(self, address: str, texts: list[str], seconds: float) -> None:
        self._place = urlsplit(address)
        self._texts = texts
        self._begin = time.monotonic() + WARM
        self._end = self._begin + seconds
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.refused: dict[str, int] = defaultdict(int)
        self.lost: dict[str, int] = defaultdict(int)
        """closed without an answer"""
        self.first: list[float] = []
        """seconds to the first token"""

    def running(self) -> bool:
        return time.monotonic() < self._end

    def post(self, kind: str, path: str, body: dict[str, object]) -> None:
        """One request; its time, or that it was refused."""
        connection = http.client.HTTPConnection(self._place.netloc, timeout=120)
        start = time.monotonic()
        counted, wait = start >= self._begin, 0.0
        try:
            connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
            answer = connection.getresponse()
            if path == "/v1/stream" and answer.status == 200:
                answer.readline()
                if counted:
                    self.first.append(time.monotonic() - start)
            answer.read()
            if answer.status == 200:
                if counted:
                    self.seconds[kind].append(time.monotonic() - start)
            else:
                self.refused[kind] += counted
                wait = float(answer.getheader("retry-after", "1"))
        except OSError:
            self.lost[kind] += counted
            wait = 1.0
        finally:
            connection.close()
        time.sleep(wait)

    def keep(self, kind: str, sent: bytes) -> None:
        """Half a request, until the server closes it."""
        start = time.monotonic()
        with socket.create_connection((self._place.hostname or "", self._place.port or 0), timeout=5) as held:
            try:
                held.sendall(sent)
                while self.running():
                    try:
                        if not held.recv(4096):
                            break
                    except TimeoutError:
                        continue
            except OSError:
                pass
        if start >= self._begin and self.running():
            self.seconds[kind].append(time.monotonic() - start)
        time.sleep(0.1)

    def run(self, pid: int) -> list[float]:
        """MiB of the server, once a second."""
        limits = Limits()
        largest = (" ".join(self._texts) * 200)[: limits.characters]
        head = b"POST /v1/classify HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        body = head + f"Content-Length: {limits.body}\r\n\r\n".encode() + b" " * (limits.body // 2)
        large = {"texts": [largest] * limits.texts}
        written = {"prompt": "The film was", "max_new_tokens": 16, "temperature": 1.0}
        short, tokens, most, header, held = KINDS
        turns: dict[str, Callable[[], None]] = {
            tokens: lambda: self.post(tokens, "/v1/stream", written),
            most: lambda: self.post(most, "/v1/classify", large),
            header: lambda: self.keep(header, b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: "),
            held: lambda: self.keep(held, body),
        }

        def client(number: int, kind: str) -> None:
            rng = np.random.default_rng(number)
            while self.running():
                if kind == short:
                    self.post(kind, "/v1/classify", {"texts": [self._texts[rng.integers(len(self._texts))]]})
                else:
                    turns[kind]()

        kinds = [kind for kind, n in KINDS.items() for _ in range(n)]
        threads = [threading.Thread(target=client, args=one) for one in enumerate(kinds)]
        for thread in threads:
            thread.start()
        process, memory = psutil.Process(pid), []
        while self.running():
            memory.append(process.memory_info().rss / 2**20)
            time.sleep(1)
        for thread in threads:
            thread.join()
        return memory

    def row(self, kind: str) -> dict[str, float | str]:
        seconds = self.seconds[kind]
        answered, refused, lost = len(seconds), self.refused[kind], self.lost[kind]
        told = {"kind": kind, "clients": KINDS[kind], "answered": answered, "refused": refused, "lost": lost}
        if not seconds:
            return told
        return (
            told
            | {f"p{p}": round(float(np.percentile(seconds, p)), 4) for p in (50, 95, 99)}
            | {"most": round(max(seconds), 4)}
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    task = load_task("certainty=halueval", limit=LIMIT)
    result = moescope.exit("dense-tiny", [task], moescope.ExitSettings(timed_texts=8))
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryFile("w+") as log:
        result.save(Path(name), figures=False, overwrite=True)
        with server(Path(name), log=log) as (address, pid):
            load = Load(address, [example.text for example in task.examples], arguments.seconds)
            memory = load.run(pid)
        log.seek(0)
        said = len(log.read())
    rows = [load.row(kind) for kind in KINDS]
    for row in rows:
        print(row, flush=True)
    counted = memory[int(WARM) :]
    third = max(1, len(counted) // 3)
    told = {
        "seconds": arguments.seconds,
        "rows": rows,
        "first_token": {f"p{p}": round(float(np.percentile(load.first, p)), 4) for p in (50, 95, 99)} if load.first else None,
        "memory_mib": {
            "at_first": round(memory[0]),
            "first_third": round(max(counted[:third])),
            "last_third": round(max(counted[-third:])),
            "each_second": [round(m) for m in memory],
        },
        "log_bytes": said,
        "load_average": [round(n, 1) for n in os.getloadavg()],
    }
    print({key: value for key, value in told.items() if key != "rows"})
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps({"machine": describe("fastapi", "uvicorn"), **told}, indent=1) + "\n")


if __name__ == "__main__":
    main()
