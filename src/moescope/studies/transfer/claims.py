"""What a transfer study says."""

from __future__ import annotations

import numpy as np
import pandas as pd

from moescope.studies.transfer.alignment import Held, Rsa
from moescope.study.verdicts import beyond_chance, significant
from moescope.types import Claim


def similarity_claims(found: Rsa) -> list[Claim]:
    """Are the prompts that are alike in A alike in B, and beyond the tokens that they share?"""
    known = not np.isnan(found.partial)
    trivial = known and significant(found.p) and not significant(found.p_partial)
    note = f"Spearman of the prompts' similarities (Mantel test); within a category p = {found.p_within:.3g}"
    if known:
        note += f"; with shared tokens held fixed {found.partial:.3f} (p = {found.p_partial:.3g})"
    return [
        Claim(
            name="prompts that route alike in A route alike in B",
            measured=found.rho,
            null=found.null,
            p=found.p,
            verdict="explained by a trivial cue" if trivial else beyond_chance(found.p),
            note=note,
        )
    ]


def alignment_claims(table: pd.DataFrame, held: Held) -> list[Claim]:
    """Does a rotation carry prompts that it has not seen, and does B's classifier read A through it?"""
    by = {row["measure"]: row for row in table.to_dict("records")}
    matched, cross, own = by["matched"], by["cross_model"], by["native_a"]
    return [
        Claim(
            name="a rotation carries held-out prompts from A to B",
            measured=matched["value"],
            interval=(matched["low"], matched["high"]),
            null=matched["null"],
            p=matched["p"],
            verdict=beyond_chance(matched["p"]),
            note=f"nearest B prompt is the right one, chance {held.chance:.3f}; explains {held.explained:.1%} of B's variance",
        ),
        Claim(
            name="B's classifier reads A's prompts through the rotation",
            measured=cross["value"],
            interval=(cross["low"], cross["high"]),
            null=cross["null"],
            p=cross["p"],
            verdict=beyond_chance(cross["p"]),
            note=f"accuracy, topics held out; A's own classifier {own['value']:.1%}, B's own {by['native_b']['value']:.1%}; "
            "null: the prompts of A or of B shuffled",
        ),
    ]


def counterpart_claims(table: pd.DataFrame) -> list[Claim]:
    """Of two versions of one model: do the same experts still do the same?"""
    mean = table.mean()
    return [
        Claim(
            name="a token keeps its experts from A to B",
            measured=float(mean["overlap"]),
            null=float(mean["chance"]),
            note=f"share of a token's experts; the whole set stays for {mean['same_set']:.1%} of tokens, least in layer "
            f"{int(table.loc[table['same_set'].idxmin(), 'layer'])}; {mean['own_match']:.1%} of experts match themselves best",
        ),
        Claim(
            name="a prompt keeps its signature from A to B",
            measured=float(mean["cosine"]),
            null=float(mean["permuted_cosine"]),
            note="cosine, mean over prompts and layers; null: B's experts renumbered at random",
        ),
    ]
