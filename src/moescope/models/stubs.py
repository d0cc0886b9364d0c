"""Layers that compute nothing: they catch what a model's body hands to each of its layers, which can then be run alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from moescope.models.load import LoadedModel

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""What a layer is called with beside the hidden states: positions, masks."""


class _Reached(Exception):
    """The last layer was called; what comes after it is not wanted."""


@contextmanager
def stubbed(layers: Sequence[nn.Module], calls: list[Any], *, last: Tensor | None = None) -> Iterator[None]:
    """For a time, ``layers`` only note (hidden states, args, options) in ``calls`` and hand the hidden states on; the last one
    gives ``last``, or ends the pass, and the context with it."""

    def stub(number: int) -> Callable[..., Any]:
        def forward(hidden_states: Tensor, *args: Any, **options: Any) -> Any:
            calls.append((hidden_states, args, options))
            if number + 1 < len(layers):
                return hidden_states
            if last is None:
                raise _Reached
            return last

        return forward

    try:
        for number, layer in enumerate(layers):
            layer.__dict__["forward"] = stub(number)
        with suppress(_Reached):
            yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def entered(model: LoadedModel, ids: Tensor) -> tuple[Tensor, list[Call]]:
    """Of token ids (B, T) what enters layer 0, (B, T, D), and what each layer is called with beside it."""
    calls: list[Any] = []
    with stubbed(model.structure.layers, calls):
        model.body(input_ids=ids.to(model.device), use_cache=False)
    return calls[0][0], [(args, options) for _, args, options in calls]


def called(layer: Any, state: Tensor, call: Call) -> Tensor:
    """What ``layer`` makes of hidden states (B, T, D)."""
    args, options = call
    out = layer(state, *args, **options)
    found: Tensor = out[0] if isinstance(out, tuple) else out
    return found
