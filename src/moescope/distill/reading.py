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
from moescope.distill.students import Student
from moescope.distill.teacher import Teacher
from moescope.errors import InputError

_CONTEXT = 8  # tokens shown on the left of the one that the expert answers


@torch.no_grad()
def read_experts(
    teacher: Teacher,
    student: Student,
    texts: Sequence[str],
    *,
    categories: Sequence[str] | None = None,
    experts: Sequence[int] | None = None,
    top: int = 5,
    batch_tokens: int = 8192,
) -> pd.DataFrame:
    """One row per expert: how often it runs, the tokens that it prefers, and the contexts with its largest gates.

    Args:
        categories: of each text; then ``category`` is the one that the expert prefers and ``category_lift`` by how much.
        experts: which; None: the 50 that run most often, of those that run at least five times.
        top: tokens and contexts shown.

    Returns:
        Columns: expert, load (share of tokens), tokens (with the lift over the token's own rate), contexts, effective_tokens
        (exponential of the entropy over the tokens that it runs for: 1 is a single token), and the category columns.

    Raises:
        InputError: the student has no experts, or there are not as many categories as texts.
    """
    if student.spec.kind == "dense":
        raise InputError("a dense student has no experts to read")
    if categories is not None and len(categories) != len(texts):
        raise InputError(f"{len(categories)} categories for {len(texts)} texts; give one for each")
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
        if categories is not None:
            entry |= _category(np.asarray(categories), place[:, 0], [t for _, t in used])
        rows.append(entry)
    columns = ["expert", "load", "tokens", "contexts", "effective_tokens"]
    return pd.DataFrame(rows, columns=columns + (["category", "category_lift"] if categories is not None else []))


def _category(categories: np.ndarray, text: np.ndarray, used: list[int]) -> dict[str, Any]:
    """The category with the largest share among the expert's tokens over its share among all."""
    of_token = categories[text]
    names, total = np.unique(of_token, return_counts=True)
    here = np.array([(of_token[used] == name).sum() for name in names])
    lift = here / max(len(used), 1) / (total / len(of_token))
    best = int(lift.argmax())
    return {"category": str(names[best]), "category_lift": float(lift[best])}


def _context(model: Any, encoded: Any, row: int, column: int) -> str:
    ids = encoded[int(row)]
    before = _text(model, ids[max(0, column - _CONTEXT) : column])
    return f"{before}⟦{_text(model, ids[column : column + 1])}⟧"


def _text(model: Any, ids: Any) -> str:
    if model.tokenizer is None:
        return " ".join(map(str, ids))
    return model.tokenizer.decode([int(i) for i in ids]).replace("\n", "↵")
