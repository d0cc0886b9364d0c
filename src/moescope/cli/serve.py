"""The command that serves a model with what its studies have left behind."""

from __future__ import annotations

import os
import re
import signal
import sys
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from moescope.cli.generate import translated
from moescope.errors import InputError

_OPTIONS = {
    "exits": "--exit",
    "route": "--route",
    "circuits": "--circuits",
    "atlas": "--atlas",
    "host": "--host",
    "port": "--port",
}
_OPTIONS |= {"chat": "--chat", "texts": "--max-texts", "characters": "--max-characters", "new_tokens": "--max-new-tokens"}
_OPTIONS |= {"streams": "--max-streams", "connections": "--max-connections", "grace_seconds": "--grace"}
_TOKEN = "MOESCOPE_TOKEN"


def serve(
    model: str,
    /,
    *,
    exit_: Annotated[
        list[Path] | None,
        Parameter(name="--exit", negative="", help="Result of moescope exit, or one classifier in it; repeat for more."),
    ] = None,
    route: Annotated[Path | None, Parameter(help="Result of moescope route; made with --act, it classifies too.")] = None,
    circuits: Annotated[Path | None, Parameter(help="Result of moescope circuits, whose neurons are traced.")] = None,
    atlas: Annotated[Path | None, Parameter(help="Result of moescope atlas, whose cards of the experts are shown.")] = None,
    cards: Annotated[bool, Parameter(help="Read shipped prompts at the start for a card of each expert and neuron.")] = True,
    host: Annotated[str, Parameter(help="Address to serve on; 0.0.0.0 opens it to the network.")] = "127.0.0.1",
    port: Annotated[int, Parameter(help="Port; 0 takes any that is free.")] = 8000,
    token_file: Annotated[
        Path | None, Parameter(help=f"File with the token that requests must carry (default: ${_TOKEN}; without, none).")
    ] = None,
    max_texts: Annotated[int, Parameter(help="Texts of one request, and of one batch.")] = 64,
    max_characters: Annotated[int, Parameter(help="Characters of one text.")] = 20_000,
    max_new_tokens: Annotated[int, Parameter(help="Tokens of one generation.")] = 256,
    max_streams: Annotated[int, Parameter(help="Generations at the same time; more are told to come again.")] = 4,
    max_connections: Annotated[int, Parameter(help="Clients at the same time; more wait.")] = 256,
    grace: Annotated[float, Parameter(help="Seconds that generations have to end after a SIGTERM.")] = 10,
    dtype: Annotated[str, Parameter(help="Precision of the model's weights: auto, fp32, bf16, fp16, int8 or int4.")] = "auto",
    chat: Annotated[bool | None, Parameter(help="Continue texts in the chat template (default: where there is one).")] = None,
    device: Annotated[str | None, Parameter(help="cpu, cuda, cuda:1 … (default: cuda where there is one).")] = None,
    device_map: Annotated[str | None, Parameter(help="Passed to transformers, e.g. auto.")] = None,
) -> None:
    """A live page and a JSON API: classify with early exit, name a text's task, watch which experts or neurons fire.

    MODEL is a Hub id, a local folder or an embedded name. Ctrl-C ends it; SIGTERM lets texts being written end first.
    """
    if any(find_spec(name) is None for name in ("fastapi", "uvicorn", "prometheus_client")):
        raise InputError("moescope serve needs FastAPI, uvicorn and prometheus-client: pip install 'moescope[serve]'")
    from moescope.server import Limits, gather
    from moescope.server.app import create_app
    from moescope.server.guard import LOOPBACK
    from moescope.server.run import Server, address, bind, connections
    from moescope.server.thread import ModelThread

    with ExitStack() as stack:
        try:
            sizes = {"texts": max_texts, "characters": max_characters, "new_tokens": max_new_tokens}
            limits = Limits(**sizes, streams=max_streams, connections=max_connections, grace_seconds=grace)
            token, most = _token(token_file), connections(limits)
            opened = stack.enter_context(bind(host, port))
            thread = ModelThread()
            options: dict[str, Any] = {"chat": chat, "dtype": dtype, "device": device, "device_map": device_map}
            folders: dict[str, Any] = {"exits": exit_ or (), "route": route, "circuits": circuits, "atlas": atlas}
            served = thread.run(lambda: gather(model, **folders, cards=cards, **options))
        except InputError as error:
            raise translated(error, _OPTIONS) from error
        loopback = host in LOOPBACK
        print(f"{served.model.name}: {address(opened)} (Ctrl-C ends it)", flush=True)
        if not loopback and token is None:
            print(
                "warning: anyone who can reach this address can use the model; --token-file asks for a token", file=sys.stderr
            )
        server = Server(create_app(served, limits, thread=thread, anywhere=not loopback, token=token), opened, most)
        server.run()
        thread.close()
        print("stopped", file=sys.stderr)
        if server.signal == signal.SIGTERM:
            sys.exit(128 + signal.SIGTERM)


def _token(file: Path | None) -> str | None:
    """That of the file or of the environment.

    Raises:
        InputError: the file cannot be read, or what was found is no token.
    """
    where, said = (f"--token-file: {file}", None) if file is not None else (_TOKEN, os.environ.get(_TOKEN))
    if file is not None:
        try:
            said = file.read_text("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not ASCII"
            raise InputError(f"{where}: no token can be read ({why})") from None
    if said is not None and not re.fullmatch(r"[!-~]{16,512}", said):
        raise InputError(f"{where}: a token is one word of 16 to 512 ASCII characters; make one with openssl rand -hex 32")
    return said
