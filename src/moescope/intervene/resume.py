"""Start a forward pass in the middle: layers whose output is known are not computed again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from moescope.errors import InputError
from moescope.types import Site

if TYPE_CHECKING:
    from moescope.models import LoadedModel


@contextmanager
def resumed(model: LoadedModel, layer: int, hidden: Tensor) -> Iterator[None]:
    """Inside the block layers 0..``layer`` compute nothing and the residual stream after ``layer`` is ``hidden`` (B,
    T, D).

    Hooks on those layers still run, so an intervention at ``resid:layer`` applies. Their key-value caches are not
    written. ``layer = -1`` changes nothing. Only sound for a model whose layers hand on one tensor and nothing else:
    check a result against an ordinary forward pass once, as :mod:`moescope.intervene.replicas` does.

    Raises:
        InputError: the layers cannot be replaced (:func:`can_resume` says so beforehand).
    """
    blocks = [_block(model, i) for i in range(layer + 1)]
    if any(b is None for b in blocks):
        raise InputError(f"{model.name}: its layers cannot be skipped; run it from the start")

    def known(*args: Any, **kwargs: Any) -> Tensor:
        return hidden

    swapped: list[nn.Module] = []
    try:
        for block in blocks:
            assert block is not None
            block.forward = known
            swapped.append(block)
        yield
    finally:
        for block in swapped:
            del block.forward


def can_resume(model: LoadedModel) -> bool:
    """Whether each layer is a module of its own whose ``forward`` nothing else (accelerate's offload, say) has
    replaced.
    """
    return all(_block(model, i) is not None for i in range(model.n_layers))


def _block(model: LoadedModel, layer: int) -> nn.Module | None:
    site = Site("resid", layer)
    if site not in model.sites():
        return None
    tap = model.tap_point(site)
    return tap.module if tap.side == "output" and "forward" not in vars(tap.module) else None
