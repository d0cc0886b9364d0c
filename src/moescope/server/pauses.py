"""Where a long piece of work makes room for short ones: between two modules of the model."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from moescope.models import LoadedModel
from moescope.server.thread import ModelThread

_HOOKS = ("_forward_pre_hooks", "_forward_hooks")


class Pauses:
    """In a long piece, each module of the layers that holds no other asks ``thread`` before it runs whether something else is
    due. So others wait for one matrix product or one attention of a text, however long it is, and whether or not the model has
    a cache that it could be read into in parts.

    What reads or cuts the long text on its way through the model are hooks on its modules; they are put aside meanwhile, all
    but those that the model came with.
    """

    def __init__(self, model: LoadedModel, thread: ModelThread) -> None:
        self._model, self._thread = model, thread
        self._inner = [m for layer in model.structure.layers for m in layer.modules() if not any(m.children())]
        self._came = {number for module in model.module.modules() for name in _HOOKS for number in getattr(module, name)}

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Around a long piece."""
        handles = [module.register_forward_pre_hook(lambda *_: self._thread.between(self._aside)) for module in self._inner]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def _aside(self) -> Iterator[None]:
        shape = next((point.shape for point in self._model.structure.taps.values()), None)
        batch = None if shape is None else shape.value
        kept = []
        for module in self._model.module.modules():
            for name in _HOOKS:
                hooks = getattr(module, name)
                if hooks.keys() - self._came:
                    kept.append((module, name, hooks))
                    setattr(module, name, OrderedDict((n, hook) for n, hook in hooks.items() if n in self._came))
        try:
            yield
        finally:
            for module, name, hooks in kept:
                setattr(module, name, hooks)
            if shape is not None:
                shape.value = batch
