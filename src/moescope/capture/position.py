"""Which tokens of a text are read."""

from __future__ import annotations

from typing import Literal

import torch

from moescope.capture.encode import Batch
from moescope.errors import InputError

Position = Literal["final", "cls", "mean", "all"] | int
"""``"final"``: the last token. ``"cls"``: the first, an encoder's class token. ``"mean"``: the mean over tokens. ``"all"``:
every token. An int: that token of the text, from the end if negative. Of an image the tokens are its places: class token and
registers, then patches, row by row.

Special tokens (those that the tokenizer adds around the text) follow ``skip_special``: if True, positions count the
text's own tokens only; if False, every token that is not padding. None means False for ``"final"``, ``"cls"`` and an int (so
the final token of an encoder is its [SEP], and of a decoder without a closing token the last word piece) and True for
``"mean"`` and ``"all"``.
"""


def check_position(position: Position) -> Position:
    """Return the position if it is one.

    Raises:
        InputError: it is neither an int nor a known word.
    """
    if isinstance(position, bool) or (not isinstance(position, int) and position not in ("final", "cls", "mean", "all")):
        raise InputError(f'position: {position!r} is not "final", "cls", "mean", "all" or a token index')
    return position


def skips_special(position: Position, skip_special: bool | None) -> bool:
    """The special-token policy in force."""
    return position in ("mean", "all") if skip_special is None else skip_special


def eligible(batch: Batch, position: Position, skip_special: bool | None) -> torch.Tensor:
    """bool (B, T): the tokens that ``position`` counts."""
    return batch.mask & ~batch.special if skips_special(position, skip_special) else batch.mask


def token_index(batch: Batch, position: Position, skip_special: bool | None) -> torch.Tensor:
    """int64 (B,): the column of the one token that ``position`` ("final", "cls" or an int) names in each row.

    Raises:
        InputError: a text has no such token; the row is named.
    """
    mask = eligible(batch, position, skip_special)
    wanted = {"final": -1, "cls": 0}.get(str(position), position)
    assert isinstance(wanted, int)
    count = mask.sum(1)  # (B,)
    rank = wanted if wanted >= 0 else count + wanted
    rank = torch.as_tensor(rank).expand(len(count))
    bad = ((rank < 0) | (rank >= count)).nonzero().flatten()
    if len(bad):
        row = int(bad[0])
        raise InputError(
            f"position {position}: text {int(batch.numbers[row])} has only {int(count[row])} tokens; "
            "choose a nearer position or remove the text"
        )
    # the column where the running count of eligible tokens first reaches rank + 1
    return ((mask.cumsum(1) == rank[:, None] + 1) & mask).int().argmax(1)


def weights(batch: Batch, position: Position, skip_special: bool | None) -> torch.Tensor:
    """float32 (B, T): 1 at the tokens that count, 0 elsewhere, padding included.

    Raises:
        InputError: a text has no token that counts.
    """
    mask = eligible(batch, position, skip_special)
    empty = (~mask.any(1)).nonzero().flatten()
    if len(empty):
        raise InputError(f"text {int(batch.numbers[int(empty[0])])}: no tokens of its own; remove the row")
    return mask.float()
