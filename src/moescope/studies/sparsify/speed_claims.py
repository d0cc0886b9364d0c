"""What the clock says of a choice of neurons: is it faster than plain weights of eight bits that lose as much?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from moescope.intervene.quality import EIGHT, UNIT, Quality
from moescope.studies.sparsify.frontier import FOUR, of_way
from moescope.studies.sparsify.methods import PLANES
from moescope.studies.sparsify.settings import Format, SparsifySettings
from moescope.study.verdicts import Case, Effect, verdicts
from moescope.types import Claim, Control, Outcome

LEAST = 0.02
"""smallest difference in tokens per second that counts, of those of 8-bit weights"""


def speed_claims(
    speed: pd.DataFrame | None,
    qualities: Mapping[str, Quality],
    form: Format,
    settings: SparsifySettings,
    seed: int,
    missing: Mapping[str, str],
    difference: float | None,
) -> list[Claim]:
    """The claims of the clock, that which decides first.

    Args:
        speed: the table; None where nothing could be timed.
        missing: why there is no kernel, for what has none.
        difference: between what the loops give and what was written, of its norm.
    """
    what = f"choosing {form.share:.0%} of the neurons is faster than 8-bit weights at equal quality"
    if speed is None or missing:
        why = "; ".join(dict.fromkeys(missing.values()))
        return [
            Claim(what, "not measured", outcome="not tested", words=f"{why}: no loop runs it, so there is no clock to read")
        ]
    rows = {batch: _row(speed, PLANES, form.share, batch) for batch in speed["batch"].unique()}
    one, eight, four = rows[1], _row(speed, EIGHT, 1.0, 1), _row(speed, FOUR, 1.0, 1)
    here = qualities[of_way(PLANES, form.share)]
    # that it is no worse has a p of its own, from the interval; that of no difference is another
    lost = replace(here.below(qualities[EIGHT], "8-bit weights", settings.margin, seed, no_worse=True), p=None)
    beside = one["over_8_bits"] - 1, one["low"] - 1, one["high"] - 1
    gained = Effect(*beside, "8-bit weights", LEAST, share=False, unit="of the rate")
    kept, faster = verdicts(
        [
            Case(
                f"choosing {form.share:.0%} of the neurons loses no more than 8-bit weights",
                lost.value,
                lost,
                interval=(lost.low, lost.high),
                control=Control("8-bit weights", qualities[EIGHT].rise),
                words=f"by {settings.margin:g} {UNIT} at most; perplexity rises by {here.rise:.2%}",
            ),
            Case(
                f"on the clock: choosing {form.share:.0%} of the neurons decodes faster than 8-bit weights, a token at a time",
                one["over_8_bits"],
                gained,
                interval=(one["low"], one["high"]),
                control=Control("8-bit weights", 1.0),
                words=f"{one['tokens_per_second']:.4g} tokens per second beside {eight['tokens_per_second']:.4g} (4-bit "
                f"weights: {four['over_8_bits']:.2f}×); the MLPs alone {one['mlp_over_8_bits']:.2f}× ({one['mlp_low']:.2f} to "
                f"{one['mlp_high']:.2f}), reading {one['mlp_gb_per_second']:.3g} GB/s beside {eight['mlp_gb_per_second']:.3g}; "
                f"attention and head as loaded, caches cold, {one['turns']} turns on this machine, over which the interval is",
            ),
        ],
        settings.alpha,
    )
    return [
        _decided(what, kept, faster, one),
        faster,
        kept,
        _batches(rows, form),
        Claim(
            "on the clock and on paper: relative difference of what the MLPs give",
            float("nan") if difference is None else difference,
            outcome="identity",
            words="what was timed beside what was written, on held-out tokens; rounding, so without an interval",
        ),
    ]


def _decided(what: str, kept: Claim, faster: Claim, one: Any) -> Claim:
    """From what is lost beside 8-bit weights, and what is won on the clock."""
    told: tuple[str, Outcome, str]
    ratio = f"{one['over_8_bits']:.2f}× the tokens per second ({one['low']:.2f} to {one['high']:.2f})"
    if kept.outcome == "contradicted":
        told = ("no", "contradicted", f"it loses more, whatever the clock says ({ratio}): {kept.words}")
    elif faster.outcome == "contradicted":
        told = ("no", "contradicted", f"it is not faster: {ratio}")
    elif kept.outcome == "holds" and faster.outcome == "holds":
        told = ("yes", "holds", ratio)
    else:
        told = ("undecided", "inconclusive", f"{ratio}; {(kept if kept.outcome != 'holds' else faster).words}")
    found, outcome, why = told
    words = f"{why}; a decision, of which the two claims below are the evidence"
    return Claim(what, found, outcome=outcome, words=words)


def _batches(rows: Mapping[int, Any], form: Format) -> Claim:
    """Up to which number of tokens together it is shown to be faster."""
    paying = 0
    for batch, row in sorted(rows.items()):
        if not row["low"] > 1:
            break
        paying = batch
    said = ", ".join(
        f"{row['over_8_bits']:.2f}× at {batch} ({row['low']:.2f} to {row['high']:.2f})" for batch, row in rows.items()
    )
    return Claim(
        f"most tokens decoded together at which choosing {form.share:.0%} of the neurons is shown to be faster than 8-bit "
        "weights",
        float(paying),
        words=f"{said}; tokens choose differently, and what any of them chose is read; 0: at none; of {_listed(rows)}, so "
        "without an interval",
    )


def _listed(rows: Mapping[int, Any]) -> str:
    return ", ".join(str(batch) for batch in sorted(rows))


def _row(speed: pd.DataFrame, method: str, share: float, batch: int) -> Any:
    return speed[(speed["method"] == method) & (speed["share"] == share) & (speed["batch"] == batch)].iloc[0]
