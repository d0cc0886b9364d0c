"""What the server has done and what it is doing, as Prometheus reads it."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from moescope.server.guard import App, Message, Receive, Send

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Those of one app; the process's own memory, descriptors and time are among them where the system tells."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self.requests = Counter("moescope_requests", "Answered.", ["path", "status"], registry=self._registry)
        self.seconds = Histogram(
            "moescope_request_seconds",
            "From a request's headers to the end of its answer.",
            ["path"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.tokens = Counter("moescope_tokens", "Of texts and prompts, and written.", ["kind"], registry=self._registry)
        self.exits = Counter("moescope_exits", "Texts by the layers run for them.", ["task", "layers"], registry=self._registry)

    def gauge(self, name: str, about: str, value: Callable[[], float]) -> None:
        """``value`` is asked whenever the metrics are."""
        Gauge(name, about, registry=self._registry).set_function(value)

    def text(self) -> bytes:
        return generate_latest(self._registry)


class Measured:
    """ASGI middleware: counts and times requests, those of paths that are not ``paths`` together."""

    def __init__(self, app: App, metrics: Metrics, paths: Collection[str]) -> None:
        self._app, self._metrics, self._paths = app, metrics, paths

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        status = "gone"  # no answer was wanted any more

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        path = scope["path"] if scope["path"] in self._paths else "other"
        try:
            await self._app(scope, receive, noting)
        except Exception:
            status = "500"  # the answer is made further out
            raise
        finally:
            self._metrics.requests.labels(path, status).inc()
            self._metrics.seconds.labels(path).observe(time.perf_counter() - start)
