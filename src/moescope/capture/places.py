"""Activations at given words of a text: characters to tokens by the tokenizer's offsets, several places a text in one pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from moescope.capture.activations import batches_for, check_finite
from moescope.capture.encode import Batch, Encoded
from moescope.capture.session import capture
from moescope.capture.spread import Progress, read_batches
from moescope.errors import InputError
from moescope.types import Site

if TYPE_CHECKING:
    from moescope.models import LoadedModel


@dataclass(frozen=True)
class Places:
    """Where each of N rows is read: at token ``token[i]`` of text ``text[i]`` of an :class:`Encoded`; int64 (N,) both."""

    text: np.ndarray
    token: np.ndarray


def word_places(
    model: LoadedModel, texts: Sequence[str], encoded: Encoded, text: Sequence[int], spans: Sequence[tuple[int, int]]
) -> Places:
    """The last token of each word: what a causal model has read the whole word at.

    Args:
        texts: as they were encoded, T of them; ``encoded``: their tokens.
        text: of which text each of N words is. spans: its first character, and the one after its last.

    Raises:
        InputError: the tokenizer tells no offsets, a text's tokens are not those of the text alone (a chat template that
            changes it), or a word was cut off with the start of its text.
    """
    tokenizer = model.tokenizer
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            f"the tokenizer of {model.name} does not tell where a token stands in its text; labels for words need it"
        )
    found = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    token = np.empty(len(spans), dtype=np.int64)
    aligned: dict[int, tuple[np.ndarray, np.ndarray, int]] = {}
    for row, (number, (_, end)) in enumerate(zip(text, spans, strict=True)):
        if number not in aligned:
            aligned[number] = _aligned(model, encoded, number, found["input_ids"][number], found["offset_mapping"][number])
        own, starts, lost = aligned[number]
        last = int(np.searchsorted(starts, end - 1, side="right")) - 1  # the token that holds the word's last character
        if last < lost:
            raise InputError(f"text {number}: the word at {spans[row]} was cut off; raise max_tokens or shorten the text")
        token[row] = own[last - lost]
    return Places(np.asarray(text, dtype=np.int64), token)


def _aligned(
    model: LoadedModel, encoded: Encoded, number: int, ids: list[int], offsets: list[tuple[int, int]]
) -> tuple[np.ndarray, np.ndarray, int]:
    """Of one text: where its own tokens stand, each one's first character, and how many of them were cut off on the left."""
    own = np.flatnonzero(~encoded.special_of(number))
    lost = len(ids) - len(own)
    if lost < 0 or not np.array_equal(encoded[number][own], np.asarray(ids[lost:], dtype=np.int32)):
        raise InputError(
            f"text {number}: {model.name} reads it as other tokens than the text alone has, so words cannot be found in it; "
            "leave the chat template out (chat=False)",
            "chat",
        )
    # a token's offsets may take in the space before its word, and a token that is part of a character none of its own
    starts = np.maximum.accumulate([start for start, _ in offsets]) if offsets else np.zeros(0, np.int64)
    return own, starts, lost


def read_places(
    out: Mapping[Site, np.ndarray],
    model: LoadedModel,
    encoded: Encoded,
    places: Places,
    *,
    batch_tokens: int,
    progress: Progress | None = None,
) -> None:
    """Fill arrays (N, width), float32, with each site's vectors at N places, in one pass over the texts.

    Raises:
        InputError: an activation that is not finite.
    """
    order = np.argsort(places.text, kind="stable")
    starts = np.searchsorted(places.text[order], np.arange(len(encoded) + 1))
    read = partial(_read, sites=tuple(out), starts=starts, token=places.token[order])
    groups = batches_for(model, encoded.lengths, batch_tokens, "right")
    size = 4 * sum(model.width(site) for site in out) * max(1, -(-len(order) // max(1, len(encoded))))
    for rows, found in read_batches(model, encoded, groups, "right", read, row_bytes=size, progress=progress):
        filled = order[np.concatenate([np.arange(starts[row], starts[row + 1]) for row in rows])]
        for site, vectors in zip(out, found, strict=True):
            out[site][filled] = vectors


def _read(
    model: LoadedModel, batches: Iterable[Batch], *, sites: Sequence[Site], starts: np.ndarray, token: np.ndarray
) -> Iterator[list[np.ndarray]]:
    """Of each batch, at every site, float32 (places of its texts, width)."""
    with capture(model, list(sites)) as session:
        for batch in batches:
            counts = starts[batch.rows + 1] - starts[batch.rows]
            row = torch.from_numpy(np.repeat(np.arange(len(batch.rows)), counts))
            column = torch.from_numpy(np.concatenate([token[starts[r] : starts[r + 1]] for r in batch.rows]))

            def reduce(_: Site, tensor: torch.Tensor, row: torch.Tensor = row, column: torch.Tensor = column) -> torch.Tensor:
                return tensor[row.to(tensor.device), column.to(tensor.device)].float().cpu()

            seen = session.run(batch.ids, batch.mask, reduce=reduce)
            for site in sites:
                check_finite(seen[site][:, None], np.repeat(batch.numbers, counts), [site], model)
            yield [seen[site].numpy() for site in sites]
