"""Which commands are verbs, and what each takes beside its settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moescope.cli.generate import Input, Verb, command

MODEL = Input("model", str, "Hub id, local folder or embedded name (`moescope models`).")
TASKS = Input("tasks", list[str], "NAME=SOURCE; repeat for more. See `moescope tasks`.", "--task")
TEXTS = Input("texts", Path | None, "File with text, category (and group) instead of the shipped passages.", "--text", None)
CIRCUITS = Input("circuits", Path | None, "A result of `moescope circuits` on this model.", "--circuits", None)
PLAIN = Input("texts", Path | None, "File of texts parted by blank lines (default: shipped WikiText-2).", "--text", None)

VERBS: dict[str, tuple[Verb, str]] = {
    "convert": (
        Verb(
            "convert",
            "ConvertSettings",
            (
                MODEL,
                Input("texts", Path | None, "Text that decides the split (default: shipped WikiText).", "--calibration", None),
                Input("heldout", Path | None, "Text that judges it (default: the last quarter of it).", "--heldout", None),
                Input("finetune_text", Path | None, "Text to train on (default: that of the split).", "--finetune-text", None),
                CIRCUITS,
            ),
            tables=("frontier", "speed", "tasks"),
        ),
        "A dense model as a mixture-of-experts checkpoint, and whether that pays.",
    ),
    "distill": (
        Verb(
            "distill",
            "DistillSettings",
            (
                MODEL,
                PLAIN,
                Input("store", Path | None, "Store of mlp_in and mlp_out of the layer, instead of text.", "--store", None),
                CIRCUITS,
                Input("dictionary", Path | None, "Safetensors file with a W_dec to compare with.", "--dictionary", None),
            ),
        ),
        "One MLP layer as thousands of tiny experts, beside Gaussian inputs.",
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
