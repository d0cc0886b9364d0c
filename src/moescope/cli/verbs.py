"""Which commands are verbs, and what each takes beside its settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from moescope.cli.generate import Input, Verb, command

MODEL = Input("model", str, "Hub id, local folder or embedded name (`moescope models`).")
TASKS = Input("tasks", list[str], "NAME=SOURCE; repeat for more. See `moescope tasks`.", "--task")
TEXTS = Input("texts", Path | None, "File with text, category (and group) instead of the shipped passages.", "--text", None)
PROMPTS = Input("prompts", str, "Prompt set or file with text, category.", "--prompts", "routing-480")

VERBS: dict[str, tuple[Verb, str]] = {
    "exit": (
        Verb("exit", "ExitSettings", (MODEL, TASKS)),
        "A classifier that leaves the model early, with a bound on what that costs.",
    ),
    "prune": (
        Verb("prune", "PruneSettings", (MODEL, TEXTS)),
        "Which experts could be left out, as a mask, with the loss that it adds.",
    ),
    "robustness": (
        Verb("robustness", "RobustnessSettings", (MODEL, PROMPTS)),
        "How far a monitor of the routing can be trusted, and a search to fool it.",
    ),
    "steer": (
        Verb("steer", "SteerSettings", (MODEL, TEXTS, PROMPTS)),
        "Ban, force, boost or scale experts, or ablate neurons; effect beside random ones.",
    ),
    "transfer": (
        Verb("transfer", "TransferSettings", (replace(MODEL, name="model_a"), replace(MODEL, name="model_b"), PROMPTS)),
        "What two models' routing of the same prompts has in common.",
    ),
    "route": (
        Verb("route", "RouteSettings", (MODEL, TASKS), tables=("named", "unknown")),
        "Name a prompt's task from the first layers, or call it unknown.",
    ),
}


def __getattr__(name: str) -> Any:
    if name not in VERBS:
        raise AttributeError(name)
    return command(*VERBS[name])
