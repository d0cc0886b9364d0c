"""What requests and answers look like."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from moescope.server.limits import Limits


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


class Failure(BaseModel):
    """Every answer that is not 200."""

    model_config = ConfigDict(extra="forbid")

    error: str = Field(pattern=r"^[^\n]+$", description="One line: what is wrong, and the mend.")


_SAID = {
    400: "A text is empty, too short to name its task, or the body cannot be read.",
    401: "The token is missing or wrong (where the server was started with one).",
    404: "Nothing of the kind is served.",
    405: "The path takes another method.",
    408: "The request did not come whole in time.",
    409: "The model does not write text.",
    411: "The request does not say how long it is.",
    413: "More than the server's limits allow.",
    421: "The request is meant for another host.",
    422: "The body does not have the form that is asked for.",
    500: "A fault of the server, or of the model in its precision.",
    503: "No room at the moment; Retry-After says when to ask again.",
}
_ALWAYS = (401, 405, 408, 411, 413, 421)


def failures(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For a route of FastAPI: these, and those that any request can meet."""
    told: dict[int | str, dict[str, Any]] = {
        s: {"model": Failure, "description": _SAID[s]} for s in sorted({*statuses, *_ALWAYS})
    }
    retry = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
    if 503 in told:
        told[503]["headers"] = retry
    return told


def bounded(schema: dict[str, Any], limits: Limits) -> dict[str, Any]:
    """The OpenAPI schema with what these limits allow."""
    parts = schema["components"]["schemas"]
    for body in ("ClassifyBody", "RouteBody"):
        text = {"type": "string", "minLength": 1, "maxLength": limits.characters}
        parts[body]["properties"]["texts"] |= {"minItems": 1, "maxItems": limits.texts, "items": text}
    parts["StreamBody"]["properties"]["prompt"] |= {"minLength": 1, "maxLength": limits.characters}
    parts["StreamBody"]["properties"]["max_new_tokens"]["maximum"] = limits.new_tokens
    return schema
