"""A model's loss on texts, text by text, as it is or under an intervention."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from moescope.capture.encode import Encoded, batches, encode, pad, padding_id
from moescope.errors import InputError

if TYPE_CHECKING:
    from moescope.models import LoadedModel
    from moescope.tasks.passages import Passage

Applied = Callable[[], AbstractContextManager[Any]]
"""Opens an intervention on a model."""

_LOGITS = 1 << 27  # logits held at once: half a gigabyte in fp32


def encode_texts(model: LoadedModel, texts: Sequence[Passage], *, tokens: int, length: int) -> tuple[Encoded, list[Passage]]:
    """The first ``length`` tokens of each text, as many texts of each category as fit ``tokens``, at least two.

    Documents take turns, so that few tokens still come from many documents.

    Raises:
        InputError: a category has fewer than two texts of at least 8 tokens.
    """
    texts = _by_turns(texts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that long texts were shortened: a piece of each is all that is wanted
        encoded = encode(model, [t.text for t in texts])
    kept: list[np.ndarray] = []
    used: list[Passage] = []
    spent: dict[str, int] = {t.category: 0 for t in texts}
    counts = dict.fromkeys(spent, 0)
    for row, text in enumerate(texts):
        ids = encoded[row][:length]
        if len(ids) >= 8 and (spent[text.category] + len(ids) <= tokens or counts[text.category] < 2):
            spent[text.category] += len(ids)
            counts[text.category] += 1
            kept.append(ids)
            used.append(text)
    few = next((c for c, n in counts.items() if n < 2), None)
    if few is not None:
        raise InputError(f"category {few!r}: {counts[few]} texts of 8 tokens or more; an effect needs at least two")
    return Encoded.from_ids(kept), used


def _by_turns(texts: Sequence[Passage]) -> list[Passage]:
    """The first text of every document, then the second of every document, and so on."""
    seen: dict[tuple[str, str], int] = {}
    turns = []
    for text in texts:
        turns.append(seen.get((text.category, text.group), 0))
        seen[text.category, text.group] = turns[-1] + 1
    return [texts[i] for i in sorted(range(len(texts)), key=lambda i: turns[i])]


@torch.no_grad()
def text_losses(
    model: LoadedModel, encoded: Encoded, applied: Applied | None = None, *, batch_tokens: int = 8192
) -> np.ndarray:
    """float64 (N,): mean negative log-likelihood of each text's tokens after the first, nats per token.

    Args:
        applied: makes the context in which the model runs.

    Raises:
        InputError: the model was loaded without its head.
    """
    if not model.has_head or model.is_encoder:
        raise InputError(f"model {model.name} has no causal language-model head, so it has no loss: load it with head=True")
    losses = np.empty(len(encoded))
    vocabulary = int(model.config.get_text_config().vocab_size)
    budget = max(1, min(batch_tokens, _LOGITS // vocabulary))
    with applied() if applied is not None else nullcontext():
        for rows in batches(encoded.lengths, budget):
            batch = pad(encoded, rows, pad_id=padding_id(model))
            ids, mask = batch.ids.to(model.device), batch.mask.to(model.device)
            logits = model.module(input_ids=ids, attention_mask=mask.long()).logits[:, :-1]  # (B, T-1, V)
            likelihood = -torch.nn.functional.cross_entropy(
                logits.reshape(-1, logits.shape[-1]).float(), ids[:, 1:].reshape(-1), reduction="none"
            ).view(ids.shape[0], -1)
            counted = mask[:, 1:]
            losses[rows] = (-(likelihood * counted).sum(1) / counted.sum(1)).double().cpu().numpy()
    return losses
