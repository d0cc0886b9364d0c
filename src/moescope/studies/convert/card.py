"""What lies in the folder beside the weights: a model card for people, a recipe for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from moescope.study.encode import plain
from moescope.study.result import StudyResult

RECIPE = "conversion.json"


def write_recipe(folder: Path, result: StudyResult) -> None:
    """``conversion.json``: how the checkpoint was made, and what was measured on it."""
    recipe = {
        "format": "moescope conversion",
        "recipe": result.meta,
        "claims": [
            {"name": c.name, "measured": c.measured, "interval": c.interval, "null": c.null, "note": c.note}
            for c in result.claims
        ],
        "tables": {name: table.to_dict("records") for name, table in result.tables.items()},
    }
    text = json.dumps(plain(recipe), indent=1, ensure_ascii=False, allow_nan=False)
    (folder / RECIPE).write_text(text + "\n", encoding="utf-8")


def write_card(folder: Path, result: StudyResult) -> None:
    """``README.md``: a model card as the Hub reads it."""
    (folder / "README.md").write_text(card_text(result), encoding="utf-8")


def card_text(result: StudyResult) -> str:
    meta = result.meta
    counts, target = meta["counts"], meta["target"]
    loads = "transformers, vLLM and SGLang" if target["model_type"] == "glm4_moe" else "transformers and vLLM"
    parts = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        f"base_model: {meta['model']}",
        "tags: [mixture-of-experts, moescope]",
        "---",
        "",
        f"# {meta['title']}",
        "",
        f"**{result.claims[0].note}**",
        "",
        f"The dense model `{meta['model']}` ({target['source']}), each of its MLPs cut into {counts['experts']} experts of "
        f"which {counts['active']} work on a token ({counts['shared']} of these on every token). "
        + (
            "Experts and routers were then fine-tuned against the dense model. "
            if meta["tuned"]
            else "No weight was trained: with every expert active it is the dense model. "
        )
        + "The licence of the source applies.",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")',
        "```",
        "",
        f"A checkpoint of type `{target['model_type']}`, which has a class of its own in {loads}: no remote code.",
        "",
        _change(target["model_type"]),
        "",
        *(f"- {note}" for note in target["notes"]),
        "",
        "## Measured",
        "",
        "| | measured | 95 % | note |",
        "|---|---|---|---|",
        *(f"| {c.name} | {_cell(c.measured)} | {_interval(c.interval)} | {c.note} |" for c in result.claims),
        "",
        "## Quality over the activated share",
        "",
        *_table(result.tables["frontier"], ("kind", "active", "share", "perplexity", "rise", "kl", "agreement")),
        "",
    ]
    if "speed" in result.tables:
        columns = ("runner", "workload", "tokens_per_second", "speedup", "ceiling", "ceiling_reading")
        parts += [f"## Tokens per second ({meta['machine']})", "", *_table(result.tables["speed"], columns), ""]
    if "tasks" in result.tables:
        parts += ["## Tasks (lm-evaluation-harness)", "", *_table(result.tables["tasks"], tuple(result.tables["tasks"])), ""]
    parts += [
        "## Recipe",
        "",
        f"- split: {meta['settings']['method']}; router: {meta['settings']['router']}; seed {meta['seed']}",
        *_tuning(meta["settings"], meta["tuned"]),
        *(
            f"- {part} text: {text['source']}, {text['tokens']:,} tokens, sha256 {text['sha256']}…"
            for part, text in meta["text"].items()
        ),
        f"- made by moescope {meta['versions']['moescope']} with transformers {meta['versions']['transformers']}; "
        f"everything is in `{RECIPE}`, the full report in `report/`",
    ]
    return "\n".join(parts) + "\n"


def _change(model_type: str) -> str:
    if model_type == "flex_olmo":
        return "`num_experts_per_tok` in config.json can be changed; nothing else need be."
    return (
        "The number of active experts can be changed in config.json: `num_experts_per_tok` and `routed_scaling_factor`, which "
        "must be equal, or the gates are not one."
    )


def _tuning(settings: dict[str, Any], tuned: bool) -> list[str]:
    if settings["finetune"] is None:
        return []
    kept = "" if tuned else ", which did not improve and is not in the weights"
    rank = settings["finetune_rank"]
    how = "all weights of the MLPs" if rank == "full" else f"LoRA of rank {rank}, merged"
    return [f"- fine-tuning: {settings['finetune']} steps, {how}{kept}"]


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _interval(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f"{interval[0]:.4g} to {interval[1]:.4g}"


def _table(frame: pd.DataFrame, columns: tuple[str, ...]) -> list[str]:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += [
        "| " + " | ".join(_cell(v) for v in row) + " |" for row in frame[list(columns)].itertuples(index=False, name=None)
    ]
    return lines
