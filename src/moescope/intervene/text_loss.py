"""A model's loss on texts, text by text, as it is or under an intervention: the one place where a loss is computed.

How to call it, by what is asked:

- each text's loss, one intervention at a time (experts, masks, a spliced student): :func:`text_losses`, whose ``applied``
  opens the intervention;
- one number for all tokens: :func:`loss_per_token`;
- hundreds of sets of neurons on one running text: :class:`~moescope.intervene.running_text.RunningText`;
- logits that are at hand: :func:`token_losses`; those of several models beside one: :class:`Reference`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from moescope.capture.activations import padded_batches
from moescope.capture.encode import Encoded, encode
from moescope.errors import InputError

if TYPE_CHECKING:
    from moescope.models import LoadedModel

Applied = Callable[[], AbstractContextManager[Any]]
"""Opens an intervention on a model."""


class Sorted(Protocol):
    """A text of a category and a document, as :class:`~moescope.tasks.passages.Passage` is."""

    @property
    def text(self) -> str: ...
    @property
    def category(self) -> str: ...
    @property
    def group(self) -> str: ...


_S = TypeVar("_S", bound=Sorted)
_LOGITS = 1 << 27  # logits held at once: half a gigabyte in fp32


def encode_texts(model: LoadedModel, texts: Sequence[_S], *, tokens: int, length: int) -> tuple[Encoded, list[_S]]:
    """The first ``length`` tokens of each text, as many texts of each category as fit ``tokens``, at least two.

    Documents take turns, so that few tokens still come from many documents.

    Raises:
        InputError: a category has fewer than two texts of at least 8 tokens.
    """
    texts = _by_turns(texts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that long texts were shortened: a piece of each is all that is wanted
        encoded = encode(model, [t.text for t in texts], chat=False)
    kept: list[np.ndarray] = []
    used: list[_S] = []
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


def _by_turns(texts: Sequence[_S]) -> list[_S]:
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
    require_head(model)
    losses = np.empty(len(encoded))
    vocabulary = int(model.config.get_text_config().vocab_size)
    budget = max(1, min(batch_tokens, _LOGITS // vocabulary))
    with applied() if applied is not None else nullcontext():
        for batch in padded_batches(model, encoded, budget, "right"):
            ids, mask = batch.ids.to(model.device), batch.mask.to(model.device)
            logits = model.module(input_ids=ids, attention_mask=mask.long()).logits[:, :-1]  # (B, T-1, V)
            counted = mask[:, 1:]
            losses[batch.rows] = ((token_losses(logits, ids) * counted).sum(1) / counted.sum(1)).double().cpu().numpy()
    return losses


def require_head(model: LoadedModel) -> None:
    """Raise unless the model predicts the next token.

    Raises:
        InputError: the model was loaded without its head, or is an encoder.
    """
    if not model.has_head or model.is_encoder:
        raise InputError(f"model {model.name} has no causal language-model head, so it has no loss: load it with head=True")


def loss_per_token(
    model: LoadedModel, encoded: Encoded, applied: Applied | None = None, *, batch_tokens: int = 8192
) -> tuple[float, int]:
    """Mean negative log-likelihood over all tokens that have one before them, nats, and their number.

    Raises:
        InputError: the model was loaded without its head.
    """
    counts = encoded.lengths - 1
    losses = text_losses(model, encoded, applied, batch_tokens=batch_tokens)
    total = int(counts.sum())
    return float((losses[counts > 0] * counts[counts > 0]).sum() / max(total, 1)), total


class Reference:
    """What one model predicts on a text, for others to be held beside.

    Args:
        logits: (B, T, V) or, at all places but the last, (B, T - 1, V).
        ids: int64 (B, T).
    """

    losses: Tensor
    """(B, T - 1) float32, nats of tokens 1..T-1"""

    def __init__(self, logits: Tensor, ids: Tensor) -> None:
        log = torch.log_softmax(logits[:, : ids.shape[1] - 1].float(), -1)
        self._target = ids[:, 1:, None].to(log.device)
        self.losses = -log.gather(-1, self._target)[..., 0]
        self._top = log.argmax(-1)
        self._weight = log.exp()
        self._entropy = -(self._weight * log).sum(-1)

    def beside(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Another model's losses, KL(this || that) in nats, and whether both expect the same token most: each (B, T - 1).

        Args:
            logits: of the same text, as above.
        """
        log = torch.log_softmax(logits[:, : self._target.shape[1]].float(), -1)
        losses = -log.gather(-1, self._target)[..., 0]
        kl = -torch.linalg.vecdot(self._weight, log) - self._entropy
        return losses, kl, log.argmax(-1) == self._top


def token_losses(logits: Tensor, ids: Tensor) -> Tensor:
    """(..., T - 1) float32 nats of tokens 1..T-1 under logits (..., T, V) or, at all places but the last, (..., T - 1, V).

    Args:
        ids: int64 (..., T), broadcast over the leading axes.
    """
    target = ids[..., 1:]
    predicted = logits[..., : target.shape[-1], :].float()
    target = target.expand(predicted.shape[:-1])
    return torch.nn.functional.cross_entropy(
        predicted.reshape(-1, predicted.shape[-1]), target.reshape(-1), reduction="none"
    ).view(target.shape)
