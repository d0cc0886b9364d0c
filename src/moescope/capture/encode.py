"""Text to token ids, and token ids to length-bucketed batches that never leak padding."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple, overload

import numpy as np
import torch

from moescope.errors import InputError, check_count
from moescope.models.inputs import first_position
from moescope.models.reading import SpecialTokens, tokenized
from moescope.models.sites import check_loaded

if TYPE_CHECKING:
    from moescope.models import LoadedModel

PaddingSide = Literal["left", "right"]

_ALIKE = 0.8  # shortest over longest row of a batch, where it may choose
_CHUNK = 1024  # texts given to the tokenizer at a time: its Python lists are the largest thing that encoding allocates


@dataclass(frozen=True)
class Encoded(Sequence[np.ndarray]):
    """Token ids of N texts, packed; ``encoded[i]`` is the int32 array of text i.

    Every function of this package that takes texts also takes this, so that a text need be encoded only once.
    """

    ids: np.ndarray
    """int32 (total tokens,)"""
    special: np.ndarray
    """bool (total tokens,): the tokenizer ([CLS], [SEP], <bos>, ...) or the chat template added this token; it is not part of
    the text. A special token written out in the text itself counts as text, but for the one that the tokenizer would put
    before it."""
    offsets: np.ndarray
    """int64 (N + 1,)"""
    first: int = 0
    """number of the first text where this is a part of a larger set; used in messages"""

    @classmethod
    def from_ids(cls, ids: Iterable[Sequence[int] | np.ndarray]) -> Encoded:
        """Wrap ready-made token ids; no token counts as special."""
        rows = [np.asarray(row, dtype=np.int32) for row in ids]
        for number, row in enumerate(rows):
            if row.size == 0:
                raise InputError(f"text {number}: no tokens; remove the empty row")
        flat = np.concatenate(rows) if rows else np.zeros(0, np.int32)
        return cls(flat, np.zeros(len(flat), bool), _offsets([len(row) for row in rows]))

    @property
    def lengths(self) -> np.ndarray:
        """int64 (N,): tokens of each text, special ones included."""
        return np.diff(self.offsets)

    @property
    def sha256(self) -> str:
        """A digest of all ids, their special marks and where each text ends."""
        digest = hashlib.sha256()
        for array in (self.ids, self.special, self.offsets):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def rows(self, start: int, stop: int) -> Encoded:
        """Texts ``start`` to ``stop`` as their own :class:`Encoded`."""
        low, high = self.offsets[start], self.offsets[stop]
        return Encoded(self.ids[low:high], self.special[low:high], self.offsets[start : stop + 1] - low, self.first + start)

    def special_of(self, row: int) -> np.ndarray:
        return self.special[self.offsets[row] : self.offsets[row + 1]]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | list[np.ndarray]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.ids[self.offsets[index] : self.offsets[index + 1]]


def encode(
    model: LoadedModel,
    texts: Sequence[str] | Encoded,
    *,
    max_tokens: int | None = None,
    special_tokens: SpecialTokens | None = None,
    chat: bool | None = None,
    first_row: int = 0,
) -> Encoded:
    """Token ids of each text, without padding: see :mod:`moescope.models.reading`.

    Args:
        max_tokens: keep at most this many tokens of a text; None means as many as the model has positions for. A longer
            text loses tokens from its *left*, because the end holds the question or the answer being studied; special
            tokens that the tokenizer adds are kept at both ends. One warning gives the number of shortened texts.
        special_tokens, chat: None: as the model is to be read (:meth:`~moescope.models.LoadedModel.read_as`). Running text is
            read with ``chat=False``, whatever the model.
        first_row: number of the first text in messages, where ``texts`` is part of a larger set.

    Raises:
        InputError: a text is not a string or has no tokens of its own (the row is named), or the model has no
            tokenizer, or no chat template that can be used.
    """
    check_loaded(model)
    if max_tokens is not None:
        check_count("max_tokens", max_tokens)
    if special_tokens is not None or chat is not None:
        wanted = model.read_as(special_tokens or model.reading.special_tokens, model.reading.chat if chat is None else chat)
        model = replace(model, reading=replace(wanted.reading, met=model.reading.met))
    limit = model_limit(model)
    if max_tokens is not None and limit is not None and max_tokens > limit:
        raise InputError(f"max_tokens: {max_tokens} is more than the {limit} positions of model {model.name}")
    limit = max_tokens if max_tokens is not None else limit
    if isinstance(texts, Encoded):
        if limit is not None and len(texts) and texts.lengths.max() > limit:
            row = int(texts.lengths.argmax())
            raise InputError(f"text {texts.first + row}: {texts.lengths[row]} tokens, but the limit is {limit}; shorten it")
        check_vocabulary(model, texts.ids, "text", texts.offsets, texts.first)
        return texts
    if isinstance(texts, str):
        raise InputError("texts: one string was given; give a list of strings")
    if model.reads_images:
        return _images(model, texts, first_row, whole=max_tokens is None)
    if not hasattr(texts, "__len__") or isinstance(texts, Mapping):
        raise InputError(f"{type(texts).__name__} was given; give a list of strings", "texts")
    if model.tokenizer is None:
        raise InputError(f"model {model.name} has no tokenizer; give token ids with Encoded.from_ids")

    ids: list[np.ndarray] = []
    special: list[np.ndarray] = []
    shortened = 0
    for start in range(0, len(texts), _CHUNK):
        chunk = list(texts[start : start + _CHUNK])
        for row, text in enumerate(chunk, first_row + start):
            if not isinstance(text, str):
                raise InputError(f"text {row}: {text!r} is not a string; remove the row or fill in its text")
        read = tokenized(model.tokenizer, chunk, model.reading, encoder=model.is_encoder, first_row=first_row + start)
        for row, (tokens, mask) in enumerate(read, first_row + start):
            if mask.all():  # also where there is no token at all
                raise InputError(f"text {row}: the text is empty (no tokens); remove the row or fill in its text")
            if limit is not None and len(tokens) > limit:
                keep = _keep_end(mask, limit, row)
                tokens, mask = tokens[keep], mask[keep]
                shortened += 1
            ids.append(tokens)
            special.append(mask)
    if shortened:
        warnings.warn(
            f"{shortened} of {len(texts)} texts were longer than {limit} tokens; the start of each was dropped",
            stacklevel=2,
        )
    offsets = _offsets([len(row) for row in ids])
    if not ids:
        return Encoded(np.zeros(0, np.int32), np.zeros(0, bool), offsets, first_row)
    flat = np.concatenate(ids)
    check_vocabulary(model, flat, "text", offsets, first_row)
    return Encoded(flat, np.concatenate(special), offsets, first_row)


def _images(model: LoadedModel, paths: Sequence[str], first_row: int, *, whole: bool) -> Encoded:
    """The same of images by their paths (:mod:`moescope.models.vision.reader`)."""
    if not whole:
        raise InputError(f"{model.name} reads images, each of {model.tokenizer.places} places; leave it out", "max_tokens")
    rows = model.tokenizer.rows(list(paths), first_row)
    offsets = _offsets([len(ids) for ids, _ in rows])
    if not rows:
        return Encoded(np.zeros(0, np.int32), np.zeros(0, bool), offsets, first_row)
    ids, special = (np.concatenate(side) for side in zip(*rows, strict=True))
    return Encoded(ids, special, offsets, first_row)


def check_vocabulary(
    model: LoadedModel, ids: np.ndarray, what: str, offsets: np.ndarray | None = None, first_row: int = 0
) -> None:
    """That the model's embedding has a row for each of the token ids (total tokens,).

    Args:
        what: of what these are, in the message; numbered from ``first_row`` where ``offsets`` (N + 1,) part them.

    Raises:
        InputError: it has not; names the token, its id and where it stands.
    """
    known = model.vocabulary
    if known is None or not len(ids) or (int(ids.min()) >= 0 and int(ids.max()) < known):
        return
    place = int(np.flatnonzero((ids < 0) | (ids >= known))[0])
    number = int(ids[place])
    token = model.tokenizer.convert_ids_to_tokens(number) if model.tokenizer is not None and number >= 0 else None
    row = "" if offsets is None else f" {first_row + int(np.searchsorted(offsets, place, side='right')) - 1}"
    named = f"token {token!r} has" if token else "a token has"
    raise InputError(
        f"{what}{row}: {named} id {number}, and the embedding of {model.name} ends at {known - 1}: the tokenizer is not this "
        "model's; give the one that was saved with it, or a model whose embedding was resized with it"
    )


def _offsets(lengths: list[int]) -> np.ndarray:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(np.asarray(lengths, np.int64))])


def _keep_end(special: np.ndarray, limit: int, row: int) -> np.ndarray:
    """Mask of the tokens to keep: all special ones, and the last of the text's own that fit."""
    room = limit - int(special.sum())
    if room < 1:
        raise InputError(f"max_tokens: {limit} leaves no room for text {row} beside {special.sum()} special tokens")
    from_end = np.cumsum(~special[::-1])[::-1]  # 1 for the last token of the text itself
    return special | (from_end <= room)


