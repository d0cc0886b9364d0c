"""What is left of the separation beyond what may explain it: length, token identity, words, topic, an untrained twin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from sklearn.feature_extraction.text import TfidfVectorizer

from moescope.routing.separation import Cells, Estimate, centred_pairs, estimates, pairs_between, separated, two_sided
from moescope.routing.subject import Subject
from moescope.studies.signatures.separations import LEXICAL, Beyond
from moescope.studies.signatures.settings import SignatureSettings
from moescope.study.verdicts import Effect
from moescope.types import Explanation

TOKEN, PAIR, TWIN = "token identity", "token pairs (bigrams)", "an untrained twin"
SHUFFLED = "whole cells shuffled between categories"
_LEXICAL = dict(zip(LEXICAL, (TOKEN, PAIR), strict=True))


def of_d(found: Estimate, against: str, settings: SignatureSettings, kind: Explanation = "trivial cue") -> Effect:
    """An effect in units of Cohen's d."""
    return effect_of(found, against, settings.margin_d, kind=kind, share=False)


def effect_of(found: Estimate, against: str, margin: float, **options: Any) -> Effect:
    """An estimate as what decides a claim; without a p its interval decides."""
    p = None if np.isnan(found.p) else found.p
    return Effect(found.value, found.low, found.high, against, margin, p, **options)


def apart(s: np.ndarray, cells: Cells, settings: SignatureSettings, seed: int) -> Estimate:
    """Cohen's d of similarities (N, N) without pairs of one block, and p of whole cells permuted."""
    pairs = pairs_between(s, cells)
    d = estimates(pairs, cells)["d"]
    return d._replace(p=two_sided(d.value, separated(pairs, cells.labels(settings.n_permutations, seed))["d"]))


def separation_rivals(
    subject: Subject,
    s: np.ndarray,
    similarity: pd.DataFrame,
    beyond: Mapping[str, Beyond],
    settings: SignatureSettings,
    seed: int,
) -> tuple[tuple[Effect, ...], list[str]]:
    """The rivals of the separation, and those that could not run, each with why.

    Args:
        s: (N, N) cosines of the headline signatures.
        similarity: the table of that name.
        beyond: by null, what is left beyond it (``null_table``).
    """
    row = similarity[(similarity["measure"] == "null_corrected") & (similarity["prompts"] == "all")].iloc[0]
    corrected = Estimate(*(float(row[name]) for name in ("d", "d_low", "d_high", "p")))
    found = [of_d(corrected, "the prompts' lengths", settings)]
    found += [of_d(beyond[name]["d"], words, settings) for name, words in _LEXICAL.items() if name in beyond]
    not_run = []
    cells = subject.cells()
    if subject.texts is None:
        not_run.append("words in common (no texts)")
    else:
        for words, longest in (("words in common", 1), ("words and bigrams in common", 2)):
            left = centred_pairs(s, alike(subject.texts, longest))
            found.append(of_d(apart(left, cells, settings, seed), words, settings))
    if subject.topics is None:
        not_run.append("pairs of one topic (no topics)")
    elif cells.unit != "topic":
        by_topic = apart(s, subject.cells(by="topic"), settings, seed)
        found.append(of_d(by_topic, "pairs of one topic", settings))
    if "random model" not in beyond:
        not_run.append(f"{TWIN} ({'no model at hand' if settings.twin else 'switched off'})")
    return tuple(found), not_run


def alike(texts: list[str], longest: int) -> np.ndarray:
    """(N, N) cosine of the texts' tf-idf weights of words, and of runs of up to ``longest`` words."""
    words = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b", ngram_range=(1, longest), sublinear_tf=True)
    try:
        rows = words.fit_transform(texts)
    except ValueError:  # no text has a word
        return np.eye(len(texts))
    return np.asarray((rows @ rows.T).todense())
