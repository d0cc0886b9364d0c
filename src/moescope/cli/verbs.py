"""Which commands are verbs, and what each takes beside its settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moescope.cli.generate import Input, Verb, command
from moescope.errors import InputError

MODEL = Input("model", str, "Hub id, local folder or embedded name (`moescope models`).")
TASKS = Input("tasks", list[str], "NAME=SOURCE; repeat for more. See `moescope tasks`.", "--task")
TEXTS = Input("texts", Path | None, "File with text, category (and group) instead of the shipped passages.", "--text", None)
PROMPTS = Input(
    "prompts",
    str | None,
    "routing-480 (default), routing-80, or a JSONL, CSV or Parquet file: text, category, id, topic, template.",
    "--prompts",
    None,
)


def _model_or_trace(given: dict[str, Any]) -> tuple[Any, Any]:
    if (given["model"] is None) == (given["trace"] is None):
        raise InputError("give MODEL, a model to run (`moescope models` lists the embedded ones), or --trace, one of both")
    return given["model"] or given["trace"], given["prompts"]


VERBS: dict[str, tuple[Verb, str]] = {
    "prune": (
        Verb("prune", "PruneSettings", (MODEL, TEXTS)),
        "Which experts could be left out, as a mask, with the loss that it adds.",
    ),
    "signatures": (
        Verb(
            "signatures",
            "SignatureSettings",
            (
                Input("model", str | None, MODEL.help, default=None),
                PROMPTS,
                Input("trace", Path | None, "A recorded trace instead of running MODEL.", "--trace", None),
            ),
            arguments=_model_or_trace,
        ),
        "Does a mixture-of-experts model route by task? Against chance, length, words and token identity.",
    ),
    "reproduce_signatures": (
        Verb(
            "signatures",
            "SignatureSettings",
            (Input("model", str | None, MODEL.help, default=None), PROMPTS),
            function="reproduce",
            module="reproduce",
            name="reproduce-signatures",
            tables=("published",),
        ),
        "The published figures of the signatures study next to measured ones.",
    ),
}


def __getattr__(name: str) -> Any:
    if name not in VERBS:
        raise AttributeError(name)
    return command(*VERBS[name])
