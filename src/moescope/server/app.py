"""The JSON API and its page, as a FastAPI app."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from importlib import metadata
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from moescope.errors import InputError
from moescope.server.guard import HEADERS, LOOPBACK, Guard, Room, more_headers
from moescope.server.limits import Limits, Refused
from moescope.server.metrics import CONTENT_TYPE, Measured
from moescope.server.page import page_files
from moescope.server.served import Served
from moescope.server.service import OURS, Service
from moescope.server.thread import ModelThread
from moescope.server.wire import ClassifyBody, RouteBody, RowsBody, StreamBody, bounded, events, failures
from moescope.server.writer import Writer

_VERSION = metadata.version("moescope")


def create_app(
    served: Served,
    limits: Limits | None = None,
    *,
    thread: ModelThread | None = None,
    anywhere: bool = False,
    token: str | None = None,
) -> FastAPI:
    """An ASGI app. The model is used by one thread of it, so an app serves from one process.

    Args:
        thread: the thread on which the model was loaded, which makes passes of small models faster; it is closed with the app.
        anywhere: answer whatever name the server is addressed by; by default only those of this machine.
        token: what every request must carry as ``Authorization: Bearer``, but for the page and the sign of life.
    """
    service = Service(served, limits or Limits(), thread or ModelThread())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(title="moescope", version=_VERSION, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.service = service
    for path, (content, kind) in page_files().items():
        app.get(path, include_in_schema=False)(_file(content, kind))

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/v1/health", responses=failures())
    async def health() -> dict[str, str]:
        return {"status": "ok", "model": served.model.name}

    @app.get("/v1/info", responses=failures())
    async def info() -> dict[str, Any]:
        return {"moescope": _VERSION, **served.json(), "limits": dataclasses.asdict(service.limits)}

    @app.post("/v1/classify", responses=failures(400, 404, 422, 500, 503))
    async def classify(body: ClassifyBody) -> dict[str, Any]:
        return {"answers": await service.classify(body.texts, body.task)}

    formats = {c.path: (task, c.template.fields) for task, c in served.classifiers.items() if c.path and c.template}
    for path, (task, _) in formats.items():
        rows = app.post(path, responses=failures(400, 422, 500, 503), summary=f"Classify rows of {task}")
        rows(_rows(service, task))

    @app.get("/v1/card", responses=failures(404, 422))
    async def card(at: str) -> dict[str, Any]:
        return service.card(at)

    @app.post("/v1/route", responses=failures(400, 404, 422, 500, 503))
    async def route(body: RouteBody) -> dict[str, Any]:
        return await service.route(body.texts)

    @app.post("/v1/stream", response_class=StreamingResponse, responses=events() | failures(400, 409, 422, 500, 503))
    async def stream(body: StreamBody) -> StreamingResponse:
        return _Events(service, await service.writer(body))

    described = app.openapi
    app.openapi = lambda: bounded(  # type: ignore[method-assign]
        described(),
        service.limits,
        token is not None,
        {path: fields for path, (_, fields) in formats.items()},
        list(served.cards),
    )
    paths = frozenset(route.path for route in app.routes if hasattr(route, "path"))
    room = Room()
    service.metrics.gauge("moescope_large_bodies_bytes", "Held of large requests.", lambda: room.held)
    app.add_middleware(Guard, limits=service.limits, room=room, hosts=None if anywhere else LOOPBACK, token=token)
    app.add_middleware(Measured, metrics=service.metrics, paths=paths)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(InputError, _refused)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _ours)
    return app


def _file(content: bytes, kind: str) -> Callable[[], Awaitable[Response]]:
    async def answer() -> Response:
        return Response(content, media_type=kind, headers={"cache-control": "no-cache"})

    return answer


def _rows(service: Service, task: str) -> Callable[[RowsBody], Awaitable[dict[str, Any]]]:
    async def classify_rows(body: RowsBody) -> dict[str, Any]:
        return await service.classify_rows(task, body.rows)

    return classify_rows


class _Events(StreamingResponse):
    """However it ends, and though it be before it began, the writer's place is free after it."""

    def __init__(self, service: Service, writer: Writer) -> None:
        super().__init__(service.events(writer), media_type="text/event-stream", headers={"cache-control": "no-store"})
        self._service, self._writer = service, writer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._service.free(self._writer)


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
    return _error(f"{request.method} {request.url.path}: {error.detail}", error.status_code, error.headers)


async def _ours(_: Request, error: Exception) -> JSONResponse:
    """Outside of the guard, which gives its headers to every other answer."""
    return _error(OURS, 500, {name.decode(): value.decode() for name, value in HEADERS})


def _error(message: str, status: int, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": " ".join(message.split())}, status, {**more_headers(status), **(headers or {})})
