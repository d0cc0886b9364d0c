"""The card of a pruned checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from moescope.studies.prune.settings import PruneSettings
from moescope.study.card import LOADING, claim_lines, head_lines, made_by, table_lines
from moescope.types import Claim


def card_text(
    model: str,
    facts: Mapping[str, Any],
    settings: PruneSettings,
    seed: int,
    claims: Sequence[Claim],
    tables: Mapping[str, pd.DataFrame],
) -> str:
    """The card, from what the result's ``meta`` says, and what was measured."""
    changed = ", ".join(f"`{name}` {before} → {after}" for name, (before, after) in facts["config"].items())
    sizes = facts["bytes"]
    parts = [
        *head_lines(model, facts["title"], claims),
        f"`{model}` without {settings.ratio:.1%} of every layer's experts, by {settings.by}"
        + (f" on text of {settings.domain}" if settings.domain else "")
        + f". Of the config, {changed} changed; the tensors that stay are the source's own, bit for bit, in "
        f"{sizes['after'] / 1e9:.3g} GB instead of {sizes['before'] / 1e9:.3g}. No weight was trained. The licence of the "
        "source applies.",
        "",
        *LOADING,
        *claim_lines(claims),
        "## Loss by bytes",
        "",
        *table_lines(tables["pruning"], ("criterion", "ratio", "bytes", "perplexity", "kl", "effect", "low", "high")),
        "",
        "## By category of text",
        "",
        *table_lines(
            tables["domains"].query("criterion == @settings.by and ratio == @settings.ratio"),
            ("category", "chose", "documents", "effect", "low", "high", "kl"),
        ),
        "",
    ]
    if "tasks" in tables:
        parts += ["## Tasks (lm-evaluation-harness)", "", *table_lines(tables["tasks"], tuple(tables["tasks"])), ""]
    parts += [
        "## Recipe",
        "",
        f"- experts chosen on {facts['tokens']['saliency']:,} tokens, judged on {facts['tokens']['loss']:,} of other "
        f"documents; seed {seed}",
        made_by(),
    ]
    return "\n".join(parts) + "\n"
