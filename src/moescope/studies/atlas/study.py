"""The atlas: a card for every expert, and whether what the cards say holds on prompts that did not choose it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from moescope.errors import InputError
from moescope.routing.cards import Decode, expert_cards, expert_shares
from moescope.routing.separation import Cells, cells_of
from moescope.routing.subject import Subject, check_categories, subject_of
from moescope.routing.trace import RoutingTrace
from moescope.routing.traced import Read, is_trace, read_routing
from moescope.studies.atlas.claims import Found, atlas_claims
from moescope.studies.atlas.held_out import HeldOut, bits, held_out, lifts
from moescope.studies.atlas.page import atlas_page
from moescope.studies.atlas.settings import AtlasSettings
from moescope.study.protocol import Context, ModelLike, PromptsLike
from moescope.study.repeat import verb
from moescope.study.result import StudyResult
from moescope.study.rows import Rows, halves
from moescope.study.run import Run
from moescope.study.verdicts import verdicts
from moescope.tasks.prompts import Prompt

_SETTINGS, _RUN = AtlasSettings(), Run()
_LABEL = 3
"""tokens of a label"""


@verb
def atlas(
    model: ModelLike | RoutingTrace, prompts: PromptsLike | None = None, settings: AtlasSettings = _SETTINGS, *, run: Run = _RUN
) -> StudyResult:
    """What is every expert for? A page of cards, with labels that other prompts confirm.

    Args:
        model: a mixture of experts (with its head, if tokens are to be generated), or a recorded trace that holds token ids,
            or as a ``Path`` the folder of one.
        prompts: labelled or bare prompts, the name of a shipped set, or a file; by default ``routing-480``, and for a trace
            what it says of its sequences.

    Returns:
        A result of kind ``"atlas"``: tables ``experts``, ``layers``, ``expert_tokens``, ``expert_categories``,
        ``expert_contexts``; artifact ``atlas``, the page.

    Raises:
        InputError: a dense model, a trace without token ids, fewer than two templates, topics or prompts in a category.

    >>> import moescope
    >>> result = moescope.atlas("moe-tiny", "routing-80", run=moescope.Run(out="atlas"))  # doctest: +SKIP
    >>> result.table("experts").query("label != ''")[["layer", "expert", "label"]]  # doctest: +SKIP
    """
    context = Context("atlas", settings, run, of=AtlasSettings, spread=True)
    read = read_routing(
        context,
        model,
        prompts,
        check=_check,
        new_tokens=settings.new_tokens,
        dense_experts=settings.dense_experts,
        twin=settings.twin,
        tokenizer=settings.tokenizer,
    )
    subject, trace, loaded = _subject(read, labelled=is_trace(model) and prompts is not None), read.trace, read.model
    if trace.tokens is None:
        raise InputError("the trace has no token ids, by which experts are described; trace again with them", "model")
    if loaded is None and settings.tokenizer is None:
        context.note("Note: without a tokenizer (--tokenizer) tokens are shown as their numbers.")
    cells = _cells(subject)
    rows = context.rows(halves("prompts", cells.groups, _choosing(cells, run.seed)))
    found = context.stage("confirming", lambda: _found(subject, read.twin, cells, rows, settings), subject=subject)
    cards = context.stage("cards", lambda: _cards(subject, settings, run), subject=subject)
    tables = {"experts": _experts(subject, found), "layers": _layers(found), **cards}
    name = str(trace.meta.get("model") or "a recorded trace") if loaded is None else loaded.name
    title = f"Atlas of the {len(tables['experts'])} experts of {name}"
    claims = verdicts(atlas_claims(found, settings.margin), settings.alpha)
    return context.result(
        model=loaded or name,
        title=title,
        claims=claims,
        tables=tables,
        artifacts={"atlas": atlas_page(title, name, tables, claims, context.notes)},
        categories=subject.categories,
        trace=dict(trace.meta),
        prompts=len(subject),
        traced_tokens=len(trace),
    )


def _check(prompts: Sequence[Prompt]) -> None:
    if any(p.category for p in prompts):
        check_categories([p.id for p in prompts], [p.category for p in prompts])


def _subject(read: Read, *, labelled: bool) -> Subject:
    """The trace with its categories; in one without, and not ``labelled`` anew, all prompts are of one."""
    tokenizer = None if read.model is None else read.model.tokenizer
    if labelled or any(s.category for s in read.trace.sequences):
        return subject_of(read.trace, read.prompts, tokenizer)
    return Subject(read.trace, np.zeros(len(read.trace.sequences), np.int64), [""], None, None, None, tokenizer)


def _cells(subject: Subject) -> Cells:
    """Cells by template, else by topic, else by prompt: the first of which each category has at least two.

    Raises:
        InputError: a single prompt.
    """
    for unit, known in (("template", subject.templates), ("topic", subject.topics), ("prompt", None)):
        if known is None and unit != "prompt":
            continue
        cells = cells_of(subject.y, known, unit)
        if np.bincount(cells.y).min() > 1:
            return cells
    raise InputError("one prompt cannot choose and judge; give at least two", "prompts")


def _choosing(cells: Cells, seed: int) -> np.ndarray:
    """bool (N,): half of the blocks, whole; half of each category's where no block is shared."""
    rng = np.random.default_rng(seed)
    blocks = np.unique(cells.block)
    nested = len(cells.y) == len(blocks)
    parts = [cells.block[cells.y == c] for c in np.unique(cells.y)] if nested else [blocks]
    chosen = np.concatenate([rng.permutation(part)[: len(part) // 2] for part in parts])
    return np.isin(cells.groups, chosen)


def _found(subject: Subject, twin: RoutingTrace | None, cells: Cells, rows: Rows, settings: AtlasSettings) -> Found:
    chooses = np.zeros(len(subject), bool)
    chooses[rows.fit] = True

    def measured(trace: RoutingTrace) -> HeldOut:
        return held_out(trace, subject.y, cells, chooses, settings.top)

    return Found(
        measured(subject.trace),
        None if twin is None else measured(subject.trace.select(part="prompt")),
        None if twin is None else measured(twin),
        cells_of(subject.y[rows.judge], cells.groups[rows.judge], cells.unit),
        len(subject.categories) > 1,
    )


def _decode(subject: Subject) -> Decode | None:
    return None if subject.tokenizer is None else subject.decode


def _cards(subject: Subject, settings: AtlasSettings, run: Run) -> dict[str, pd.DataFrame]:
    return expert_cards(subject.trace, decode=_decode(subject), top=settings.top, seed=run.seed)


def _experts(subject: Subject, found: Found) -> pd.DataFrame:
    trace, whole, several = subject.trace, found.whole, found.several
    names = [[subject.decode([t]) for t in tokens[:_LABEL]] for tokens in whole.labels]
    frame = pd.DataFrame(
        {
            "layer": whole.layer,
            "expert": trace.experts[1],
            "share": expert_shares(trace),
            "label": [" · ".join(name.strip() or repr(name) for name in label) for label in names],
            "confirmed": list(map(len, whole.labels)),
            "token_lift": lifts(whole.tokens),
            "category": [subject.categories[c] if several else "" for c in whole.category],
            "category_lift": lifts(whole.categories) if several else np.nan,
            "identity_lift": lifts(whole.identity) if several else np.nan,
        }
    )
    if found.twin is not None and several:
        largest = pd.Series(lifts(found.twin.categories)).groupby(found.twin.layer).max()
        frame["twin_largest"] = frame["layer"].map(largest)
    return frame


def _layers(found: Found) -> pd.DataFrame:
    whole, rows = found.whole, []
    for layer in np.unique(whole.layer):
        here = whole.layer == layer
        row = {
            "layer": layer,
            "experts": int(here.sum()),
            "labelled": sum(bool(label) for label, mine in zip(whole.labels, here, strict=True) if mine),
            "token_bits": bits(whole.tokens, here)[0],
            "category_bits": bits(whole.categories, here)[0],
            "identity_bits": bits(whole.identity, here)[0],
        }
        for name, part in (("prompt", found.prompt), ("twin", found.twin)):
            if part is not None:
                row |= {f"{name}_token_bits": bits(part.tokens, here)[0]}
                row |= {f"{name}_category_bits": bits(part.categories, here)[0]}
        rows.append(row)
    return pd.DataFrame(rows)
