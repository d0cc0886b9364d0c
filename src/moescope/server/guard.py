"""Turned away before anything reads them: requests too large or too slow, without the token, or meant for elsewhere."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from moescope.server.limits import Limits, Refused

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
OPEN = "/v1/health"
"""needs no token, nor does the page, which asks for it"""
RETRY = "1"
"""seconds after which a client that was refused for lack of room may ask again"""
SMALL = 2**16
"""bytes of a body that needs no room: the server buffers as much of each connection in any case"""
_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = tuple(
    (name.encode(), value.encode())
    for name, value in {
        "content-security-policy": _POLICY,
        "x-frame-options": "DENY",
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cross-origin-resource-policy": "same-origin",
    }.items()
)


class Room:
    """What large bodies take up, all together."""

    held = 0
    """bytes"""


class Guard:
    """ASGI middleware: what is let through has a body that has come whole, and ends when its client goes away.

    Args:
        room: counts what is held.
        hosts: names by which the server may be addressed; None: any. A web page elsewhere can make its own name point to
            127.0.0.1 and so read what a server there answers (DNS rebinding); its requests carry that name.
        token: what a request must carry as ``Authorization: Bearer``; None: nothing.
    """

    def __init__(self, app: App, limits: Limits, room: Room, hosts: frozenset[str] | None, token: str | None = None) -> None:
        self._app, self._limits, self._room, self._hosts, self._token = app, limits, room, hosts, token

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(send)
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        size = 0
        try:
            size = self._admit(scope["path"], headers)
            self._room.held += size
            body = await self._read(receive)
            if body is not None:
                await self._pass(scope, body, receive, answer)
        except Refused as refused:
            await _refuse(answer, refused)
        finally:
            self._room.held -= size

    def _admit(self, path: str, headers: dict[str, str]) -> int:
        """The bytes of room that the request takes."""
        host, limit = _name(headers.get("host", "")), self._limits.body
        if self._hosts is not None and host not in self._hosts:
            raise Refused(f"this server is for this machine only, not for {host!r}; serve it with --host to open it", 421)
        if self._token is not None and path != OPEN and path != "/" and not path.startswith("/page/"):
            scheme, _, given = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._token.encode()):
                raise Refused("the token is missing or wrong; send it as Authorization: Bearer TOKEN", 401)
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()) or len(length) > 18 or int(length) > limit:
            raise Refused(f"the request is larger than {limit} bytes; send it in parts", 413)
        if "transfer-encoding" in headers:
            raise Refused("the request does not say how long it is; send a Content-Length", 411)
        size = int(length) if int(length) > SMALL else 0
        if size > self._limits.bodies * limit - self._room.held:
            raise Refused("other large requests are being answered; try again in a moment", 503)
        return size

    async def _read(self, receive: Receive) -> bytes | None:
        """The whole body; None: the client has gone away."""
        parts = []
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        return None
                    parts.append(message.get("body", b""))
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            raise Refused(
                f"the request was not whole after {self._limits.body_seconds:g} seconds; send it again", 408
            ) from None

    async def _pass(self, scope: Message, body: bytes, receive: Receive, answer: _Answer) -> None:
        gone = asyncio.Event()
        given: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            if given:
                return given.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def listen() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            gone.set()

        del body
        work = asyncio.ensure_future(self._app(scope, replay, answer))
        listener = asyncio.ensure_future(listen())
        try:
            await asyncio.wait({work, listener}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.complete:
                work.cancel()  # of no effect on one that is done
            await asyncio.wait({work})
            if not work.cancelled():
                work.result()  # raises what it has raised
        finally:
            work.cancel()
            listener.cancel()


class _Answer:
    """``send`` with our headers; ``complete`` once everything has been sent."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.complete = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *HEADERS]
        await self._send(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.complete = True


def _name(host: str) -> str:
    """``[::1]:8000`` -> ``::1``, ``localhost:8000`` -> ``localhost``."""
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]


def more_headers(status: int) -> dict[str, str]:
    """What a refusal says beside its line."""
    if status == 503:
        return {"retry-after": RETRY}
    return {"www-authenticate": "Bearer"} if status == 401 else {}


async def _refuse(send: Send, refused: Refused) -> None:
    body = json.dumps({"error": str(refused)}).encode()
    said = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
    headers = [(name.encode(), value.encode()) for name, value in (said | more_headers(refused.status)).items()]
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
