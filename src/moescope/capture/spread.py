"""Texts shared out over processes: a shard is one padded batch, the same that one process would read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from moescope.capture.encode import Batch, Encoded, PaddingSide, pad
from moescope.models.copies import copy_of
from moescope.models.forward_tokens import ForwardTokens
from moescope.models.inputs import padding_id
from moescope.models.spread import Recipe
from moescope.models.taps import BatchShape

if TYPE_CHECKING:
    from moescope.models import LoadedModel

R = TypeVar("R")
Read = Callable[["LoadedModel", Iterable[Batch]], Iterator[R]]
"""Runs a model on batches and yields what is kept of each, on the CPU: of a batch alone, whatever came before."""
Progress = Callable[[int, int], None]
"""``progress(done_rows, total_rows)``, called after each batch."""

_HARMLESS = ("transformers.", "accelerate.", ForwardTokens.__module__)
_ROUND_BYTES, _ROUND_TOKENS = 1 << 28, 1 << 22  # of results and of padded tokens that one process holds at a time


def read_batches(
    model: LoadedModel,
    encoded: Encoded,
    groups: Sequence[np.ndarray],
    side: PaddingSide,
    read: Read[R],
    *,
    row_bytes: int = 0,
    progress: Progress | None = None,
) -> Iterator[tuple[np.ndarray, R]]:
    """Yield the texts of each batch, and what ``read`` makes of it; shared out where the model is spread over processes.

    The batches are those of one process, so that what a text's vector is does not depend on how many there are; only the order
    in which they come does. A model that an intervention holds is read in this process alone.

    Args:
        groups: texts of each batch (:func:`~moescope.capture.activations.batches_for`); together each text once.
        read: can be pickled, with what it returns.
        row_bytes: size of what it returns of a text.
        progress: called with (texts done, all).

    Raises:
        RuntimeError: a text was read twice, or not at all.
    """
    fill, done = padding_id(model), 0
    left = np.zeros(len(encoded), dtype=np.int64)  # times that each text is still to be read
    for rows in groups:
        left[rows] += 1
    for some in _rounds(groups, encoded.lengths, row_bytes, 1 if model.spread is None else model.spread.engine.processes):
        for number, found in _results(model, encoded, [groups[n] for n in some], side, fill, read):
            rows = groups[some[number]]
            left[rows] -= 1
            done += len(rows)
            yield rows, found
            if progress is not None:
                progress(done, len(encoded))
    if left.any():
        text = int((left != 0).argmax())
        raise RuntimeError(f"text {encoded.first + text} was read {1 - left[text]} times, not once")


def _results(
    model: LoadedModel, encoded: Encoded, groups: Sequence[np.ndarray], side: PaddingSide, fill: int, read: Read[R]
) -> Iterator[tuple[int, R]]:
    batches = (pad(encoded, rows, pad_id=fill, side=side) for rows in groups)
    if model.spread is None or _held(model):
        yield from enumerate(read(model, batches))
        return
    spread = model.spread
    costs = [len(rows) * int(encoded.lengths[rows].max()) for rows in groups]

    def here(batches: Iterable[Batch]) -> Iterator[tuple[R, float]]:
        return ((found, 0.0) for found in read(model, batches))

    elsewhere = partial(_elsewhere, spread.recipe, model.fingerprint, read)
    for number, (found, tokens) in spread.engine.map(elsewhere, list(batches), costs, here=here):
        for count in spread.counters:
            count(tokens)
        yield number, found


def _elsewhere(recipe: Recipe, fingerprint: str, read: Read[R], batches: Iterable[Batch]) -> Iterator[tuple[R, float]]:
    """Of each batch what was read and the forward tokens that it took."""
    model = copy_of(recipe, fingerprint)
    for batch in batches:
        tokens = ForwardTokens()
        with tokens.of(model, "read"):
            (found,) = read(model, [batch])
        yield found, tokens.exactly("read")


def _rounds(groups: Sequence[np.ndarray], lengths: np.ndarray, row_bytes: int, processes: int) -> Iterator[list[int]]:
    """Runs of batches whose results, and whose tokens, the processes have room for."""
    run: list[int] = []
    size = tokens = 0
    for number, rows in enumerate(groups):
        run.append(number)
        size += len(rows) * row_bytes
        tokens += len(rows) * int(lengths[rows].max())
        if processes > 1 and (size > processes * _ROUND_BYTES or tokens > processes * _ROUND_TOKENS):
            yield run
            run, size, tokens = [], 0, 0
    if run:
        yield run


def _held(model: LoadedModel) -> bool:
    """Whether a hook that other processes lack may change what the modules give."""
    return any(
        not isinstance(hook, BatchShape) and not hook.__module__.startswith(_HARMLESS)
        for module in model.body.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    )
