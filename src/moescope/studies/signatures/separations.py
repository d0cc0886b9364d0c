"""Tables of similarity: every measure and variant, each against its nulls, and the random-routing curve."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from moescope.routing.classify import length_matched
from moescope.routing.nulls import (
    Router,
    draws,
    pooled_cosine,
    random_cosine,
    recurring,
    shuffled_router,
    simulated_cosine,
    token_pairs,
    uniform_router,
)
from moescope.routing.separation import MEASURED, Estimate, beyond, cells_of, estimates, pairs_between, separated, two_sided
from moescope.routing.signatures import QUANTITIES, Signatures, signatures_of
from moescope.routing.similarity import similarities, similarity
from moescope.routing.subject import Subject
from moescope.routing.trace import PARTS, Part, RoutingTrace
from moescope.studies.signatures.settings import SignatureSettings
from moescope.study.protocol import Context

Beyond = dict[str, Estimate]
"""What is left of within, across, gap and d beyond something."""
LEXICAL = ("same token reshuffled", "same token pair reshuffled")
FEW, MOST = 4, 0.75  # recurring tokens that a prompt needs, and the share of prompts that must have them
CURVE = (2, 4, 8, 16, 32, 64, 128, 256)


def expected_of(signatures: Signatures, trace: RoutingTrace) -> np.ndarray:
    """(N, N) cosine of prompts that draw their tokens' routing from all prompts' together."""
    return pooled_cosine(trace.counts(part=signatures.part), signatures.tokens)


def similarity_table(subject: Subject, settings: SignatureSettings, seed: int) -> pd.DataFrame:
    """One row a measure (over all tokens), a variant (quantity, part; cosine), a measure on length-matched prompts, and the
    cosine of all prompts cut to one length."""
    rows: list[dict[str, Any]] = []
    head = signatures_of(subject.trace, quantity=settings.quantity)
    measures = similarities(head.flat(), expected_of(head, subject.trace))
    for measure, s in measures.items():
        rows.append(_row(s, np.arange(len(subject)), subject, settings, seed, head, measure))
    for quantity in QUANTITIES:
        if quantity == "weight" and subject.trace.weights is None:
            continue
        for part in PARTS:
            kept = with_part(subject, part)
            if (quantity, part) == (settings.quantity, "all") or kept is None:
                continue
            found = signatures_of(subject.trace.select(kept), quantity=quantity, part=part)
            rows.append(_row(similarity(found.flat()), kept, subject, settings, seed, found, "cosine"))
    matched = length_matched(head.tokens, subject.y, seed)
    if usable(subject.y, matched):
        for measure, s in measures.items():
            row = _row(s[np.ix_(matched, matched)], matched, subject, settings, seed, head, measure)
            rows.append({**row, "prompts": "length-matched"})
    kept, cut = equal_lengths(subject)
    found = signatures_of(cut, quantity=settings.quantity)
    row = _row(similarity(found.flat()), kept, subject, settings, seed, found, "cosine")
    rows.append({**row, "prompts": f"first {found.tokens[0]} tokens"})
    return pd.DataFrame(rows)


def equal_lengths(subject: Subject) -> tuple[np.ndarray, RoutingTrace]:
    """Every prompt cut to as many tokens: the most that three quarters of each category have, and two prompts at least.

    Returns:
        indices (n,) of the prompts that are long enough, and their trace.
    """
    lengths = subject.trace.lengths
    enough = []
    for code in range(len(subject.categories)):
        longest_first = np.sort(lengths[subject.y == code])[::-1]
        enough.append(longest_first[max(2, -(-3 * len(longest_first) // 4)) - 1])
    n = int(min(enough))
    return np.flatnonzero(lengths >= n), some_tokens(subject.trace, n, subject.trace.position)


def usable(y: np.ndarray, rows: np.ndarray) -> bool:
    """Whether the rows hold at least two prompts of every category."""
    return bool(len(rows)) and bool(np.all(np.bincount(y[rows], minlength=int(y.max()) + 1) >= 2))


def with_part(subject: Subject, part: Part) -> np.ndarray | None:
    """Indices of the prompts that have tokens of a part; None if fewer than two of some category do."""
    tokens = np.bincount(subject.trace.sequence[subject.trace.mask(part)], minlength=len(subject))
    kept = np.flatnonzero(tokens)
    return kept if usable(subject.y, kept) else None


def _row(
    s: np.ndarray, rows: np.ndarray, subject: Subject, settings: SignatureSettings, seed: int, of: Signatures, measure: str
) -> dict[str, Any]:
    cells = subject.cells(rows)
    whole, apart = pairs_between(s, cells, apart=False), pairs_between(s, cells)
    found, d = estimates(whole, cells), estimates(apart, cells)["d"]
    null = separated(apart, cells.labels(settings.n_permutations, seed))["d"]
    row: dict[str, Any] = {"prompts": "all", "quantity": of.quantity, "part": of.part, "measure": measure}
    for name, column in (("within", "within"), ("across", "across"), ("gap", "gap"), ("d", "d_pairs")):
        row |= {column: found[name].value, f"{column}_low": found[name].low, f"{column}_high": found[name].high}
    upper = np.triu_indices(len(rows), 1)
    same = subject.y[rows][upper[0]] == subject.y[rows][upper[1]]
    row |= {"within_sd": float(s[upper][same].std(ddof=1)), "across_sd": float(s[upper][~same].std(ddof=1))}
    row |= {"d": d.value, "d_low": d.low, "d_high": d.high, "p": two_sided(d.value, null)}
    return row | {"n": len(rows), "cells": len(cells.y)}


def null_table(
    subject: Subject, settings: SignatureSettings, context: Context
) -> tuple[pd.DataFrame, dict[str, Beyond], list[str]]:
    """Frequency signatures of random routings of the same tokens.

    Returns:
        one row a null, the measured routing first; what is left of the measured figures beyond each null; and the nulls that
        could not run.
    """
    trace, seed = subject.trace, context.run.seed
    cells = subject.cells()
    own = signatures_of(trace)
    pairs = pairs_between(similarity(own.flat()), cells)
    measured = {name: float(value[0]) for name, value in separated(pairs, cells.y[None]).items()}
    labels = cells.labels(settings.n_permutations, seed)
    moved = float((labels != cells.y).mean())
    if not cells.confounded:
        context.control("labels permuted", differs=moved > 0, evidence=f"{moved:.0%} of the cells are another category's")
    shuffled = f"the measured routing with the categories of whole cells (category and {cells.unit}) shuffled"
    rows = [
        _null_row("measured routing", {k: np.array([v]) for k, v in measured.items()}, measured["d"], len(subject), ""),
        _null_row("labels permuted", separated(pairs, labels), measured["d"], len(subject), shuffled),
    ]
    found: dict[str, Beyond] = {}
    for name, (router, note) in {
        "uniform": (uniform_router(trace), "every token takes its number of experts uniformly at random"),
        "own counts reshuffled": (shuffled_router(trace), "each layer's own choices dealt out anew among all tokens"),
    }.items():
        row, found[name] = _routed(name, subject, router, own.values, settings, context, note)
        rows.append(row)
    not_run = []
    for name in LEXICAL:
        if trace.tokens is None:
            not_run.append(f"{name} (the trace has no token ids)")
            continue
        strata = token_pairs(trace) if name.endswith("pair reshuffled") else trace.tokens
        moves = recurring(strata)
        kept = np.flatnonzero(np.bincount(trace.sequence[moves], minlength=len(subject)) >= FEW)
        if not usable(subject.y, kept) or len(kept) < len(subject) * MOST:
            not_run.append(f"{name} (too few recur: {moves.mean():.0%} of the tokens, {len(kept)} prompts have {FEW} of them)")
            continue
        moves &= np.isin(trace.sequence, kept)
        part, those = only_tokens(trace, moves), subject.of(kept)
        note = f"judged on the {moves.mean():.0%} of the tokens that recur, of {len(kept)} prompts"
        router = shuffled_router(part, strata[moves])
        row, found[name] = _routed(name, those, router, signatures_of(part).values, settings, context, note)
        rows.append(row)
    return pd.DataFrame(rows), found, not_run


def _routed(
    name: str,
    subject: Subject,
    router: Router,
    own: np.ndarray,
    settings: SignatureSettings,
    context: Context,
    note: str,
) -> tuple[dict[str, Any], Beyond]:
    """A null's row, and what the measured routing of the same tokens has beyond it."""
    cells = subject.cells()
    drawn, others = [], 0
    for values in draws(router, settings.n_nulls, context.run.seed):
        drawn.append(pairs_between(similarity(values.reshape(len(values), -1)), cells))
        others += not np.array_equal(values, own)
    # Where a token's identity decides, equal tokens' choices are equal too, and no draw can differ.
    differs = others > 0 or name in LEXICAL
    context.control(name, differs=differs, evidence=f"{others} of {len(drawn)} draws give other signatures; {note}")
    pairs = pairs_between(similarity(own.reshape(len(own), -1)), cells)
    columns = {k: np.concatenate([separated(p, cells.y[None])[k] for p in drawn]) for k in MEASURED}
    measured = float(separated(pairs, cells.y[None])["d"][0])
    return _null_row(name, columns, measured, len(subject), note), beyond(pairs, drawn, cells)


