"""A checkpoint's card, as the Hub reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from moescope.studies.convert.settings import ConvertSettings
from moescope.study.card import LOADING, claim_lines, head_lines, made_by, table_lines, text_lines
from moescope.types import Claim


def card_text(
    model: str,
    facts: Mapping[str, Any],
    settings: ConvertSettings,
    seed: int,
    claims: Sequence[Claim],
    tables: Mapping[str, pd.DataFrame],
) -> str:
    """The card, from what the result's ``meta`` says of a conversion, and what was measured on it."""
    counts, target = facts["counts"], facts["target"]
    loads = "transformers, vLLM and SGLang" if target["model_type"] == "glm4_moe" else "transformers and vLLM"
    parts = [
        *head_lines(model, facts["title"], claims),
        f"The dense model `{model}` ({target['source']}), each of its MLPs cut into {counts['experts']} experts of "
        f"which {counts['active']} work on a token ({counts['shared']} of these on every token). "
        + (
            "Experts and routers were then fine-tuned against the dense model. "
            if facts["tuned"]
            else "The experts' down projections were then refitted by least squares to what the dense model writes, for this "
            "number of active experts. "
            if facts["refit"]
            else "No weight was trained: with every expert active it is the dense model. "
        )
        + "The licence of the source applies.",
        "",
        *LOADING,
        f"A checkpoint of type `{target['model_type']}`, which has a class of its own in {loads}: no remote code.",
        "",
        _change(target["model_type"]),
        "",
        *(f"- {note}" for note in target["notes"]),
        "",
        *claim_lines(claims),
        "## Quality over the activated share",
        "",
        *table_lines(tables["frontier"], ("kind", "active", "share", "perplexity", "rise", "kl", "agreement")),
        "",
    ]
    if "speed" in tables:
        columns = ("runner", "workload", "tokens_per_second", "speedup", "ceiling", "ceiling_reading")
        parts += [f"## Tokens per second ({facts['machine']})", "", *table_lines(tables["speed"], columns), ""]
    if "tasks" in tables:
        parts += ["## Tasks (lm-evaluation-harness)", "", *table_lines(tables["tasks"], tuple(tables["tasks"])), ""]
    parts += [
        "## Recipe",
        "",
        f"- split: {settings.method}; router: {settings.router}; seed {seed}",
        *_tuning(settings, facts["tuned"]),
        *text_lines(facts["text"]),
        made_by(),
    ]
    return "\n".join(parts) + "\n"


def _change(model_type: str) -> str:
    if model_type == "flex_olmo":
        return "`num_experts_per_tok` in config.json can be changed; nothing else need be."
    return (
        "The number of active experts can be changed in config.json: `num_experts_per_tok` and `routed_scaling_factor`, which "
        "must be equal, or the gates are not one."
    )


def _tuning(settings: ConvertSettings, tuned: bool) -> list[str]:
    if settings.finetune is None:
        return []
    kept = "" if tuned else ", which did not improve and is not in the weights"
    rank = settings.finetune_rank
    how = "all weights of the MLPs" if rank == "full" else f"LoRA of rank {rank}, merged"
    return [f"- fine-tuning: {settings.finetune} steps, {how}{kept}"]
