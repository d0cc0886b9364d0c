"""The model with one MLP replaced by a student: its loss beside the original's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from moescope.capture import encode
from moescope.capture.activations import padded_batches
from moescope.distill.students import Student
from moescope.distill.teacher import Teacher
from moescope.errors import InputError


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
    teacher: Teacher, students: Mapping[str, Student], texts: Sequence[str], *, batch_tokens: int = 8192
) -> pd.DataFrame:
    """Next-token loss (nats per token) with the layer as it is, as its mean output, and as each student.

    Columns: layer_is, loss, tokens.

    Raises:
        InputError: the model was loaded without its head, or is an encoder.
    """
    model = teacher.model
    if not model.has_head or model.is_encoder:
        raise InputError(f"{model.name}: next-token loss needs a causal language model loaded with its head")
    mean = next(iter(students.values())).scaling.y_mean if students else torch.zeros(teacher.exit.width)
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "mean output": lambda x: mean.expand(*x.shape[:-1], -1),
        **students,
    }
    loss, tokens = _loss(teacher, texts, batch_tokens)
    rows = [{"layer_is": "original", "loss": loss, "tokens": tokens}]
    for name, function in ways.items():
        with spliced(teacher, function):
            loss, tokens = _loss(teacher, texts, batch_tokens)
        rows.append({"layer_is": name, "loss": loss, "tokens": tokens})
    return pd.DataFrame(rows)


@torch.no_grad()
def _loss(teacher: Teacher, texts: Sequence[str], batch_tokens: int) -> tuple[float, int]:
    model = teacher.model
    total, tokens = 0.0, 0
    for batch in padded_batches(model, encode(model, texts), batch_tokens, "right"):
        ids, mask = batch.ids.to(model.device), batch.mask.to(model.device)
        logits = model.module(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits
        target = ids[:, 1:].masked_fill(~mask[:, 1:], -100)
        total += float(
            F.cross_entropy(logits[:, :-1].float().flatten(0, 1), target.flatten(), ignore_index=-100, reduction="sum")
        )
        tokens += int(mask[:, 1:].sum())
    return total / max(tokens, 1), tokens
