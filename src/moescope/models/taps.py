"""One place in a running transformer: which module, and how the tensor there is read and replaced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from moescope.errors import InputError
from moescope.types import Site


class BatchShape:
    """Remembers the batch shape of the running forward pass, as a forward pre-hook on layer 0.

    Routers, and the MLP of some architectures (OPT), work on tokens flattened to (B·T, D); nothing in such a tensor says
    what B and T were.
    """

    def __init__(self) -> None:
        self.value: tuple[int, int] | None = None

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs.get("hidden_states")
        if isinstance(hidden, Tensor) and hidden.dim() == 3:
            self.value = (hidden.shape[0], hidden.shape[1])


@dataclass(frozen=True, eq=False)
class TapPoint:
    """One place in a running model: which module, which side of it, and how to read and replace the tensor there.

    With forward hooks of torch: ``side="input"`` means a forward pre-hook, whose positional arguments ``args`` go to
    :meth:`get` and :meth:`put`; ``side="output"`` a forward hook, whose output goes there. :meth:`attach` does both.
    """

    site: Site
    module: nn.Module
    side: Literal["input", "output"]
    width: int
    shape: BatchShape

    def get(self, value: Any) -> Tensor:
        """The site's tensor, shape (B, T, width), dtype of the model, from a hook's ``args`` or ``output``.

        A view where the module's own tensor allows one: clone before keeping it over an in-place operation. For a router:
        the logits over all experts, before softmax or sigmoid and before any top-k.
        """
        tensor = self._pick(value)[1]
        if tensor.dim() == 3:
            return tensor
        if self.shape.value is None:
            raise InputError(f"site {self.site}: run the model's layers from the first on, its tokens come flattened")
        return tensor.reshape(*self.shape.value, tensor.shape[-1])

    def put(self, value: Any, tensor: Tensor) -> Any:
        """``value`` with the site's tensor replaced by ``tensor`` of shape (B, T, width), cast to the original dtype.

        Raises:
            InputError: at a router that returns its chosen experts beside its logits: the choice is made inside the
                module, so new logits would change nothing.
        """
        index, old = self._pick(value)
        new = tensor.to(device=old.device, dtype=old.dtype).reshape(old.shape)
        if index is None:
            return new
        if self.site.kind == "router" and len(value) > 1:
            raise InputError(f"site {self.site} can be read but not replaced: this router picks its experts by itself")
        items = [*value]
        items[index] = new
        return tuple(items) if isinstance(value, tuple) else items

    def attach(self, function: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
        """Call ``function`` on the site's (B, T, width) tensor at each forward pass; what it returns, if not None, replaces it.

        Returns a handle with ``remove()``; the caller removes it in ``finally``.
        """
        if self.side == "output":

            def after(module: nn.Module, args: Any, output: Any) -> Any:
                new = function(self.get(output))
                return None if new is None else self.put(output, new)

            return self.module.register_forward_hook(after)

        def before(module: nn.Module, args: tuple[Any, ...]) -> Any:
            new = function(self.get(args))
            return None if new is None else self.put(args, new)

        return self.module.register_forward_pre_hook(before)

    def _pick(self, value: Any) -> tuple[int | None, Tensor]:
        """Position (None: the value is the tensor itself) and tensor of the site in what a hook was given."""
        if isinstance(value, Tensor):
            return None, value
        if isinstance(value, tuple | list):
            for index, item in enumerate(value):
                if isinstance(item, Tensor) and item.is_floating_point() and item.shape[-1] == self.width:
                    return index, item
        raise InputError(f"site {self.site}: {type(self.module).__name__} passed no tensor of width {self.width} there")


@dataclass(frozen=True, eq=False)
class Structure:
    """The layers of a model and the tap point of each of its sites, in the order of :data:`SITE_KINDS`, then of layers."""

    layers: tuple[nn.Module, ...]
    d_model: int
    taps: dict[Site, TapPoint]
    unread: str = ""
    """why it has no sites, where only the routing of its experts can be traced"""
