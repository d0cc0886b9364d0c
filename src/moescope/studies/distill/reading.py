"""What an expert reads: the tokens and contexts that it answers most."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from moescope.capture import capture, encode
from moescope.capture.activations import padded_batches
from moescope.errors import InputError
from moescope.stats import permuted_label_matrix
from moescope.studies.distill.students import Student
from moescope.studies.distill.teacher import Teacher

_SHUFFLES = 499
_CONTEXT = 8  # tokens shown on the left of the one that the expert answers


@torch.no_grad()
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
    encoded = encode(model, texts)
    chosen: list[np.ndarray] = []  # (n, k) per batch, and gate, token, place beside it
    gates: list[np.ndarray] = []
    tokens: list[np.ndarray] = []
    places: list[np.ndarray] = []
    with capture(model, [teacher.site_in]) as session:
        for batch in padded_batches(model, encoded, batch_tokens, "right"):
            keep = batch.mask.clone()
            keep[:, 0] = False
            x = session.run(batch.ids, batch.mask)[teacher.site_in][keep.to(model.device)].float().cpu()
            out = student.run(student.scaling.inputs(x))
            assert out.routed is not None and out.gates is not None  # noqa: PT018
            chosen.append(out.routed.index.numpy())
            gates.append(out.gates.numpy())
            tokens.append(batch.ids[keep].numpy())
            row, column = torch.nonzero(keep, as_tuple=True)
            places.append(np.stack([batch.rows[row.numpy()], column.numpy()], axis=1))
    index, gate, token, place = (np.concatenate(part) for part in (chosen, gates, tokens, places))
    counts = np.bincount(index[gate > 0], minlength=student.spec.experts)
    wanted = [e for e in np.argsort(-counts)[:50] if counts[e] >= 5] if experts is None else list(experts)
    base = np.bincount(token) / len(token)
    uses: dict[int, list[tuple[float, int]]] = defaultdict(list)
    slot = np.full(student.spec.experts, False)
    slot[wanted] = True
    for t, j in zip(*np.nonzero(slot[index] & (gate > 0)), strict=True):
        uses[int(index[t, j])].append((float(gate[t, j]), int(t)))
    lift = None if categories is None else _Lift(categories, groups, np.bincount(place[:, 0], minlength=len(texts)))
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
        if lift is not None:
            entry |= lift.of(np.bincount(place[[t for _, t in used], 0], minlength=len(texts)))
        rows.append(entry)
    columns = ["expert", "load", "tokens", "contexts", "effective_tokens"]
    return pd.DataFrame(rows, columns=columns + (["category", "category_lift", "category_p"] if lift else []))


class _Lift:
    """The category with the largest share among an expert's tokens over its share among all, and the chance of it.

    Labels are shuffled among documents, not tokens: an expert that answers one document is no expert of its category.
    """

    def __init__(self, categories: Sequence[str | None], groups: Sequence[str] | None, tokens: np.ndarray) -> None:
        self.names = sorted({c for c in categories if c is not None})
        self.kept = np.array([i for i, c in enumerate(categories) if c is not None], dtype=int)
        own = np.array([self.names.index(c) for c in categories if c is not None], dtype=int)
        group = None if groups is None else np.asarray(groups)[self.kept]
        labels = [own[None], permuted_label_matrix(own, group, _SHUFFLES, np.random.default_rng(0))]
        self.member = np.concatenate(labels)[:, :, None] == np.arange(len(self.names))  # (1 + shuffles, texts, categories)
        self.share = np.einsum("t,stc->sc", tokens[self.kept], self.member) / max(tokens[self.kept].sum(), 1)

    def of(self, used: np.ndarray) -> dict[str, Any]:
        """``used``: the expert's tokens in each text."""
        mine = used[self.kept]
        if not mine.sum():
            return {"category": None, "category_lift": float("nan"), "category_p": float("nan")}
        lift = np.einsum("t,stc->sc", mine, self.member) / mine.sum() / np.maximum(self.share, 1e-12)
        best = lift.max(1)
        return {
            "category": self.names[int(lift[0].argmax())],
            "category_lift": float(best[0]),
            "category_p": float((1 + (best[1:] >= best[0]).sum()) / (1 + _SHUFFLES)),
        }


def _context(model: Any, encoded: Any, row: int, column: int) -> str:
    ids = encoded[int(row)]
    before = _text(model, ids[max(0, column - _CONTEXT) : column])
    return f"{before}⟦{_text(model, ids[column : column + 1])}⟧"


def _text(model: Any, ids: Any) -> str:
    if model.tokenizer is None:
        return " ".join(map(str, ids))
    return str(model.tokenizer.decode([int(i) for i in ids])).replace("\n", "↵")
