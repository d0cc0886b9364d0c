"""What answering together is worth: requests to `moescope serve` on this machine, one at a time and many at once.

    python benchmarks/serve.py                    # dense-tiny, 200 requests of one text: under two minutes

Writes benchmarks/results/serve.json. Two early-exit classifiers are made first, one that needs a single layer (certainty) and
one that needs nearly all (sentiment); then two servers are started, one as it is, and one that puts a single text in a batch
(`--max-texts 1`). No text asked about has been fitted on. Ways are taken in turns and compared within a turn; the library's own
times stand beside them.
"""

from __future__ import annotations

import argparse
import http.client
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from threading import local
from typing import IO
from urllib.parse import urlsplit

import moescope
from machine import describe, interleaved
from moescope.runtime.exit.classifier import ExitClassifier
from moescope.runtime.exit.store import load_exit
from moescope.study.rows import calibrated
from moescope.tasks import load_task

Row = dict[str, float | str]
RESULT = Path(__file__).parent / "results" / "serve.json"
TASKS, LIMIT = ("certainty=halueval", "sentiment=uci-sentiment"), 600


@contextmanager
def server(folder: Path, *options: str, log: IO[str] | None = None) -> Iterator[tuple[str, int]]:
    """Its address and its process; it is stopped on the way out."""
    command = [sys.executable, "-m", "moescope", "serve", "dense-tiny", "--exit", str(folder), "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split()[1], process.pid
    finally:
        process.terminate()
        process.wait()


class Client:
    """One kept connection for each thread."""

    def __init__(self, address: str, task: str) -> None:
        self._address, self._task, self._own = urlsplit(address).netloc, task, local()

    def ask(self, text: str) -> int:
        """Texts that shared the pass."""
        if not hasattr(self._own, "connection"):
            self._own.connection = http.client.HTTPConnection(self._address, timeout=60)
        body = json.dumps({"texts": [text], "task": self._task})
        self._own.connection.request("POST", "/v1/classify", body, {"content-type": "application/json"})
        answer = json.loads(self._own.connection.getresponse().read())
        return int(answer["answers"][0]["texts_in_batch"])


def ask_all(address: str, task: str, texts: Sequence[str], at_once: int) -> float:
    """Texts that shared a pass, on average; ``at_once`` clients, each of which waits for its answer before it asks again."""
    client = Client(address, task)
    with ThreadPoolExecutor(at_once) as pool:
        return sum(pool.map(client.ask, texts)) / len(texts)


def one_by_one(classifier: ExitClassifier, texts: Sequence[str]) -> float:
    for text in texts:
        classifier.run([text])
    return 1.0


def all_together(classifier: ExitClassifier, texts: Sequence[str]) -> float:
    classifier.run(texts)
    return float(len(texts))


def compare(classifier: ExitClassifier, texts: Sequence[str], together: str, singly: str, n: int, repeats: int) -> list[Row]:
    task = classifier.task
    ways: dict[str, Callable[[], float]] = {
        "server, 1 client": lambda: ask_all(together, task, texts, 1),
        f"server, {n} clients": lambda: ask_all(together, task, texts, n),
        f"server, {n} clients, one text a batch": lambda: ask_all(singly, task, texts, n),
        "library, one text a call": lambda: one_by_one(classifier, texts),
        "library, all texts in one call": lambda: all_together(classifier, texts),
    }
    shared = {way: run() for way, run in ways.items()}  # it warms up too
    seconds = interleaved(ways, repeats)
    first, layers = next(iter(ways)), float(classifier.run(texts).depth.mean())
    rows: list[Row] = []
    for way in ways:
        gain = median(a / b for a, b in zip(seconds[first], seconds[way], strict=True))
        speed = {"texts_a_second": len(texts) / median(seconds[way]), "over_first": gain, "texts_in_batch": shared[way]}
        rows.append({"task": task, "layers_run": layers, "way": way, **speed})
        print({key: round(v, 2) if isinstance(v, float) else v for key, v in rows[-1].items()}, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    tasks, n = [load_task(task, limit=LIMIT) for task in TASKS], arguments.clients
    result = moescope.exit("dense-tiny", tasks, moescope.ExitSettings(timed_texts=8))
    rows: list[Row] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        result.save(folder, figures=False)
        found = {task.name: load_exit(folder / "exit" / task.name) for task in tasks}
        together, singly = (stack.enter_context(server(folder, *o))[0] for o in ((), ("--max-texts", "1")))
        for task in tasks:
            held_out = [task.examples[i].text for i in calibrated(task.name, task, 0).judge]
            texts = [held_out[i % len(held_out)] for i in range(arguments.requests)]
            rows += compare(found[task.name], texts, together, singly, n, arguments.repeats)
    told = {"requests": arguments.requests, "clients": n, "rows": rows}
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps({"machine": describe("fastapi", "uvicorn"), **told}, indent=1) + "\n")


if __name__ == "__main__":
    main()
