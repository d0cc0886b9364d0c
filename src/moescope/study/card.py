"""Parts of a checkpoint's card, as the Hub reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import transformers

from moescope.study.provenance import machine
from moescope.types import Claim


def head_lines(model: str, title: str, claims: Sequence[Claim]) -> list[str]:
    """The card's metadata, its title, and what the first claim recommends."""
    return [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        f"base_model: {model}",
        "tags: [mixture-of-experts, moescope]",
        "---",
        "",
        f"# {title}",
        "",
        f"**{claims[0].words.partition('; a decision')[0]}**",
        "",
    ]


LOADING = (
    "```python",
    "from transformers import AutoModelForCausalLM, AutoTokenizer",
    "",
    'model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")',
    "```",
    "",
)


def claim_lines(claims: Sequence[Claim]) -> list[str]:
    """The claims as a table."""
    return [
        "## Measured",
        "",
        "| | measured | 95 % | verdict | |",
        "|---|---|---|---|---|",
        *(f"| {c.statement} | {_cell(c.measured)} | {_interval(c.interval)} | {c.verdict} | {c.words} |" for c in claims),
        "",
    ]


def table_lines(frame: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    """Some columns of a table."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += [
        "| " + " | ".join(_cell(v) for v in row) + " |" for row in frame[list(columns)].itertuples(index=False, name=None)
    ]
    return lines


def text_lines(texts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What was read, by what for, in a recipe."""
    return [f"- {part} text: {of['source']}, {of['tokens']:,} tokens, sha256 {of['sha256']}…" for part, of in texts.items()]


def made_by() -> str:
    """The last line of a recipe."""
    return (
        f"- made by moescope {machine()['versions']['moescope']} with transformers {transformers.__version__}; "
        "everything is in `results.json`, the full report in `report.html`"
    )


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _interval(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f"{interval[0]:.4g} to {interval[1]:.4g}"
