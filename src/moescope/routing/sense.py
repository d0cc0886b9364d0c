"""Whether what was recorded can be routing: no expert twice in a token, no slot never written, no layer without a router.

What cannot be is refused, with its request, tokens and layers; what is merely odd is a :class:`~moescope.errors.Note`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator

import numpy as np

from moescope.errors import InputError, Note
from moescope.routing.trace import RoutingTrace

_ENOUGH = 32  # tokens from which on a router that treats all of them alike is worth a word
_SEEN = 20  # choices an expert had to get by an even load, where one that was never chosen is worth a word


def unwritten(ids: np.ndarray, n_experts: int) -> np.ndarray:
    """bool like ``ids``: slots that no expert has, be it that none was chosen or that nothing was recorded.

    Below 0; or 255 or 65535, the largest value of a byte or of two, where that is no expert.
    """
    none = ids < 0
    for most in (2**8 - 1, 2**16 - 1):
        if most >= n_experts:
            none = none | (ids == most)
    return np.asarray(none)


def check_sense(trace: RoutingTrace, where: str, recorded: np.ndarray | None = None) -> list[str]:
    """Refuse a trace that cannot be routing, and note what is odd in it.

    Args:
        recorded: bool, of the tokens that were fed to the model those that have experts; the others are not in the trace.

    Returns:
        What is odd, a line each; each is also a :class:`~moescope.errors.Note`.

    Raises:
        InputError: an expert stands twice in a token of a layer, or nothing was recorded.
    """
    if not (trace.ids != trace.empty).any():
        raise InputError(f"{where}: no token has experts: all is empty or marked as not recorded; record it again")
    _refuse_twice(trace, where)
    odd = list(_odd(trace, recorded))
    for words in odd:
        warnings.warn(Note(f"{where}: {words}"), stacklevel=3)
    return odd


def _refuse_twice(trace: RoutingTrace, where: str) -> None:
    twice = np.zeros(trace.ids.shape[:2], bool)
    for index in range(len(trace.layers)):
        ordered = np.sort(trace.ids[:, index], 1)
        twice[:, index] = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != trace.empty)).any(1)
    if not twice.any():
        return
    zeros = (trace.ids == 0).all(2)
    idle = [layer for layer, column in zip(trace.layers, zeros.T, strict=True) if column.all()]
    if idle and len(idle) < len(trace.layers):
        kept = [layer for layer in trace.layers if layer not in idle]
        raise InputError(
            f"{where}: {_many('layer', idle)}: expert 0 in every slot of every token, as where a dense layer is counted among "
            f"those with experts; name these: --layers {ranges(kept)}"
        )
    row = int(np.flatnonzero(twice.any(1))[0])
    here = trace.sequence == trace.sequence[row]
    tokens = trace.position[here & twice.any(1)]
    layers = [layer for layer, bad in zip(trace.layers, twice[here].any(0), strict=True) if bad]
    ids = np.sort(trace.ids[row, int(np.flatnonzero(twice[row])[0])])
    expert = int(ids[1:][ids[1:] == ids[:-1]][0])
    others = len(np.unique(trace.sequence[twice.any(1)])) - 1
    looks = "; slots that were never written look so" if zeros[twice].all() else ""
    raise InputError(
        f"{where}: request {trace.sequences[int(trace.sequence[row])].id}, {_many('token', tokens.tolist())}, "
        f"{_many('layer', layers)}: expert {expert} stands twice in one token, which no router does{looks}"
        + (f" ({others} more requests have such tokens)" if others else "")
        + "; record it again, or leave these tokens out"
    )


def _odd(trace: RoutingTrace, recorded: np.ndarray | None) -> Iterator[str]:
    if recorded is not None and not recorded.all():
        yield f"{(~recorded).sum()} of {len(recorded)} tokens are marked as not recorded, and left out"
    sets = np.sort(trace.ids, 2)
    same = (sets == sets[:1]).all(2)
    if len(trace) >= _ENOUGH and max(trace.n_experts) > trace.top_k:
        alike = [layer for layer, column in zip(trace.layers, same.T, strict=True) if column.all()]
        if alike:
            yield f"{_many('layer', alike)}: all {len(trace)} tokens have the same experts, as where a layer has no router"
        pairs = zip(range(len(trace.layers)), range(1, len(trace.layers)), strict=False)
        copies = [trace.layers[b] for a, b in pairs if trace.n_experts[a] > trace.top_k and (sets[:, a] == sets[:, b]).all()]
        if copies and not alike:
            yield f"{_many('layer', copies)}: the experts of every token are those of the layer before"
    for number, rows in _constant(trace, sets):
        yield f"request {trace.sequences[number].id}: all its {rows} tokens have the same experts in every layer"
    used = trace.ids != trace.empty
    if trace.top_k > 1 and used.sum() >= _ENOUGH * trace.top_k and not (np.diff(trace.ids.astype(np.int64), axis=2) < 0).any():
        yield "the experts of every token stand in rising order: by number, not by weight"
    choices = used.sum() / max(trace.n_experts)
    top = int(trace.ids[used].max())
    if choices >= _SEEN and top < max(trace.n_experts) - 1:
        yield f"no token was sent to an expert beyond {top} of {max(trace.n_experts)}: is their number right?"
    yield from _gaps(trace)


def _constant(trace: RoutingTrace, sets: np.ndarray) -> Iterator[tuple[int, int]]:
    """Requests of some tokens, all of which were sent to the same experts, and how many these are."""
    change = np.r_[True, (trace.sequence[1:] != trace.sequence[:-1])]
    moved = np.r_[False, (sets[1:] != sets[:-1]).any((1, 2))] & ~change
    moves = np.bincount(trace.sequence, moved, minlength=len(trace.sequences))
    for number in np.flatnonzero((moves == 0) & (trace.lengths >= 8)):
        yield int(number), int(trace.lengths[number])


def _gaps(trace: RoutingTrace) -> Iterator[str]:
    first = np.r_[True, trace.sequence[1:] != trace.sequence[:-1]]
    late = [int(n) for n in trace.sequence[first & (trace.position > 0) & ~trace.generated]]
    if late:
        name = trace.sequences[late[0]].id
        yield f"{len(late)} requests begin after their first token ({name} first), as from a cached prefix: the rest is missing"
    missing = int(((np.diff(trace.position) != 1) & ~first[1:]).sum())
    if missing:
        yield f"tokens are missing at {missing} places within requests"


def ranges(numbers: Iterable[int]) -> str:
    """``3-6,8`` of 3, 4, 5, 6, 8."""
    found: list[list[int]] = []
    for n in sorted(set(numbers)):
        if found and n == found[-1][1] + 1:
            found[-1][1] = n
        else:
            found.append([n, n])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in found)


def _many(word: str, numbers: list[int]) -> str:
    """``token 5`` or ``tokens 5-7, 9`` and, of very many, the first."""
    text = ranges(numbers).split(",")
    return f"{word}{'s' * (len(set(numbers)) > 1)} {', '.join(text[:6])}" + (" and others" if len(text) > 6 else "")
