"""Whether what was recorded can be routing: no expert twice in a token, no slot never written, no layer without a router.

What cannot be is refused, with its request, tokens and layers; what is merely odd is a :class:`~moescope.errors.Note`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from moescope.errors import InputError, Note
from moescope.routing.trace import RoutingTrace

_FEW = 8  # tokens of a request
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


@dataclass(frozen=True, eq=False)
class _Seen:
    """What one pass over the layers finds."""

    twice: np.ndarray
    """(T, L) bool: an expert stands twice in a token"""
    alike: list[int]
    """layers in which every token has the same experts"""
    copies: list[int]
    """layers in which every token has the experts of the layer before"""
    moved: np.ndarray
    """(T,) bool: in some layer other experts than the token before"""
    rising: bool
    """in every token experts stand by number"""


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
    seen = _look(trace)
    if seen.twice.any():
        raise _twice(trace, seen.twice, where)
    odd = list(_odd(trace, seen, recorded))
    for words in odd:
        warnings.warn(Note(f"{where}: {words}"), stacklevel=3)
    return odd


def _look(trace: RoutingTrace) -> _Seen:
    twice = np.zeros(trace.ids.shape[:2], bool)
    moved = np.zeros(len(trace), bool)
    # a set of experts as one number, the sum of a random one for each: sets that differ have others but for chance of 2^-64
    numbers = np.random.default_rng(0).integers(2**64, size=max(trace.n_experts) + 1, dtype=np.uint64)
    alike, copies, rising, before = [], [], True, None
    for index, layer in enumerate(trace.layers):
        slots = np.ascontiguousarray(trace.ids[:, index].T)  # (K, T)
        # slots are few: comparing each two of them is faster than sorting a token's
        for a in range(1, trace.top_k):
            for b in range(a):
                twice[:, index] |= (slots[a] == slots[b]) & (slots[a] != trace.empty)
        rising = rising and not (slots[1:] < slots[:-1]).any()
        sets = np.zeros(len(trace), np.uint64)
        for slot in slots:
            sets += numbers[np.minimum(slot, max(trace.n_experts))]
        differs = sets[1:] != sets[:-1]
        moved[1:] |= differs
        if trace.n_experts[index] > trace.top_k:
            if not differs.any():
                alike.append(layer)
            elif before is not None and np.array_equal(sets, before):
                copies.append(layer)
        before = sets
    return _Seen(twice, alike, copies, moved, rising)


def _twice(trace: RoutingTrace, twice: np.ndarray, where: str) -> InputError:
    zeros = (trace.ids == 0).all(2)
    idle = [layer for layer, column in zip(trace.layers, zeros.T, strict=True) if column.all()]
    if idle and len(idle) < len(trace.layers):
        kept = [layer for layer in trace.layers if layer not in idle]
        return InputError(
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
    return InputError(
        f"{where}: request {trace.sequences[int(trace.sequence[row])].id}, {_many('token', tokens.tolist())}, "
        f"{_many('layer', layers)}: expert {expert} stands twice in one token, which no router does{looks}"
        + (f" ({others} more requests have such tokens)" if others else "")
        + "; record it again, or leave these tokens out"
    )


def _odd(trace: RoutingTrace, seen: _Seen, recorded: np.ndarray | None) -> Iterator[str]:
    if recorded is not None and not recorded.all():
        yield f"{(~recorded).sum()} of {len(recorded)} tokens are marked as not recorded, and left out"
    if len(trace) >= _ENOUGH and seen.alike:
        yield f"{_many('layer', seen.alike)}: all {len(trace)} tokens have the same experts, as where a layer has no router"
    if len(trace) >= _ENOUGH and seen.copies:
        yield f"{_many('layer', seen.copies)}: the experts of every token are those of the layer before"
    first = np.r_[True, trace.sequence[1:] != trace.sequence[:-1]]
    moves = np.bincount(trace.sequence, seen.moved & ~first, minlength=len(trace.sequences))
    for number in np.flatnonzero((moves == 0) & (trace.lengths >= _FEW)):
        name, n = trace.sequences[number].id, trace.lengths[number]
        yield f"request {name}: all its {n} tokens have the same experts in every layer"
    used = trace.ids != trace.empty
    if seen.rising and trace.top_k > 1 and used.sum() >= _ENOUGH * trace.top_k:
        yield "the experts of every token stand in rising order: by number, not by weight"
    top = int(trace.ids.max(where=used, initial=0))
    if used.sum() >= _SEEN * max(trace.n_experts) and top < max(trace.n_experts) - 1:
        yield f"no token was sent to an expert beyond {top} of {max(trace.n_experts)}: is their number right?"
    yield from _gaps(trace, first)


def _gaps(trace: RoutingTrace, first: np.ndarray) -> Iterator[str]:
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