def _null_row(name: str, found: dict[str, np.ndarray], observed: float, n: int, note: str) -> dict[str, Any]:
    row: dict[str, Any] = {"null": name}
    for key, values in found.items():
        low, high = np.quantile(values, [0.025, 0.975]) if len(values) > 1 else (np.nan, np.nan)
        row |= {key: float(values.mean()), f"{key}_low": float(low), f"{key}_high": float(high)}
    p = two_sided(observed, found["d"]) if len(found["d"]) > 1 else float("nan")
    return row | {"measured_d": observed, "p": p, "n": n, "n_draws": len(found["d"]), "note": note}


def twin_row(subject: Subject, twin: RoutingTrace, context: Context) -> tuple[dict[str, Any], Beyond]:
    """A row of :func:`null_table` for a randomly initialised model, whose routing can only know tokens and positions.

    Both are compared on prompt tokens.
    """
    prints = [str(t.meta.get("fingerprint")) for t in (subject.trace, twin)]
    context.control("random model", differs=prints[0] != prints[1], evidence=f"weights {prints[1]}, the model's {prints[0]}")
    cells = subject.cells()
    own = pairs_between(similarity(signatures_of(subject.trace, part="prompt").flat()), cells)
    other = pairs_between(similarity(signatures_of(twin, part="prompt").flat()), cells)
    values = separated(other, cells.y[None])
    measured = float(separated(own, cells.y[None])["d"][0])
    return _null_row("random model", values, measured, len(subject), "prompt tokens only"), beyond(own, [other], cells)