def model_limit(model: LoadedModel) -> int | None:
    """The most tokens that the model has positions for, or None where its configuration gives no limit."""
    limits = []
    # transformers writes about 1e30 for "no limit known"
    declared = getattr(model.tokenizer, "model_max_length", None)
    if declared is not None and declared < 10**9:
        limits.append(int(declared))
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions:
        limits.append(int(positions) - first_position(model))
    return min(limits) if limits else None


def batches(lengths: Sequence[int] | np.ndarray, batch_tokens: int = 8192) -> list[np.ndarray]:
    """Group rows of similar length so that rows x longest <= ``batch_tokens``, longest first.

    A row that is longer than the budget has a batch of its own. A batch also ends before a row shorter than four fifths of
    its longest, once it holds a sixteenth of the budget: with few texts, a full batch would span all lengths. The order is
    a function of the lengths alone, and the largest batch comes first, so that a budget too large for the memory fails at
    once.

    Returns:
        int64 index arrays that together hold every row once.
    """
    check_count("batch_tokens", batch_tokens)
    lengths = np.asarray(lengths)
    order = np.argsort(-lengths, kind="stable")
    descending = lengths[order]
    groups = []
    start = 0
    while start < len(order):
        longest = max(1, int(descending[start]))
        alike = int(np.searchsorted(-descending, -_ALIKE * longest, side="right")) - start
        rows = min(batch_tokens // longest, max(alike, batch_tokens // 16 // longest))
        groups.append(order[start : start + max(1, rows)])
        start += max(1, rows)
    return groups


class Batch(NamedTuple):
    """One padded batch on the CPU."""

    rows: np.ndarray
    """int64 (B,): which texts"""
    numbers: np.ndarray
    """int64 (B,): their numbers in messages"""
    ids: torch.Tensor
    """int64 (B, T)"""
    mask: torch.Tensor
    """bool (B, T): a token of the text, not padding"""
    special: torch.Tensor
    """bool (B, T): a token that the tokenizer added; False at padding"""


def pad(encoded: Encoded, rows: np.ndarray, *, pad_id: int = 0, side: PaddingSide = "right") -> Batch:
    """Pad the chosen rows to the longest of them."""
    lengths = encoded.lengths[rows]
    width = int(lengths.max())
    column = np.arange(width)
    start = width - lengths if side == "left" else np.zeros_like(lengths)
    mask = (column >= start[:, None]) & (column < (start + lengths)[:, None])  # (B, T)
    source = (encoded.offsets[rows] - start)[:, None] + column
    source = np.where(mask, source, 0)
    ids = np.where(mask, encoded.ids[source], pad_id).astype(np.int64)
    special = mask & encoded.special[source]
    return Batch(rows, rows + encoded.first, torch.from_numpy(ids), torch.from_numpy(mask), torch.from_numpy(special))
