"""What an expert reads: the tokens and contexts that it answers most."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from moescope.capture import Encoded, capture, encode
from moescope.capture.activations import padded_batches
from moescope.errors import InputError
from moescope.studies.distill.categories import Uses, preferences
from moescope.studies.distill.students import Student
from moescope.studies.distill.teacher import Teacher

_CONTEXT = 8  # tokens shown on the left of the one that the expert answers


class _Routed(NamedTuple):
    """Every token of some texts but their first ones."""

    chosen: np.ndarray
    """(n, k), the chosen experts"""
    gate: np.ndarray
    """(n, k)"""
    token: np.ndarray
    place: np.ndarray
    """(n, 2): text and position"""

    def most_used(self, experts: int, most: int = 50) -> list[int]:
        """Those that run at least five times, most used first."""
        counts = np.bincount(self.chosen[self.gate > 0], minlength=experts)
        return [int(e) for e in np.argsort(-counts)[:most] if counts[e] >= 5]


@torch.no_grad()
def _route(teacher: Teacher, student: Student, encoded: Encoded, batch_tokens: int) -> _Routed:
    parts: list[tuple[np.ndarray, ...]] = []
    with capture(teacher.model, [teacher.site_in]) as session:
        for batch in padded_batches(teacher.model, encoded, batch_tokens, "right"):
            keep = batch.mask.clone()
            keep[:, 0] = False
            x = session.run(batch.ids, batch.mask)[teacher.site_in][keep.to(teacher.model.device)].float().cpu()
            out = student.run(student.scaling.inputs(x))
            assert out.routed is not None and out.gates is not None  # noqa: PT018
            row, column = torch.nonzero(keep, as_tuple=True)
            place = np.stack([batch.rows[row.numpy()], column.numpy()], axis=1)
            parts.append((out.routed.index.numpy(), out.gates.numpy(), batch.ids[keep].numpy(), place))
    return _Routed(*(np.concatenate(side) for side in zip(*parts, strict=True)))


def document_uses(
    teacher: Teacher,
    student: Student,
    texts: Sequence[str],
    categories: Sequence[str],
    groups: Sequence[str],
    *,
    experts: Sequence[int] | None = None,
    batch_tokens: int = 8192,
) -> Uses:
    """How often experts ran in each document.

    Args:
        categories: of each text; a document has that of its first.
        groups: document of each text.
        experts: which; None: the 50 that run most often, of those that run at least five times.
    """
    routed = _route(teacher, student, encode(teacher.model, texts, chat=False), batch_tokens)
    wanted = routed.most_used(student.spec.experts) if experts is None else experts
    return _uses(routed, wanted, student.spec.experts, categories, groups)


def _uses(
    routed: _Routed, experts: Sequence[int], of: int, categories: Sequence[str | None], groups: Sequence[str] | None
) -> Uses:
    """Texts without a category are left out."""
    kept = np.array([c is not None for c in categories])
    _, document = np.unique(np.arange(len(kept)) if groups is None else np.asarray(groups), return_inverse=True)
    _, first, document = np.unique(np.where(kept, document, -1), return_index=True, return_inverse=True)
    begin = int(not kept.all())  # the documents' place 0 is of those left out
    names = sorted({c for c in categories if c is not None})
    inside = document[routed.place[:, 0]]
    slot = np.full(of, -1)
    slot[list(experts)] = np.arange(len(experts))
    where = np.where(routed.gate > 0, slot[routed.chosen], -1)
    token, column = np.nonzero(where >= 0)
    counts = np.zeros((len(experts), len(first)))
    np.add.at(counts, (where[token, column], inside[token]), 1)
    return Uses(
        np.asarray(experts, np.int64),
        counts[:, begin:],
        np.bincount(inside, minlength=len(first))[begin:].astype(float),
        np.array([names.index(str(categories[i])) for i in first[begin:]], np.int64),
    )


def read_experts(
    teacher: Teacher,
    student: Student,
    texts: Sequence[str],
    *,
    categories: Sequence[str | None] | None = None,
    groups: Sequence[str] | None = None,
    experts: Sequence[int] | None = None,
    top: int = 5,
    batch_tokens: int = 8192,
    n_permutations: int = 999,
) -> pd.DataFrame:
    """One row per expert: how often it runs, the tokens that it prefers, and the contexts with its largest gates.

    Args:
        categories: of each text, None for a text of none, which enters everything but the lift; then ``category`` is the one
            that the expert prefers, ``category_lift`` its rate there over its rate in all categories, and ``category_p`` the
            chance of as large a lift in any category with the labels shuffled among documents.
        groups: document of each text; None: each is its own.
        experts: which; None: the 50 that run most often, of those that run at least five times.
        top: tokens and contexts shown.

    Returns:
        Table ``experts`` without neighbours.

    Raises:
        InputError: the student has no experts, or there are not as many categories or groups as texts.
    """
    if student.spec.kind == "dense":
        raise InputError("a dense student has no experts to read")
    if categories is not None and len(categories) != len(texts):
        raise InputError(f"{len(categories)} categories for {len(texts)} texts; give one for each")
    if groups is not None and len(groups) != len(texts):
        raise InputError(f"{len(groups)} groups for {len(texts)} texts; give one for each")
    model = teacher.model
    encoded = encode(model, texts, chat=False)
    routed = _route(teacher, student, encoded, batch_tokens)
    index, gate, token, place = routed
    wanted = routed.most_used(student.spec.experts) if experts is None else list(experts)
    base = np.bincount(token) / len(token)
    uses: dict[int, list[tuple[float, int]]] = defaultdict(list)
    slot = np.full(student.spec.experts, False)
    slot[wanted] = True
    for t, j in zip(*np.nonzero(slot[index] & (gate > 0)), strict=True):
        uses[int(index[t, j])].append((float(gate[t, j]), int(t)))
    rows: list[dict[str, Any]] = []
    for expert in wanted:
        used = uses[int(expert)]
        seen = Counter(int(token[t]) for _, t in used)
        share = np.array(list(seen.values())) / max(len(used), 1)
        rated = sorted(seen, key=lambda i: (-seen[i], i))[:top]
        entry: dict[str, Any] = {
            "expert": int(expert),
            "load": len(used) / len(token),
            "tokens": [f"{_text(model, [i])} ×{seen[i] / len(used) / base[i]:.0f}" for i in rated],
            "contexts": [_context(model, encoded, *place[t]) for _, t in heapq.nlargest(top, used)],
            "effective_tokens": float(np.exp(-(share * np.log(share)).sum())),
        }
        rows.append(entry)
    table = pd.DataFrame(rows, columns=["expert", "load", "tokens", "contexts", "effective_tokens"])
    if categories is None:
        return table
    names = sorted({c for c in categories if c is not None})
    found = preferences(_uses(routed, wanted, student.spec.experts, categories, groups), n_permutations)
    preferred = [names[c] if lift > 1 else None for c, lift in zip(found.category, found.lift, strict=True)]
    return table.assign(category=preferred, category_lift=found.lift, category_p=found.p)


def _context(model: Any, encoded: Any, row: int, column: int) -> str:
    ids = encoded[int(row)]
    before = _text(model, ids[max(0, column - _CONTEXT) : column])
    return f"{before}⟦{_text(model, ids[column : column + 1])}⟧"


def _text(model: Any, ids: Any) -> str:
    if model.tokenizer is None:
        return " ".join(map(str, ids))
    return str(model.tokenizer.decode([int(i) for i in ids])).replace("\n", "↵")
