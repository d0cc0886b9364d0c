"""What a transfer study says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from moescope.studies.transfer.alignment import Held, Rsa
from moescope.study.paired import joined
from moescope.study.verdicts import Case, Effect
from moescope.types import Claim, Control

_FAMILY = "transfer"


def similarity_claims(found: Rsa, margin: float) -> list[Case]:
    """Are the prompts that are alike in A alike in B, beyond the tokens that they share, and within a category too?"""
    known = not np.isnan(found.partial)
    shuffled = Effect(
        *_beyond(found.rho, (found.low, found.high), (found.null, found.null_low, found.null_high)),
        "under shuffled pairings, topics whole",
        margin,
        found.p,
        share=False,
    )
    nulls = (found.null_partial, found.null_partial_low, found.null_partial_high)
    tokens = Effect(
        *_beyond(found.partial, (found.partial_low, found.partial_high), nulls),
        "the tokens that the prompts share",
        margin,
        found.p_partial,
        kind="trivial cue",
        share=False,
    )
    nulls = (found.null_within, found.null_within_low, found.null_within_high)
    within = Effect(
        *_beyond(found.rho, (found.low, found.high), nulls),
        "under pairings shuffled within categories, topics whole",
        margin,
        found.p_within,
        share=False,
    )
    shared: dict[str, Any] = {
        "measured": found.rho,
        "id": "S10",
        "interval": (found.low, found.high),
        "rivals": (tokens,) if known else (),
        "not_run": () if known else ("shared tokens held fixed (a trace holds no token ids)",),
        "family": _FAMILY,
        "words": "Spearman of the prompts' similarities" + (f"; {found.partial:.3f} with shared tokens held fixed" * known),
    }
    return [
        Case("prompts that route alike in A route alike in B", effect=shuffled, control=_control(found.null), **shared),
        Case("and so they do within a category", effect=within, control=_control(found.null_within), **shared),
    ]


def _control(null: float) -> Control:
    return Control("shuffled pairings, mean", null)


def _beyond(value: float, interval: tuple[float, float], null: tuple[float, float, float]) -> tuple[float, float, float]:
    """A figure beyond the mean of its null: value, low and high, with the figure's own doubt and the null's spread."""
    mean, low, high = null
    gap = value - mean
    return gap, *joined(gap, (interval[0] - mean, interval[1] - mean), (value - high, value - low))


def alignment_claims(table: pd.DataFrame, held: Held, margin: float) -> list[Case]:
    """Does a rotation carry prompts that it has not seen, and does B's classifier read A through it?"""
    by = {row["measure"]: row for row in table.to_dict("records")}

    def case(statement: str, row: dict[str, Any], words: str) -> Case:
        null = (row["null"], row["null_low"], row["null_high"])
        beside = _beyond(row["value"], (row["low"], row["high"]), null)
        return Case(
            statement,
            row["value"],
            Effect(*beside, "under shuffled pairings, topics whole", margin, row["p"]),
            id="S10",
            interval=(row["low"], row["high"]),
            control=_control(row["null"]),
            family=_FAMILY,
            words=f"{words}; the null is the harder of A's prompts shuffled and B's",
        )

    return [
        case(
            "a rotation carries held-out prompts from A to B",
            by["matched"],
            f"nearest B prompt is the right one, chance {held.chance:.3f}; explains {held.explained:.1%} of B's variance",
        ),
        case(
            "B's classifier reads A's prompts through the rotation",
            by["cross_model"],
            f"accuracy, topics held out; A's own classifier {by['native_a']['value']:.1%}, "
            f"B's own {by['native_b']['value']:.1%}",
        ),
    ]


def counterpart_claims(table: pd.DataFrame) -> list[Claim]:
    """Of two versions of one model: do the same experts still do the same?"""
    mean = table.mean()
    why = "mean over layers, which are all there are and no sample, so without an interval"
    return [
        Claim(
            "a token keeps its experts from A to B",
            float(mean["overlap"]),
            control=Control("choices dealt out anew among tokens", float(mean["chance"])),
            words=f"share of a token's experts; the whole set stays for {mean['same_set']:.1%} of tokens, least in layer "
            f"{int(table.loc[table['same_set'].idxmin(), 'layer'])}; {mean['own_match']:.1%} of experts match themselves best; "
            f"{why}",
        ),
        Claim(
            "a prompt keeps its signature from A to B",
            float(mean["cosine"]),
            control=Control("B's experts renumbered at random", float(mean["permuted_cosine"])),
            words=f"cosine, mean over prompts; {why}",
        ),
    ]
