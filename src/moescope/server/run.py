"""An app on a socket until it is told to stop: as many connections as there is room for, none that keeps still."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from math import ceil
from types import FrameType
from typing import Any

import h11
import psutil
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from moescope.errors import InputError
from moescope.server.limits import Limits
from moescope.server.service import Service

_KEPT = 32
"""descriptors that are left to the process for what it opens beside connections"""
_LOG = logging.getLogger("uvicorn.error")


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to the address, so that one in use is known before a model is loaded. Port 0 takes any free one.

    Raises:
        InputError: the port is in use or not allowed, or the host is not an address of this machine.
    """
    if not 0 <= port < 2**16:
        raise InputError(f"{port} is not between 0 and 65535", "port")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (socket.gaierror, UnicodeError):
        raise InputError(f"{host!r} is not an address; use 127.0.0.1, or 0.0.0.0 for all of this machine", "host") from None
    opened = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # a port that has just been left is free again; elsewhere the option would let two share one
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(128)  # bound alone, a second server could bind it too
    except OSError as error:
        opened.close()
        if error.errno == errno.EADDRINUSE:
            raise InputError(f"{port} is in use; give another, or 0 for any that is free", "port") from None
        if error.errno == errno.EADDRNOTAVAIL:
            raise InputError(f"{host} is not an address of this machine; use 127.0.0.1", "host") from None
        raise InputError(f"{host}:{port} cannot be used ({error.strerror}); give another, such as 8000", "port") from None
    return opened


def address(opened: socket.socket) -> str:
    """``http://127.0.0.1:8000/``"""
    host, port = opened.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def connections(limits: Limits) -> int:
    """As many as are wanted and the process may open.

    Raises:
        InputError: the process may open hardly any file.
    """
    if os.name != "posix":
        return limits.connections
    import resource

    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    room = limits.connections if most == resource.RLIM_INFINITY else most - psutil.Process().num_fds() - _KEPT
    if room < 1:
        raise InputError(f"this process may open {most} files, too few for a server; allow more (ulimit -n 1024)")
    return min(room, limits.connections)


class _Connection(H11Protocol):
    """uvicorn's, which of itself waits for ever for a request to come and for an answer to be taken."""

    def __init__(self, *args: Any, limits: Limits, closed: Callable[[], None]) -> None:
        super().__init__(*args)
        self._limits, self._closed = limits, closed
        self._late: asyncio.TimerHandle | None = None
        self._stuck: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self._late, self._stuck):
            if timer is not None:
                timer.cancel()
        self._closed()

    def handle_events(self) -> None:
        super().handle_events()
        self._expect()

    def _expect(self) -> None:
        """A request's headers have so long; of its body the app takes care."""
        if self.conn.their_state is not h11.IDLE:
            if self._late is not None:
                self._late.cancel()
                self._late = None
        elif self._late is None:
            self._late = self.loop.call_later(self._limits.header_seconds, self._too_late)

    def _too_late(self) -> None:
        if self.conn.trailing_data[0]:
            self._refuse(408, f"no whole request came within {self._limits.header_seconds:g} seconds")
        else:
            self.transport.close()
        self._abort_later()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "this is not HTTP/1.1, or its headers are too long")

    def _refuse(self, status: int, message: str) -> None:
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # an answer is on its way already
            self.transport.abort()
            return
        headers = [("content-type", "application/json"), ("connection", "close")]
        body = json.dumps({"error": message}).encode()
        for event in (h11.Response(status_code=status, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._abort_later()

    def _abort_later(self) -> None:
        """A client that does not take what is written keeps neither its buffers nor a connection that is to close."""
        if self._stuck is None:
            self._stuck = self.loop.call_later(self._limits.write_seconds, self.transport.abort)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._abort_later()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stuck is not None and not self.transport.is_closing():
            self._stuck.cancel()
            self._stuck = None


class Server(uvicorn.Server):
    """Serves an app of ``create_app``; requests are not logged.

    It takes connections itself: asyncio's own way of it takes any number, and logs thousands of lines a second where the
    process may open no more files.

    Args:
        most: connections at the same time, as :func:`connections` says; None: as many as the app's limits allow.
    """

    def __init__(self, app: FastAPI, opened: socket.socket, most: int | None = None) -> None:
        service: Service = app.state.service
        seconds = service.limits.grace_seconds
        options: dict[str, Any] = {"log_level": "error", "access_log": False, "server_header": False, "ws": "none"}
        super().__init__(uvicorn.Config(app, **options, timeout_graceful_shutdown=ceil(seconds) + 5))
        self._service, self._opened = service, opened
        self._room = asyncio.Semaphore(most or service.limits.connections)
        self.signal: int | None = None
        """what has told it to stop"""
        service.metrics.gauge("moescope_connections", "Open.", lambda: len(self.server_state.connections))

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=[])
        self._opened.setblocking(False)
        self._accepting = asyncio.create_task(self._accept())

    async def _accept(self) -> None:
        loop, said = asyncio.get_running_loop(), -60.0

        def connection() -> _Connection:
            args = (self.config, self.server_state, self.lifespan.state)
            return _Connection(*args, limits=self._service.limits, closed=self._room.release)

        while True:
            await self._room.acquire()
            taken = None
            try:
                taken, _ = await loop.sock_accept(self._opened)
                await loop.connect_accepted_socket(connection, taken)
            except OSError as error:
                self._room.release()
                if taken is not None:
                    taken.close()
                if time.monotonic() - said >= 60:
                    _LOG.error("no connection can be taken: %s", error.strerror)
                    said = time.monotonic()
                await asyncio.sleep(0.2)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGINT: generations end at their next token. SIGTERM: they have ``grace_seconds`` to end by themselves. At a second
        signal nothing is waited for.
        """
        if self.should_exit:
            self.force_exit = True
        if self.should_exit or sig == signal.SIGINT:
            self._service.stopping = True
        self.signal = self.signal or sig
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._accepting.cancel()
        with suppress(asyncio.CancelledError):
            await self._accepting
        self._opened.close()
        asyncio.get_running_loop().call_later(self._service.limits.grace_seconds, self._service.stop)
        await super().shutdown()
