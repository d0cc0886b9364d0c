"""The JSON API and its page, as a FastAPI app."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from importlib import metadata
from typing import Any
from weakref import WeakSet

import numpy as np
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from moescope.capture.encode import Encoded, encode
from moescope.errors import InputError
from moescope.report.format import page_source
from moescope.runtime.exit.classifier import ExitClassifier
from moescope.runtime.route.watch import name_tasks
from moescope.server.guard import LOOPBACK, Guard
from moescope.server.lane import Lane, ModelThread
from moescope.server.limits import Limits, Refused
from moescope.server.served import Served
from moescope.server.writer import Sampling, Writer

_VERSION = metadata.version("moescope")
_OURS = "an error inside moescope; the server's own output says which"


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ClassifyBody(_Body):
    texts: list[str]
    task: str | None = None
    """None: by every classifier"""


class RouteBody(_Body):
    texts: list[str]


class StreamBody(_Body):
    prompt: str
    max_new_tokens: int = Field(64, ge=1)
    temperature: float = Field(0.0, ge=0, le=100)
    seed: int = Field(0, ge=0, lt=2**63)


def create_app(
    served: Served, limits: Limits | None = None, *, thread: ModelThread | None = None, anywhere: bool = False
) -> FastAPI:
    """An ASGI app. The model is used by one thread of it, so an app serves from one process.

    Args:
        thread: the thread on which the model was loaded, which makes passes of small models faster; it is closed with the app.
        anywhere: answer whatever name the server is addressed by; by default only those of this machine.
    """
    service = Service(served, limits or Limits(), thread or ModelThread())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(title="moescope", version=_VERSION, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.service = service
    app.add_middleware(Guard, body=service.limits.body, hosts=None if anywhere else LOOPBACK)
    page = page_source("moescope.server")

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse(page)

    @app.get("/v1/health")
    async def health() -> dict[str, str]:
        return {"status": "ok", "model": served.model.name}

    @app.get("/v1/info")
    async def info() -> dict[str, Any]:
        return {"moescope": _VERSION, **served.json(), "limits": dataclasses.asdict(service.limits)}

    @app.post("/v1/classify")
    async def classify(body: ClassifyBody) -> dict[str, Any]:
        return {"answers": await service.classify(body.texts, body.task)}

    @app.post("/v1/route")
    async def route(body: RouteBody) -> dict[str, Any]:
        return await service.route(body.texts)

    @app.post("/v1/stream", response_class=StreamingResponse)
    async def stream(body: StreamBody) -> StreamingResponse:
        events = service.events(await service.writer(body))
        return StreamingResponse(events, media_type="text/event-stream", headers={"cache-control": "no-store"})

    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(InputError, _refused)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _ours)
    return app


class Service:
    """What the routes call."""

    def __init__(self, served: Served, limits: Limits, thread: ModelThread) -> None:
        self.served, self.limits = served, limits
        self.stopping = False
        self._thread = thread
        room = {"texts": limits.texts, "waiting": limits.waiting}
        self._classify = {
            task: Lane(self._thread, partial(self._read, one.exit), partial(_classified, one.exit), **room)
            for task, one in served.classifiers.items()
        }
        self._route = Lane(self._thread, self._read_to_name, self._named, **room) if served.router else None
        self._writers: WeakSet[Writer] = WeakSet()  # weak, since a stream that is never begun is never ended either

    def close(self) -> None:
        """Generations end at their next token."""
        self.stopping = True
        self._thread.close()

    async def classify(self, texts: list[str], task: str | None) -> list[dict[str, Any]]:
        """One answer for each classifier, or that of ``task``."""
        self.limits.check(texts)
        if not self._classify:
            raise Refused("no classifier is served; start moescope serve with --exit DIR", 404)
        if task is not None and task not in self._classify:
            raise Refused(f"task: {task[:80]!r} has no classifier; there is {', '.join(self._classify)}", 404)
        return await asyncio.gather(*(self._by(name, texts) for name in ([task] if task is not None else self._classify)))

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
        """Raises Refused where the model does not generate, the limits are passed, or too many generate already."""
        if self.served.silent:
            raise Refused(f"{self.served.silent}; /v1/classify and /v1/route are for it", 409)
        self.limits.check([body.prompt], "prompt")
        if body.max_new_tokens > self.limits.new_tokens:
            raise Refused(
                f"max_new_tokens: {body.max_new_tokens}, but the limit is {self.limits.new_tokens}; ask for fewer", 413
            )
        if len(self._writers) >= self.limits.streams:
            raise Refused(f"{len(self._writers)} texts are being generated already; try again in a moment", 503)
        sampling = Sampling(new_tokens=body.max_new_tokens, temperature=body.temperature, seed=body.seed)
        writer = await self._thread.do(lambda: Writer(self.served, body.prompt, sampling))
        self._writers.add(writer)
        return writer

    async def events(self, writer: Writer) -> AsyncIterator[str]:
        """Server-sent events: ``prompt``, ``token`` …, then ``done`` or ``error``. A client that goes away cancels them."""
        began, kind = time.perf_counter(), "prompt"
        try:
            while writer.over is None and not self.stopping:
                yield _event(kind, await self._thread.do(writer.step))
                kind = "token"
            seconds = round(time.perf_counter() - began, 4)
            yield _event("done", {"reason": writer.over or "stopped", "new_tokens": writer.written, "seconds": seconds})
        except InputError as error:
            yield _event("error", {"error": str(error)})
        except Exception:
            yield _event("error", {"error": _OURS})
            raise  # to the server's output
        finally:
            self._writers.discard(writer)

    def _read(self, classifier: ExitClassifier, texts: list[str]) -> Encoded:
        return encode(classifier.model, texts, max_tokens=classifier.max_tokens)

    def _read_to_name(self, texts: list[str]) -> Encoded:
        assert self.served.router is not None
        encoded = encode(self.served.router.router.read_by(self.served.model), texts)
        short = np.flatnonzero(encoded.lengths < 2)
        if len(short):
            raise Refused(f"text {short[0]}: one token only, too short to name its task")
        return encoded

    def _named(self, encoded: Encoded) -> list[dict[str, Any]]:
        assert self.served.router is not None
        named = name_tasks(self.served.router.router, self.served.model, encoded)
        return [{"task": n.task, "nearest": n.nearest, "p": n.p} for n in named]


def _classified(classifier: ExitClassifier, encoded: Encoded) -> list[dict[str, Any]]:
    probability, depth = classifier.run(encoded)
    if not np.isfinite(probability).all():
        raise Refused(f"the model gave a probability that is not a number in {classifier.model.dtype}; serve it in fp32", 500)
    return [
        {
            "label": classifier.classes[int(row.argmax())],
            "probabilities": {name: float(p) for name, p in zip(classifier.classes, row, strict=True)},
            "depth": int(layers),
            "of": classifier.model.n_layers,
            "tokens": int(tokens),
        }
        for row, layers, tokens in zip(probability, depth, encoded.lengths, strict=True)
    ]


def _milliseconds(began: float) -> float:
    return round(1e3 * (time.perf_counter() - began), 3)


def _event(kind: str, data: dict[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps(data, allow_nan=False, separators=(',', ':'))}\n\n"


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    """The first fault of a body, without the body."""
    assert isinstance(error, RequestValidationError)
    fault = error.errors()[0]
    where = ".".join(str(part) for part in fault["loc"] if part != "body") or "body"
    if fault["type"] == "json_invalid":
        return _error(f"the body is not JSON: {fault['ctx']['error']}", 422)
    return _error(f"{where}: {fault['msg']}", 422)


async def _refused(_: Request, error: Exception) -> JSONResponse:
    return _error(str(error), error.status if isinstance(error, Refused) else 400)


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return _error(f"{request.method} {request.url.path}: {error.detail}", error.status_code)


async def _ours(_: Request, error: Exception) -> JSONResponse:
    return _error(_OURS, 500)


def _error(message: str, status: int) -> JSONResponse:
    return JSONResponse({"error": message}, status)