def layer_nulls(subject: Subject, settings: SignatureSettings, seed: int) -> pd.DataFrame:
    """Within and across cosine of each layer under both load-balance baselines."""
    trace, rows = subject.trace, []
    cells = subject.cells()
    for name, router in {"uniform": uniform_router(trace), "own counts reshuffled": shuffled_router(trace)}.items():
        found: list[list[dict[str, np.ndarray]]] = [[] for _ in trace.layers]
        for values in draws(router, min(settings.n_nulls, 20), seed):
            for i, kept in enumerate(found):
                kept.append(separated(pairs_between(similarity(values[:, i]), cells), cells.y[None]))
        for layer, kept in zip(trace.layers, found, strict=True):
            means = {key: float(np.mean([f[key][0] for f in kept])) for key in ("within", "across", "d")}
            rows.append({"null": name, "layer": layer, **means})
    return pd.DataFrame(rows)


def random_curve(subject: Subject, seed: int) -> pd.DataFrame:
    """Cosine by number of tokens, of uniform random routing and as measured; nothing where every prompt has one token."""
    trace = subject.trace
    k = [int((trace.ids[:, i] != trace.empty).sum(1).max(initial=1)) for i in range(len(trace.layers))]
    shapes = list(zip(trace.n_experts, k, strict=True))  # (experts, top-k) of each layer
    longest = int(trace.lengths.max(initial=0))
    # Each token's place in a random order of its own sequence's tokens.
    order = np.lexsort((np.random.default_rng(seed).random(len(trace)), trace.sequence))
    rank = np.empty(len(trace), dtype=np.int64)
    rank[order] = trace.position
    rows = []
    for n in [t for t in CURVE if t <= longest]:
        row: dict[str, Any] = {
            "tokens": n,
            "closed_form": float(np.mean([random_cosine(n, *shape) for shape in shapes])),
            # Layers mostly share their shape: each shape is simulated once.
            "simulated": float(np.mean([simulated_cosine(n, *shape, seed=seed) for shape in sorted(set(shapes))])),
        }
        cut = some_tokens(trace, n, rank)
        y = subject.y[trace.lengths >= n]
        if usable(subject.y, np.flatnonzero(trace.lengths >= n)):
            cells = cells_of(y, None, "prompt")
            found = separated(pairs_between(similarity(signatures_of(cut).flat()), cells), cells.y[None])
            row |= {"within": float(found["within"][0]), "across": float(found["across"][0])}
        rows.append(row | {"n": len(cut.sequences)})
    return pd.DataFrame(rows)


def some_tokens(trace: RoutingTrace, n: int, rank: np.ndarray) -> RoutingTrace:
    """The ``n`` tokens of lowest ``rank`` (T,) of every sequence that has so many; with positions as ranks, its first."""
    return only_tokens(trace, (trace.lengths >= n)[trace.sequence] & (rank < n))


def only_tokens(trace: RoutingTrace, rows: np.ndarray) -> RoutingTrace:
    """The tokens ``rows`` (T,) bool, of the sequences that have any."""
    long = np.bincount(trace.sequence[rows], minlength=len(trace.sequences)) > 0
    return replace(
        trace,
        ids=trace.ids[rows],
        weights=None if trace.weights is None else trace.weights[rows],
        scores=None,
        sequence=(np.cumsum(long) - 1)[trace.sequence[rows]].astype(np.int32),
        position=trace.position[rows],
        generated=trace.generated[rows],
        tokens=None if trace.tokens is None else trace.tokens[rows],
        sequences=tuple(s for s, kept in zip(trace.sequences, long, strict=True) if kept),
    )
