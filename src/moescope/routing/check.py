"""Whether a routing trace is what it says it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from moescope.errors import InputError


class Traced(Protocol):
    """What a routing trace is made of; see :class:`moescope.routing.trace.RoutingTrace`."""

    @property
    def layers(self) -> tuple[int, ...]: ...
    @property
    def n_experts(self) -> tuple[int, ...]: ...
    @property
    def empty(self) -> int: ...
    @property
    def ids(self) -> np.ndarray: ...
    @property
    def weights(self) -> np.ndarray | None: ...
    @property
    def sequence(self) -> np.ndarray: ...
    @property
    def position(self) -> np.ndarray: ...
    @property
    def generated(self) -> np.ndarray: ...
    @property
    def tokens(self) -> np.ndarray | None: ...
    @property
    def scores(self) -> np.ndarray | None: ...
    @property
    def sequences(self) -> Sequence[object]: ...


def check_trace(trace: Traced, where: str) -> None:
    """Raise unless shapes, types and order fit and every id is within its layer's experts.

    Raises:
        InputError: naming ``where`` and the array, or the row, layer and id.
    """
    for name in ("ids", "sequence", "position", "generated", "weights", "tokens", "scores"):
        given = getattr(trace, name)
        if not isinstance(given, np.ndarray) and (given is not None or name in ("ids", "sequence", "position", "generated")):
            raise InputError(f"{where}: {name} must be a numpy array, not {type(given).__name__}")
    for name in ("layers", "n_experts", "sequences"):
        if not isinstance(getattr(trace, name), tuple):
            raise InputError(f"{where}: {name} must be a tuple, not {type(getattr(trace, name)).__name__}")
    n_layers = len(trace.layers)
    if trace.ids.ndim != 3 or trace.ids.dtype.kind != "u":
        raise InputError(f"{where}: ids must be unsigned integers of shape (tokens, layers, k), not {_say(trace.ids)}")
    rows, found, width = trace.ids.shape
    if found != n_layers or len(trace.n_experts) != n_layers:
        raise InputError(
            f"{where}: ids have {found} layers, but {n_layers} layer numbers and {len(trace.n_experts)} numbers of experts"
            " are given; give one of each per traced layer"
        )
    if any(a >= b for a, b in zip(trace.layers, trace.layers[1:], strict=False)):
        raise InputError(f"{where}: layer numbers {list(trace.layers)} must rise")
    shapes: dict[str, tuple[np.ndarray | None, tuple[int, ...], str]] = {
        "weights": (trace.weights, (rows, n_layers, width), "f"),
        "sequence": (trace.sequence, (rows,), "i"),
        "position": (trace.position, (rows,), "i"),
        "generated": (trace.generated, (rows,), "b"),
        "tokens": (trace.tokens, (rows,), "i"),
        "scores": (trace.scores, (rows, n_layers, max(trace.n_experts, default=0)), "f"),
    }
    for name, (array, shape, kind) in shapes.items():
        if array is not None and (array.shape != shape or array.dtype.kind != kind):
            raise InputError(f"{where}: {name} is {_say(array)}, but {rows} tokens need shape {shape}")
    if any(n > np.iinfo(trace.ids.dtype).max for n in trace.n_experts):
        raise InputError(f"{where}: ids of type {trace.ids.dtype} cannot name {max(trace.n_experts)} experts")
    for name, array, seen in (
        ("weights", trace.weights, (slice(None),) * n_layers),
        ("scores", trace.scores, tuple(slice(n) for n in trace.n_experts)),
    ):
        for index, layer in enumerate(trace.layers if array is not None else ()):
            values = array[:, index, seen[index]]  # type: ignore[index]
            if not np.isfinite(values).all():
                row = int(np.flatnonzero(~np.isfinite(values).all(1))[0])
                raise InputError(
                    f"{where}: row {row}, layer {layer}: the router's {name} are not finite; the model's weights are damaged, "
                    "or overflow in this dtype: try --dtype fp32 or bf16"
                )
    if rows and (trace.position.min() < 0 or (trace.tokens is not None and trace.tokens.min() < 0)):
        raise InputError(f"{where}: positions and tokens must not be negative")
    if rows and (trace.sequence[0] < 0 or trace.sequence[-1] >= len(trace.sequences) or (np.diff(trace.sequence) < 0).any()):
        raise InputError(f"{where}: sequence numbers must rise from row to row within 0-{len(trace.sequences) - 1}")
    check_ids(trace.ids, trace.layers, trace.n_experts, where, trace.empty)


def check_ids(
    ids: np.ndarray, layers: tuple[int, ...], n_experts: tuple[int, ...], where: str, empty: int | None = None
) -> None:
    """Raise where an id of ``ids`` (T, L, K) is negative or no expert of its layer; ``empty`` marks an unused slot.

    Raises:
        InputError: naming the first such row, its layer, and the id.
    """
    for index, (layer, n) in enumerate(zip(layers, n_experts, strict=True)):
        column = ids[:, index]
        # one pass in the common case; the slow search for the row only when there is one to be found
        bad = (column < 0) | (column >= n) if ids.dtype.kind == "i" else column >= n
        if empty is not None:
            bad &= column != empty
        if bad.any():
            row, slot = (int(i) for i in np.argwhere(bad)[0])
            raise InputError(
                f"{where}: row {row}, layer {layer}: expert id {int(column[row, slot])} is out of range, the layer has experts"
                f" 0-{n - 1}"
            )


def _say(array: np.ndarray) -> str:
    return f"{array.dtype} of shape {array.shape}"
