"""An app on a socket until it is told to stop."""

from __future__ import annotations

import errno
import os
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from moescope.errors import InputError


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


class _Server(uvicorn.Server):
    """Tells the app at once that it is to stop, so that texts being generated end and need not be waited for."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        app: FastAPI = self.config.app  # type: ignore[assignment]
        app.state.service.stopping = True
        super().handle_exit(sig, frame)


def run(app: FastAPI, opened: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM; requests are not logged.

    Raises:
        KeyboardInterrupt: after a SIGINT, when everything has ended.
    """
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=10, server_header=False)
    _Server(config).run(sockets=[opened])
