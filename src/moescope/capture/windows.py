"""Running text in windows of one length, each of which begins as the tokenizer begins a text: a model that has learnt to read
behind ``<bos>`` predicts badly without it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from moescope.capture.encode import check_vocabulary
from moescope.models.reading import added

if TYPE_CHECKING:
    from moescope.models import LoadedModel


def opening(model: LoadedModel) -> np.ndarray:
    """int32 ids that the tokenizer puts before a text; none where the model is read without special tokens."""
    return added(model.tokenizer)[0] if model.reading.special_tokens != "none" else np.zeros(0, np.int32)


def text_ids(model: LoadedModel, pieces: Iterable[str], *, enough: int) -> np.ndarray:
    """int32 ids, without special ones, of pieces of text that follow each other, up to about ``enough`` of them.

    A piece at a time: a long text would only be refused or shortened as a whole.

    Raises:
        InputError: a token lies beyond the model's embedding.
    """
    found: list[int] = []
    for piece in pieces:
        found += model.tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"]
        if len(found) >= enough:
            break
    ids = np.array(found, dtype=np.int32)
    check_vocabulary(model, ids, "plain text")
    return ids


def windows(model: LoadedModel, ids: np.ndarray, *, length: int, most: int) -> np.ndarray:
    """int32 (N, length): consecutive windows of about ``most`` of the text's ``ids``, each behind the model's :func:`opening`.

    The opening is part of a window's length. None where the text is shorter than one window, or the window than its opening.
    """
    first = opening(model)
    body = length - len(first)
    count = max(1, min(most, len(ids)) // body) if 0 < body <= len(ids) else 0
    cut = ids[: count * max(body, 0)].reshape(count, max(body, 0))
    return np.concatenate([np.tile(first, (count, 1)), cut], axis=1) if count else np.zeros((0, length), np.int32)
