"""Tables of similarity: every measure and variant, each against its nulls, and the random-routing curve."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pandas as pd

from moescope.routing.classify import length_matched
from moescope.routing.nulls import (
    Router,
    draws,
    movable,
    pooled_cosine,
    random_cosine,
    shuffled_router,
    simulated_cosine,
    uniform_router,
)
from moescope.routing.signatures import QUANTITIES, Signatures, signatures_of
from moescope.routing.similarity import (
    Separation,
    bootstrap_separation,
    naive_interval,
    permuted,
    separation,
    similarities,
    similarity,
)
from moescope.routing.subject import Subject
from moescope.routing.trace import PARTS, Part, RoutingTrace
from moescope.stats import permutation_p, permuted_label_matrix
from moescope.studies.signatures.settings import SignatureSettings
from moescope.study.protocol import Context

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
    y, blocks = subject.y[rows], subject.blocks()
    found = separation(s, y)
    labels = permuted_label_matrix(
        y, None if blocks is None else blocks[rows], settings.n_permutations, np.random.default_rng(seed)
    )
    interval = bootstrap_separation(s, y, n_boot=settings.n_boot, seed=seed)
    naive = naive_interval(found)
    return {
        "prompts": "all",
        "quantity": of.quantity,
        "part": of.part,
        "measure": measure,
        **asdict(found),
        "gap": found.gap,
        **{f"{name}_{end}": interval[name][i] for name in ("within", "across") for i, end in enumerate(("low", "high"))},
        "d_low": interval["d_pairs"][0],
        "d_high": interval["d_pairs"][1],
        "d_naive_low": naive[0],
        "d_naive_high": naive[1],
        "p": permutation_p(found.d_pairs, permuted(s, labels)["d_pairs"]),
        "n": len(rows),
    }


def null_table(subject: Subject, settings: SignatureSettings, context: Context) -> pd.DataFrame:
    """Frequency signatures of random routings of the same tokens, one row a null; the measured routing first."""
    trace, seed = subject.trace, context.run.seed
    own = signatures_of(trace)
    s = similarity(own.flat())
    measured = separation(s, subject.y)
    labels = permuted_label_matrix(subject.y, subject.blocks(), settings.n_permutations, np.random.default_rng(seed))
    moved = float((labels != subject.y).mean())
    context.control("labels permuted", differs=moved > 0, evidence=f"{moved:.0%} of the labels are another category's")
    shuffled = "the measured routing with the prompts' categories shuffled" + (
        "" if subject.blocks() is None else " within each topic"
    )
    rows = [
        _null_row("measured routing", _columns([measured]), None, ""),
        _null_row("labels permuted", permuted(s, labels), measured.d_pairs, shuffled),
    ]
    routers: dict[str, tuple[Router, str]] = {
        "uniform": (uniform_router(trace), "every token takes its number of experts uniformly at random"),
        "own counts reshuffled": (shuffled_router(trace), "each layer's own choices dealt out anew among all tokens"),
    }
    share = 0.0 if trace.tokens is None else movable(trace.tokens)
    if trace.tokens is not None and share:
        note = f"choices dealt out among equal tokens only; {share:.0%} of tokens occur more than once and can move"
        routers["same token reshuffled"] = (shuffled_router(trace, trace.tokens), note)
    elif trace.tokens is not None:
        context.note("Note: no token occurs twice, so what token identity alone explains cannot be told.")
    for name, (router, note) in routers.items():
        found, others = [], 0
        for values in draws(router, settings.n_nulls, seed):
            found.append(separation(similarity(values.reshape(len(values), -1)), subject.y))
            others += not np.array_equal(values, own.values)
        if name == "same token reshuffled":  # where a token's identity decides, equal tokens' choices are equal too
            differs, evidence = share > 0, f"{share:.0%} of tokens get the choice of any equal one"
        else:
            differs, evidence = others > 0, f"{others} of {settings.n_nulls} draws give other signatures than were measured"
        context.control(name, differs=differs, evidence=evidence)
        rows.append(_null_row(name, _columns(found), measured.d_pairs, note))
    return pd.DataFrame(rows)


def _columns(found: list[Separation]) -> dict[str, np.ndarray]:
    return {key: np.array([getattr(f, key) for f in found]) for key in ("within", "across", "gap", "d_pairs")}


def _null_row(name: str, found: dict[str, np.ndarray], observed: float | None, note: str) -> dict[str, Any]:
    row: dict[str, Any] = {"null": name}
    for key, values in found.items():
        row |= {key: float(values.mean())}
        low, high = np.quantile(values, [0.025, 0.975]) if len(values) > 1 else (np.nan, np.nan)
        row |= {f"{key}_low": float(low), f"{key}_high": float(high)}
    row["p"] = float("nan") if observed is None else permutation_p(observed, found["d_pairs"])
    return row | {"n_draws": len(found["d_pairs"]), "note": note}


def twin_row(subject: Subject, twin: RoutingTrace, context: Context) -> dict[str, Any]:
    """A row of :func:`null_table` for a randomly initialised model, whose routing can only know tokens and positions.

    Both are compared on prompt tokens; ``note`` gives the measured d there.
    """
    prints = [str(t.meta.get("fingerprint")) for t in (subject.trace, twin)]
    context.control("random model", differs=prints[0] != prints[1], evidence=f"weights {prints[1]}, the model's {prints[0]}")
    measured = separation(similarity(signatures_of(subject.trace, part="prompt").flat()), subject.y)
    found = separation(similarity(signatures_of(twin, part="prompt").flat()), subject.y)
    note = f"prompt tokens only; the trained model has d = {measured.d_pairs:.2f} on them"
    return _null_row("random model", _columns([found]), None, note) | {"trained_d": measured.d_pairs}


def layer_nulls(subject: Subject, settings: SignatureSettings, seed: int) -> pd.DataFrame:
    """Within and across cosine of each layer under both load-balance baselines."""
    trace, rows = subject.trace, []
    for name, router in {"uniform": uniform_router(trace), "own counts reshuffled": shuffled_router(trace)}.items():
        found: list[list[Separation]] = [[] for _ in trace.layers]
        for values in draws(router, min(settings.n_nulls, 20), seed):
            for i, kept in enumerate(found):
                kept.append(separation(similarity(values[:, i]), subject.y))
        for layer, kept in zip(trace.layers, found, strict=True):
            row = {key: float(np.mean([getattr(f, key) for f in kept])) for key in ("within", "across", "d_pairs")}
            rows.append({"null": name, "layer": layer, **row})
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
            found = separation(similarity(signatures_of(cut).flat()), y)
            row |= {"within": found.within, "across": found.across}
        rows.append(row | {"n": len(cut.sequences)})
    return pd.DataFrame(rows)


def some_tokens(trace: RoutingTrace, n: int, rank: np.ndarray) -> RoutingTrace:
    """The ``n`` tokens of lowest ``rank`` (T,) of every sequence that has so many; with positions as ranks, its first."""
    long = trace.lengths >= n
    rows = long[trace.sequence] & (rank < n)
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
