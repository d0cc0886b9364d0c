"""The model with one MLP replaced by a student: its loss and its text beside the original's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from moescope.capture import encode
from moescope.intervene.text_loss import Applied, require_head, text_losses
from moescope.models import LoadedModel
from moescope.models.past import past_argument, past_of
from moescope.stats import bootstrap_sums, expanded_percentiles
from moescope.studies.distill.students import Student
from moescope.studies.distill.teacher import Teacher


@contextmanager
def spliced(teacher: Teacher, student: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside the context the model's layer gives ``student(x)`` for its input x (B, T, d_in); hooks go on the way out.

    The layer itself still runs and its output is thrown away: this measures what the student does, not what it costs.
    """
    seen: list[Tensor] = []

    def keep(x: Tensor) -> None:
        seen[:] = [x]

    def replace(_: Tensor) -> Tensor:
        with torch.no_grad():
            return student(seen[0].float())

    handles = [teacher.entry.attach(keep), teacher.exit.attach(replace)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def splice_table(
    teacher: Teacher,
    students: Mapping[str, Student],
    texts: Sequence[str],
    *,
    documents: np.ndarray | None = None,
    batch_tokens: int = 8192,
    seed: int = 0,
) -> pd.DataFrame:
    """Table ``splice``: next-token loss with the layer as it is, as its mean output, and as each student.

    Args:
        documents: (texts,), which of them are of one document; None: each is its own.

    Raises:
        InputError: the model was loaded without its head, or is an encoder.
    """
    model = teacher.model
    mean = next(iter(students.values())).scaling.y_mean if students else torch.zeros(teacher.exit.width)
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "mean output": lambda x: mean.to(x.device).expand(*x.shape[:-1], -1),
        **students,
    }
    names, of = np.unique(np.arange(len(texts)) if documents is None else documents, return_inverse=True)

    encoded = encode(model, texts, chat=False)
    counts = encoded.lengths - 1.0

    def by_document(applied: Applied | None = None) -> np.ndarray:
        """(documents, 2): summed loss and tokens."""
        losses = text_losses(model, encoded, applied, batch_tokens=batch_tokens)
        sides = (np.where(counts > 0, losses, 0) * counts, counts)
        return np.stack([np.bincount(of, weights=side, minlength=len(names)) for side in sides], axis=1)

    whole = by_document()
    loss, tokens = float(whole[:, 0].sum() / max(whole[:, 1].sum(), 1)), int(whole[:, 1].sum())
    nothing = float("nan")
    rows = [{"layer_is": "original", "loss": loss, "tokens": tokens, "added": 0.0, "low": nothing, "high": nothing}]
    for name, function in ways.items():
        more = by_document(partial(spliced, teacher, function)) - whole * [1, 0]
        low = high = nothing
        if len(names) > 1:
            sums = bootstrap_sums(more, seed=seed)
            low, high = expanded_percentiles(sums[:, 0] / np.maximum(sums[:, 1], 1), len(names))
        added = float(more[:, 0].sum() / max(tokens, 1))
        rows.append({"layer_is": name, "loss": loss + added, "tokens": tokens, "added": added, "low": low, "high": high})
    return pd.DataFrame(rows)


@torch.no_grad()
def generation_table(
    teacher: Teacher,
    students: Mapping[str, Student],
    texts: Sequence[str],
    *,
    prompts: int = 2,
    prompt_tokens: int = 16,
    new_tokens: int = 20,
) -> pd.DataFrame:
    """Greedy continuations of the first ``prompts`` texts that are longer than ``prompt_tokens``, by the model as it is and
    with each student in the layer's place: table ``generation``, without rows if no text is long enough.

    Raises:
        InputError: as :func:`splice_table`.
    """
    model = teacher.model
    require_head(model)
    long = [ids for ids in encode(model, texts, chat=False) if len(ids) > prompt_tokens][:prompts]
    columns = ["prompt", "layer_is", "continuation", "same_tokens"]
    if not long:
        return pd.DataFrame(columns=columns)
    start = torch.tensor([[int(i) for i in ids[:prompt_tokens]] for ids in long], device=model.device)
    found = {"original": _greedy(model, start, new_tokens)}
    for name, student in students.items():
        with spliced(teacher, student):
            found[name] = _greedy(model, start, new_tokens)
    rows = []
    for i, begun in enumerate(start):
        for name, new in found.items():
            same = (new[i] == found["original"][i]).long().cumprod(0).sum()
            rows.append([_text(model, begun), name, _text(model, new[i]), int(same)])
    return pd.DataFrame(rows, columns=columns)


def _greedy(model: LoadedModel, ids: Tensor, new_tokens: int) -> Tensor:
    """(B, new_tokens) most likely tokens after prompts of one length (B, T); the end of a text ends nothing."""
    out = model.module(input_ids=ids, use_cache=True)
    new = [out.logits[:, -1].argmax(-1)]
    while len(new) < new_tokens:
        out = model.module(input_ids=new[-1][:, None], **past_argument(model.module, past_of(out)), use_cache=True)
        new.append(out.logits[:, -1].argmax(-1))
    return torch.stack(new, dim=1).cpu()


def _text(model: LoadedModel, ids: Tensor) -> str:
    listed = ids.tolist()
    return " ".join(map(str, listed)) if model.tokenizer is None else model.tokenizer.decode(listed).replace("\n", "↵")
