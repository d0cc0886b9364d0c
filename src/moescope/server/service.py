"""What the routes call: texts to lanes, prompts to writers, and what is counted on the way."""

from __future__ import annotations

import asyncio
import json
import time
import weakref
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import numpy as np

from moescope.capture.encode import Encoded, encode
from moescope.errors import InputError
from moescope.runtime.exit.classifier import ExitClassifier
from moescope.runtime.route.dispatch import Dispatcher
from moescope.runtime.route.watch import name_tasks
from moescope.server.edits import Edits, edits_of
from moescope.server.lane import LARGE, Lane
from moescope.server.limits import Limits, Refused
from moescope.server.metrics import Metrics
from moescope.server.pauses import Pauses
from moescope.server.served import Served
from moescope.server.thread import ModelThread, Turn
from moescope.server.wire import StreamBody
from moescope.server.writer import Sampling, Writer

WRITING = 0.5
"""share of a busy model that generations get at least, all together"""
OURS = "an error inside moescope; the server's own output says which"


class Service:
    """One model's; used by one event loop."""

    def __init__(self, served: Served, limits: Limits, thread: ModelThread) -> None:
        self.served, self.limits, self.metrics = served, limits, Metrics()
        self.stopping = False
        self._thread = thread
        self._starting = 0
        self._writers: weakref.WeakSet[Writer] = weakref.WeakSet()  # a stream that is never begun is never ended either
        thread.pausing = Pauses(served.model, thread).attached
        lanes = len(served.classifiers) + (served.router is not None) * (2 if served.router and served.router.acts else 1)
        room: dict[str, Any] = {"texts": limits.texts, "waiting": limits.waiting, "share": LARGE / max(1, lanes)}
        self._classify = {
            task: Lane(self._thread, partial(self._read, one.exit), partial(self._classified, task, one.exit), **room)
            for task, one in served.classifiers.items()
        }
        self._route = Lane(self._thread, self._read_to_name, self._named, **room) if served.router else None
        acts = served.router.acts if served.router else None
        self._dispatch = Lane(self._thread, partial(_cut, acts), partial(self._dispatched, acts), **room) if acts else None
        queues = [*self._classify.values(), *(lane for lane in (self._route, self._dispatch) if lane)]
        self.metrics.gauge("moescope_waiting", "Requests for a classifier or the router.", lambda: sum(map(len, queues)))
        self.metrics.gauge("moescope_generating", "Texts that are being written.", lambda: self.generating)

    def stop(self) -> None:
        """Generations end at their next token."""
        self.stopping = True

    def close(self) -> None:
        self.stop()
        self._thread.close()

    async def classify(self, texts: list[str], task: str | None) -> list[dict[str, Any]]:
        """One answer for each classifier, or that of ``task``; and without a task that of a router that acts, the first."""
        self.limits.check(texts)
        if not self._classify and self._dispatch is None:
            raise Refused("no classifier is served; start moescope serve with --exit DIR", 404)
        if task is not None and task not in self._classify:
            there = ", ".join(self._classify) or "none by itself: leave task out, and the router finds it"
            raise Refused(f"task: {task[:80]!r} has no classifier; there is {there}", 404)
        asked = [self._by(name, texts) for name in ([task] if task is not None else self._classify)]
        routed = [self._by_routing(texts)] if task is None and self._dispatch is not None else []
        return await asyncio.gather(*routed, *asked)

    async def _by_routing(self, texts: list[str]) -> dict[str, Any]:
        assert self._dispatch is not None
        began = time.perf_counter()
        answered = await self._dispatch.ask(texts)
        return {
            "task": None,
            "results": answered.results,
            "recommendation": None,
            "milliseconds": _milliseconds(began),
            "texts_in_batch": answered.together,
            "notes": answered.notes,
        }

    async def classify_rows(self, task: str, rows: list[dict[str, str]]) -> dict[str, Any]:
        """The answer of one classifier to rows of fields, put into the template that it was fitted with."""
        template = self.served.classifiers[task].template
        assert template is not None
        if not rows:
            raise Refused("rows: none was given")
        if len(rows) > self.limits.texts:
            self.limits.check([""] * len(rows), "rows")  # which says so, before anything is made of them
        for number, row in enumerate(rows):
            if set(row) != set(template.fields):
                wrong = next(iter({*row} ^ {*template.fields}))[:40]
                problem = f"field {wrong!r} is {'not of the task' if wrong in row else 'missing'}"
                raise Refused(f"rows, number {number}: {problem}; its fields are {', '.join(template.fields)}", 422)
            empty = next((name for name, text in row.items() if not text.strip()), None)
            if empty is not None:
                raise Refused(f"rows, number {number}: {empty} is empty; fill it in")
        texts = [template.format.format(**row) for row in rows]
        self.limits.check(texts, "rows")
        return await self._by(task, texts)

    async def _by(self, task: str, texts: list[str]) -> dict[str, Any]:
        began = time.perf_counter()
        answered = await self._classify[task].ask(texts)
        recommendation = self.served.classifiers[task].recommendation
        return {
            "task": task,
            "results": answered.results,
            "recommendation": recommendation["claim"] if recommendation else None,
            "milliseconds": _milliseconds(began),
            "texts_in_batch": answered.together,
            "notes": answered.notes,
        }

    async def route(self, texts: list[str]) -> dict[str, Any]:
        """The task of each text, or that it is unknown."""
        self.limits.check(texts)
        if self._route is None:
            raise Refused("no router is served; start moescope serve with --route DIR", 404)
        began = time.perf_counter()
        answered = await self._route.ask(texts)
        return {
            "results": answered.results,
            "milliseconds": _milliseconds(began),
            "texts_in_batch": answered.together,
            "notes": answered.notes,
        }

    async def writer(self, body: StreamBody) -> Writer:
        """One of ``limits.streams``, until :meth:`events` of it has ended or nobody holds it any more.

        Raises:
            Refused: the model does not generate, a limit is passed, or too many generate already.
        """
        if self.served.silent:
            raise Refused(f"{self.served.silent}; /v1/classify and /v1/route are for it", 409)
        self.limits.check([body.prompt], "prompt")
        edits = self._edits(body)
        new, most = body.max_new_tokens, self.limits.new_tokens
        if "max_new_tokens" not in body.model_fields_set:
            new = min(new, most)
        if new > most:
            raise Refused(f"max_new_tokens: {new}, but the limit is {most}; ask for fewer", 413)
        if self.generating >= self.limits.streams:
            raise Refused(f"{self.generating} texts are being generated already; try again in a moment", 503)
        sampling = Sampling(new_tokens=new, temperature=body.temperature, seed=body.seed)
        self._starting += 1  # before anything is awaited, so that no other takes the same place
        try:
            writer = await self._thread.do(lambda: Writer(self.served, body.prompt, sampling, edits, chat=body.chat))
            self._writers.add(writer)
        finally:
            self._starting -= 1
        return writer

    def _edits(self, body: StreamBody) -> Edits:
        if len(body.edits) > self.limits.edits:
            raise Refused(f"edits: {len(body.edits)} in one request, but the limit is {self.limits.edits}; give fewer", 413)
        return edits_of(self.served.model, body.edits, self.served.circuits)

    def card(self, at: str) -> dict[str, Any]:
        """What is known of an expert or a circuit neuron."""
        card = self.served.cards.get(at)
        if card is None:
            few = "an expert such as 2:5, or a neuron of a circuit that is served" if self.served.cards else "none is served"
            raise Refused(f"at: {at[:40]!r} has no card; {few}", 404)
        return card

    @property
    def generating(self) -> int:
        """Texts, each from the moment that it is let in."""
        return self._starting + len(self._writers)

    def free(self, writer: Writer) -> None:
        """Its place is another's."""
        self._writers.discard(writer)

    async def events(self, writer: Writer) -> AsyncIterator[str]:
        """Server-sent events: ``prompt``, ``token`` …, then ``done`` or ``error``. A client that goes away cancels them."""
        began, kind, turn = time.perf_counter(), "prompt", Turn()
        try:
            while writer.over is None and not self.stopping:
                share = WRITING / max(1, self.generating)
                step = partial(turn.timed, writer.step, share, self._thread.clock)
                said = await self._thread.do(step, turn.due, share if writer.long else None)
                if said is None:  # a long prompt is read in parts
                    continue
                if kind == "prompt":
                    self.metrics.tokens.labels("read").inc(said["read"])
                else:
                    self.metrics.tokens.labels("written").inc()
                yield _event(kind, said)
                kind = "token"
            seconds = round(time.perf_counter() - began, 4)
            yield _event("done", {"reason": writer.over or "stopped", "new_tokens": writer.written, "seconds": seconds})
        except InputError as error:
            yield _event("error", {"error": str(error)})
        except Exception:
            yield _event("error", {"error": OURS})
            raise  # to the server's output
        finally:
            self.free(writer)

    def _read(self, classifier: ExitClassifier, texts: list[str], first: int) -> Encoded:
        return encode(classifier.model, texts, max_tokens=classifier.max_tokens, first_row=first)

    def _classified(self, task: str, classifier: ExitClassifier, encoded: Encoded) -> list[dict[str, Any]]:
        probability, depth = classifier.run(encoded)
        _check_finite(probability, classifier)
        self.metrics.tokens.labels("read").inc(int(encoded.lengths.sum()))
        for layers, texts in zip(*np.unique(depth, return_counts=True), strict=True):
            self.metrics.exits.labels(task, int(layers)).inc(int(texts))
        return [_said(classifier, *row) for row in zip(probability, depth, encoded.lengths, strict=True)]

    def _dispatched(self, dispatcher: Dispatcher, encoded: Encoded) -> list[dict[str, Any]]:
        """One pass names each text's task and classifies it."""
        found = dispatcher.run(encoded)
        classifiers = {one.task: one for one in dispatcher.classifiers}
        results = []
        for named, row, layers, tokens in zip(*found, encoded.lengths, strict=True):
            classifier = classifiers[named.nearest]
            _check_finite(row, classifier)
            self.metrics.exits.labels(named.nearest, int(layers)).inc()
            whose = {"task": named.task, "nearest": named.nearest, "p": named.p}
            results.append(whose | _said(classifier, row, layers, tokens))
        self.metrics.tokens.labels("read").inc(int(encoded.lengths.sum()))
        return results

    def _read_to_name(self, texts: list[str], first: int) -> Encoded:
        assert self.served.router is not None
        encoded = encode(self.served.router.router.read_by(self.served.model), texts, first_row=first)
        short = np.flatnonzero(encoded.lengths < 2)
        if len(short):
            raise Refused(f"text {first + short[0]}: one token only, too short to name its task")
        return encoded

    def _named(self, encoded: Encoded) -> list[dict[str, Any]]:
        assert self.served.router is not None
        named = name_tasks(self.served.router.router, self.served.model, encoded)
        self.metrics.tokens.labels("read").inc(int(encoded.lengths.sum()))
        return [{"task": n.task, "nearest": n.nearest, "p": n.p} for n in named]


def _cut(dispatcher: Dispatcher, texts: list[str], first: int) -> Encoded:
    return dispatcher.encode(texts, first_row=first)


def _check_finite(probability: np.ndarray, classifier: ExitClassifier) -> None:
    if not np.isfinite(probability).all():
        raise Refused(f"the model gave a probability that is not a number in {classifier.model.dtype}; serve it in fp32", 500)


def _said(classifier: ExitClassifier, probability: np.ndarray, layers: int, tokens: int) -> dict[str, Any]:
    return {
        "label": classifier.classes[int(probability.argmax())],
        "probabilities": {name: float(p) for name, p in zip(classifier.classes, probability, strict=True)},
        "depth": int(layers),
        "of": classifier.model.n_layers,
        "tokens": int(tokens),
    }


def _milliseconds(began: float) -> float:
    return round(1e3 * (time.perf_counter() - began), 3)


def _event(kind: str, data: dict[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps(data, allow_nan=False, separators=(',', ':'))}\n\n"
