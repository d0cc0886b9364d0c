"""Which commands are verbs, and what each takes beside its settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from moescope.cli.generate import Input, Verb, command
from moescope.errors import InputError

MODEL = Input("model", str, "Hub id, local folder or embedded name (`moescope models`).")
NO_MODEL = Input("model", str | None, "Default: the embedded model stands in, and the output says so.", default=None)
TASKS = Input("tasks", list[str], "NAME=SOURCE; repeat for more. See `moescope tasks`.", "--task")
TEXTS = Input("texts", Path | None, "File with text, category (and group) instead of the shipped passages.", "--text", None)
PROMPTS = Input(
    "prompts",
    str,
    "routing-480, routing-80, or a JSONL, CSV or Parquet file: text, category, id, topic, template.",
    "--prompts",
    "routing-480",
)
OWN_PROMPTS = replace(PROMPTS, type=str | None, default=None)


def _model_or_trace(given: dict[str, Any]) -> tuple[Any, Any]:
    if (given["model"] is None) == (given["trace"] is None):
        raise InputError("give MODEL, a model to run (`moescope models` lists the embedded ones), or --trace, one of both")
    return given["model"] or given["trace"], given["prompts"]


CIRCUITS = Input("circuits", Path | None, "A result of `moescope circuits` on this model.", "--circuits", None)
PLAIN = Input("texts", Path | None, "File of texts parted by blank lines (default: shipped WikiText-2).", "--text", None)

CHECKPOINTS = Input("checkpoints", list[str], "Checkpoint folders, or one Hub id with --revision.")
REVISIONS = Input("revisions", list[str] | None, "Hub revisions of the one model; repeat.", "--revision", None)

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
    "exit": (
        Verb("exit", "ExitSettings", (MODEL, TASKS)),
        "A classifier that leaves the model early, with a bound on what that costs.",
    ),
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
    "signatures": (
        Verb(
            "signatures",
            "SignatureSettings",
            (
                Input("model", str | None, MODEL.help, default=None),
                OWN_PROMPTS,
                Input("trace", Path | None, "A recorded trace instead of running MODEL.", "--trace", None),
            ),
            arguments=_model_or_trace,
        ),
        "Does a mixture-of-experts model route by task? Against chance, length, words and token identity.",
    ),
    "reproduce_circuits": (
        Verb(
            "circuits",
            "CircuitSettings",
            (NO_MODEL, replace(TASKS, type=list[str] | None, default=None)),
            function="reproduce_circuits",
            module="reproduce",
            name="reproduce-circuits",
            tables=("published",),
            defaults={"selection": "global", "sigma": "total"},
        ),
        "The published figures of the circuits study next to measured ones, in the published settings.",
    ),
    "reproduce_signatures": (
        Verb(
            "signatures",
            "SignatureSettings",
            (NO_MODEL, OWN_PROMPTS),
            function="reproduce",
            module="reproduce",
            name="reproduce-signatures",
            tables=("published",),
        ),
        "The published figures of the signatures study next to measured ones, in the published settings.",
    ),
    "reproduce_secret_moe": (
        Verb(
            "distill",
            "DistillSettings",
            (NO_MODEL, PLAIN),
            function="reproduce",
            module="reproduce",
            name="reproduce-secret-moe",
            tables=("published",),
            defaults={"active": (32,), "experts": 4096, "epochs": 10},
        ),
        "The published figures of the distillation study next to measured ones, in the published settings.",
    ),
}


def __getattr__(name: str) -> Any:
    if name not in VERBS:
        raise AttributeError(name)
    return command(*VERBS[name])
