"""For every category the experts that carry it best: those that get a card."""

from __future__ import annotations

import pandas as pd

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
