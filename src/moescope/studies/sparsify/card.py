"""A sparse model's card, as the Hub reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from moescope.studies.sparsify.settings import Format
from moescope.study.card import claim_lines, head_lines, made_by, table_lines, text_lines
from moescope.types import Claim


def card_text(
    model: str,
    facts: Mapping[str, Any],
    form: Format,
    seed: int,
    claims: Sequence[Claim],
    tables: Mapping[str, pd.DataFrame],
) -> str:
    """The card, from what the result's ``meta`` says, and what was measured."""
    lines = tables["frontier"]
    plain = ~lines["method"].str.match(r"[\d/]+-bit$|file$|original$")
    shown = lines[~plain | (lines["share"] == form.share)]
    return "\n".join(
        [
            *head_lines(model, facts["title"], claims),
            f"The dense model `{model}`; of each MLP's neurons {form.share:.0%} work on a token, those that the first "
            f"{form.choose} of {form.bits} bits of gate and up expect to write most. No weight was trained. The licence "
            "of the source applies.",
            "",
            "```python",
            "import moescope",
            "",
            'model = moescope.load_model("THIS_FOLDER", head=True)  # or transformers, once moescope.models is imported',
            "```",
            "",
            *claim_lines(claims),
            "## Beside other ways and plain weights",
            "",
            *table_lines(shown, ("method", "share", "bytes", "perplexity", "rise", "low", "high", "kl")),
            "",
            *_clock(tables.get("speed")),
            *(
                ["## Tasks (lm-evaluation-harness)", "", *table_lines(tables["tasks"], tuple(tables["tasks"])), ""]
                if "tasks" in tables
                else []
            ),
            "## Recipe",
            "",
            f"- codes of {form.bits} bits that nest, {form.choose} of them choose; budgets {facts['budgets']}; seed {seed}",
            *text_lines(facts["text"]),
            made_by(),
            "",
        ]
    )


def _clock(speed: pd.DataFrame | None) -> list[str]:
    if speed is None:
        return []
    columns = ("method", "share", "kernel", "batch", "tokens_per_second", "over_8_bits", "low", "high", "mlp_over_8_bits")
    return [
        "## On the clock",
        "",
        "Decoding, beside plain 8-bit weights, in turns, caches cold, attention and head as loaded. The model runs on its "
        "loops after `moescope.runtime.planes.execute(model.module)`; as it is loaded it is exact and not fast. Ways that "
        "are not here have no kernel.",
        "",
        *table_lines(speed, columns),
        "",
    ]
