"""Turned away before anything reads them: requests that are too large, and on a loopback address those meant for elsewhere."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class Guard:
    """ASGI middleware.

    Args:
        body: largest body of a request, in bytes.
        hosts: names by which the server may be addressed; None: any. A web page elsewhere can make its own name point to
            127.0.0.1 and so read what a server there answers (DNS rebinding); its requests carry that name.
    """

    def __init__(self, app: App, body: int, hosts: frozenset[str] | None) -> None:
        self._app, self._body, self._hosts = app, body, hosts

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        host = _name(headers.get("host", ""))
        if self._hosts is not None and host not in self._hosts:
            await _refuse(send, 421, f"this server is for this machine only, not for {host!r}; serve it with --host to open it")
            return
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > self._body:
            await _refuse(send, 413, f"the request is larger than {self._body} bytes; send it in parts")
            return
        if "transfer-encoding" in headers:
            await _refuse(send, 411, "the request does not say how long it is; send a Content-Length")
            return
        await self._app(scope, receive, send)


def _name(host: str) -> str:
    """``[::1]:8000`` -> ``::1``, ``localhost:8000`` -> ``localhost``."""
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]


async def _refuse(send: Send, status: int, message: str) -> None:
    body = json.dumps({"error": message}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
