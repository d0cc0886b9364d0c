"""What requests and answers look like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from moescope.server.limits import Limits

# JSON knows one kind of number: 3.0 is a whole one
Whole = Annotated[int, BeforeValidator(lambda v: int(v) if isinstance(v, float) and v.is_integer() else v)]


MOST = 100.0
"""largest size of a factor or of what is added to a logit"""
EDITS = 1024
"""so many are read at all, of which the limits allow fewer"""


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ClassifyBody(_Body):
    texts: list[str]
    task: str | None = None
    """None: by every classifier, and by a router that acts"""


class RouteBody(_Body):
    texts: list[str]


class RowsBody(_Body):
    rows: list[dict[str, str]]
    """each with the fields of the task's template"""


class EditBody(_Body):
    at: str = Field(max_length=64)
    """an expert, ``layer:number``, or a neuron, ``kind:layer/index``, both from 0"""
    do: Literal["ban", "force", "boost", "scale", "ablate"]
    by: Annotated[float, Field(ge=-MOST, le=MOST)] | None = None
    """of boost, which adds to the router's logit, and of scale, a factor"""


class StreamBody(_Body):
    prompt: str
    edits: list[EditBody] = Field([], max_length=EDITS)
    chat: bool | None = None
    """whether the prompt is put into the model's chat template; None: as the server was started"""
    max_new_tokens: Whole = Field(64, ge=1)
    """by default fewer where the server allows no more"""
    temperature: float = Field(0.0, ge=0, le=100)
    seed: Whole = Field(0, ge=0, lt=2**53)
    """what every reader of JSON takes for the same number"""


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


def events() -> dict[int | str, dict[str, Any]]:
    """For a route of FastAPI whose answer is server-sent events."""
    event = {"enum": ["prompt", "token", "done", "error"]}
    data = {"type": "string", "contentMediaType": "application/json"}
    one = {"type": "object", "properties": {"event": event, "data": data}, "required": ["event", "data"]}
    return {200: {"description": "Server-sent events.", "content": {"text/event-stream": {"schema": one}}}}


def bounded(
    schema: dict[str, Any], limits: Limits, token: bool, fields: Mapping[str, Sequence[str]], cards: Sequence[str]
) -> dict[str, Any]:
    """The OpenAPI schema with what these limits allow, and that a token is asked for.

    Args:
        fields: path of a classifier that knows its format -> its rows' fields.
        cards: names of the experts and neurons that have a card.
    """
    parts = schema["components"]["schemas"]
    for body in ("ClassifyBody", "RouteBody"):
        text = {"type": "string", "pattern": r"\S", "maxLength": limits.characters}
        parts[body]["properties"]["texts"] |= {"minItems": 1, "maxItems": limits.texts, "items": text}
    asked = parts["StreamBody"]["properties"]
    asked["prompt"] |= {"pattern": r"\S", "maxLength": limits.characters}
    asked["max_new_tokens"] |= {
        "maximum": limits.new_tokens,
        "default": min(asked["max_new_tokens"]["default"], limits.new_tokens),
    }
    asked["edits"]["maxItems"] = limits.edits
    for path, names in fields.items():
        text = {"type": "string", "pattern": r"\S", "maxLength": limits.characters}
        row = {"type": "object", "properties": dict.fromkeys(names, text), "required": [*names], "additionalProperties": False}
        rows = {"type": "array", "items": row, "minItems": 1, "maxItems": limits.texts}
        asks = {"type": "object", "properties": {"rows": rows}, "required": ["rows"], "additionalProperties": False}
        schema["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"] = asks
    if cards:
        schema["paths"]["/v1/card"]["get"]["parameters"][0]["schema"]["enum"] = [*cards]
    if token:
        schema["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        schema["security"] = [{"token": []}]
        schema["paths"]["/v1/health"]["get"]["security"] = []
    return schema
