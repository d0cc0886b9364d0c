"""The expert cards of a study: for every category the experts that carry it best, as tidy tables."""

from __future__ import annotations

import pandas as pd

from moescope.routing.subject import Subject
from moescope.studies.signatures.experts import ExpertCard, expert_card
from moescope.studies.signatures.settings import SignatureSettings
from moescope.study.verdicts import significant


def chosen_experts(experts: pd.DataFrame, settings: SignatureSettings) -> list[tuple[int, int]]:
    """(layer, expert) of the cards: those asked for, then per category those of largest, and significant, eta squared."""
    found = list(settings.experts)
    told = experts[experts["p_family"].map(lambda p: significant(p, settings.alpha))]
    carrying = told.sort_values("eta2", ascending=False, kind="stable")
    for category in dict.fromkeys(experts["category"]):
        best = carrying[carrying["category"] == category].head(settings.cards)
        found += [(int(layer), int(e)) for layer, e in zip(best["layer"], best["expert"], strict=True)]
    return list(dict.fromkeys(found))


def card_tables(subject: Subject, experts: pd.DataFrame, settings: SignatureSettings, seed: int) -> dict[str, pd.DataFrame]:
    """Tables ``expert_tokens``, ``expert_categories`` and ``expert_contexts``: the cards' parts with ``layer``, ``expert``.

    Raises:
        InputError: an expert asked for is not in the trace.
    """
    cards: list[ExpertCard] = [
        expert_card(subject.trace, layer, e, decode=subject.decode, seed=seed) for layer, e in chosen_experts(experts, settings)
    ]
    out = {}
    for name in ("tokens", "categories", "contexts"):
        frames = []
        for card in cards:
            part: pd.DataFrame = getattr(card, name).copy()
            part.insert(0, "layer", card.layer)
            part.insert(1, "expert", card.expert)
            frames.append(part)
        filled = [frame for frame in frames if len(frame)]
        if filled:
            out[f"expert_{name}"] = pd.concat(filled, ignore_index=True)
    return out
