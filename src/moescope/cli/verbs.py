"""Which commands are verbs, and what each takes beside its settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moescope.cli.generate import Input, Verb, command

MODEL = Input("model", str, "Hub id, local folder or embedded name (`moescope models`).")
TASKS = Input("tasks", list[str], "NAME=SOURCE; repeat for more. See `moescope tasks`.", "--task")
TEXTS = Input("texts", Path | None, "File with text, category (and group) instead of the shipped passages.", "--text", None)

CHECKPOINTS = Input("checkpoints", list[str], "Checkpoint folders, or one Hub id with --revision.")
REVISIONS = Input("revisions", list[str] | None, "Hub revisions of the one model; repeat.", "--revision", None)

VERBS: dict[str, tuple[Verb, str]] = {
    "circuits": (
        Verb("circuits", "CircuitSettings", (MODEL, TASKS)),
        "Find the neurons that carry each task, and test them against chance and trivial cues.",
    ),
    "dynamics": (
        Verb("circuits", "SearchSettings", (CHECKPOINTS, TASKS, REVISIONS), function="dynamics", module="formation"),
        "When does a circuit form? The same tasks over a series of checkpoints of one model.",
    ),
    "prune": (
        Verb("prune", "PruneSettings", (MODEL, TEXTS)),
        "Which experts could be left out, as a mask, with the loss that it adds.",
    ),
}


def __getattr__(name: str) -> Any:
    if name not in VERBS:
        raise AttributeError(name)
    return command(*VERBS[name])
