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


MODEL_OR_TRACE = (
    Input("model", str | None, MODEL.help, default=None),
    OWN_PROMPTS,
    Input("trace", Path | None, "A recorded trace instead of running MODEL.", "--trace", None),
)


def _model_or_trace(given: dict[str, Any]) -> tuple[Any, Any]:
    if (given["model"] is None) == (given["trace"] is None):
        raise InputError("give MODEL, a model to run (`moescope models` lists the embedded ones), or --trace, one of both")
    return given["model"] or given["trace"], given["prompts"]


CIRCUITS = Input("circuits", Path | None, "A result of `moescope circuits` on this model.", "--circuits", None)
PLAIN = Input("texts", Path | None, "File of texts parted by blank lines (default: shipped WikiText-2).", "--text", None)

CHECKPOINTS = Input("checkpoints", list[str], "Checkpoint folders, or one Hub id with --revision.")
REVISIONS = Input("revisions", list[str] | None, "Hub revisions of the one model; repeat.", "--revision", None)

MODELS = Input("models", list[str], "At least two, as MODEL everywhere, of different sizes.")

VERBS: dict[str, Verb] = {
    "convert": Verb(
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
    "distill": Verb(
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
    "agreement": Verb(
        "agreement",
        "AgreementSettings",
        (
            Input("trace_a", Path, "A trace folder."),
            Input("trace_b", Path, "Another, of the same prompts in the same model."),
            Input("yardstick", Path | None, "A trace that ought to agree with the first.", "--yardstick", None),
        ),
        name="trace-compare",
    ),
    "exit": Verb("exit", "ExitSettings", (MODEL, TASKS)),
    "choice": Verb("choice", "ChoiceSettings", (MODEL, TASKS), tables=("circuits",)),
    "circuits": Verb("circuits", "CircuitSettings", (MODEL, TASKS)),
    "dynamics": Verb("circuits", "SearchSettings", (CHECKPOINTS, TASKS, REVISIONS), function="dynamics", module="formation"),
    "scaling": Verb(
        "circuits",
        "ScalingSettings",
        (MODELS, TASKS),
        function="scaling",
        module="scaling",
        tables=("scaling", "scaling_trends"),
    ),
    "prune": Verb("prune", "PruneSettings", (MODEL, TEXTS), tables=("pruning", "tasks")),
    "residency": Verb(
        "residency",
        "ResidencySettings",
        (
            Input("trace", Path, "A trace folder (`moescope trace`)."),
            Input("model", str | None, "The traced model, for the lookahead by its routers.", "--model", None),
        ),
        tables=("policies", "placement"),
    ),
    "robustness": Verb("robustness", "RobustnessSettings", (MODEL, PROMPTS)),
    "sparsify": Verb(
        "sparsify",
        "SparsifySettings",
        (
            MODEL,
            Input("texts", Path | None, "Text that calibrates (default: shipped WikiText).", "--calibration", None),
            Input("heldout", Path | None, "Text that judges (default: the last quarter of it).", "--heldout", None),
        ),
        tables=("frontier",),
    ),
    "steer": Verb("steer", "SteerSettings", (MODEL, TEXTS, PROMPTS)),
    "targets": Verb(
        "targets",
        "TargetSettings",
        (
            Input("model", str, "A mixture of experts (as MODEL everywhere), or the folder of a recorded trace."),
            Input(
                "texts",
                Path | None,
                "Calibration or fine-tuning text: .txt parted by blank lines, or JSONL, CSV, Parquet (text, category, topic).",
                "--text",
                None,
            ),
        ),
        tables=("layers", "domains"),
    ),
    "transfer": Verb("transfer", "TransferSettings", (replace(MODEL, name="model_a"), replace(MODEL, name="model_b"), PROMPTS)),
    "route": Verb(
        "route", "RouteSettings", (MODEL, TASKS), tables=("named", "unknown", "stream", "strangers", "causal", "experts")
    ),
    "signatures": Verb("signatures", "SignatureSettings", MODEL_OR_TRACE, arguments=_model_or_trace),
    "atlas": Verb("atlas", "AtlasSettings", MODEL_OR_TRACE, arguments=_model_or_trace),
    "reproduce_circuits": Verb(
        "circuits",
        "CircuitSettings",
        (NO_MODEL, replace(TASKS, type=list[str] | None, default=None)),
        function="reproduce_circuits",
        module="reproduce",
        name="reproduce-circuits",
        tables=("published",),
        defaults={"selection": "global", "sigma": "total"},
    ),
    "reproduce_signatures": Verb(
        "signatures",
        "SignatureSettings",
        (NO_MODEL, OWN_PROMPTS),
        function="reproduce",
        module="reproduce",
        name="reproduce-signatures",
        tables=("published",),
    ),
    "reproduce_secret_moe": Verb(
        "distill",
        "DistillSettings",
        (NO_MODEL, PLAIN),
        function="reproduce",
        module="reproduce",
        name="reproduce-secret-moe",
        tables=("published",),
        defaults={
            "active": (32,),
            "experts": 4096,
            "epochs": 10,
            "rank": 128,
            "padding": "keep",
            "control": ("gaussian", "no-padding", "no-padding-gaussian"),
        },
    ),
}


def __getattr__(name: str) -> Any:
    if name not in VERBS:
        raise AttributeError(name)
    return command(VERBS[name])
