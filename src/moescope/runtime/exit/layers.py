"""Run a model layer by layer on a batch that shrinks: rows leave, the rest goes on compacted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from moescope.errors import InputError
from moescope.models.inputs import BodyInputs
from moescope.types import Site

if TYPE_CHECKING:
    from moescope.models import LoadedModel

Decide = Callable[[int, Tensor], Tensor | None]
"""``decide(layer, hidden)`` sees the residual stream (B', T', D) after a layer, of the rows still there and as wide as the
longest of them, and returns which of them stay, as int64 positions (n,) in ascending order among the B'; None: all of them."""
Place = tuple[tuple[str | int, ...], int]
"""Where something stands among a layer's arguments, and how many dimensions it has."""


class _Stop(Exception):
    """Nobody is left."""


class Stepper:
    """Made by :func:`stepping`; :meth:`run` runs the model body on one batch.

    The body's own forward pass runs, with hooks on its layers: what it hands to a layer beside the hidden state (masks,
    rotary angles, position ids) is cut to the rows that are left and to the longest of them, and a layer's output to those
    that stay. So nothing of an architecture's loop is rebuilt here, and a model without early exits goes through exactly its
    own code.
    """

    def __init__(self, model: LoadedModel, axes: dict[Place, tuple[int, ...]] | None) -> None:
        self.model = model
        self._inputs = BodyInputs(model)
        self._axes = axes  # of what comes beside the hidden state, those that count tokens; None: padding stays
        self._decide: Decide | None = None
        self._rows = self._tokens = self._width = 0  # of the batch, and the longest row still there
        self._lengths = torch.empty(0)
        self._left: Tensor | None = None  # of the batch, the rows still there; None: all
        self._cut: dict[int, tuple[Tensor, Tensor]] = {}  # what was cut for them, by the whole tensor's id

    def run(self, ids: Tensor, mask: Tensor, decide: Decide) -> None:
        """Run on token ids (B, T) with their mask (bool, true where there is a token) until no row is left.

        Padding must be on the right. After the last layer ``decide`` lets nobody stay where rows have left before.
        """
        inputs = self._inputs(ids, mask)
        self._decide, self._left = decide, None
        self._rows, self._tokens = ids.shape
        self._width, self._lengths = self._tokens, mask.sum(1).to(self.model.device)
        try:
            with torch.no_grad():
                self.model.body(**inputs)
        except _Stop:
            pass
        finally:
            self._decide, self._left = None, None
            self._cut.clear()

    def before(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Pre-hook of every layer: what comes beside the hidden state is cut to the rows still there."""
        if self._left is None:
            return None
        named = {key: value if key == "hidden_states" else self._rest(value, (key,)) for key, value in kwargs.items()}
        # the hidden state comes first where it is not named, and is cut already
        return (*args[:1], *(self._rest(value, (i,)) for i, value in enumerate(args[1:], 1))), named

    def after(self, layer: int, output: Any) -> Any:
        """Hook of every layer: who stays? Returns the cut output, or None to leave it as it is."""
        if self._decide is None:
            return None
        hidden = output if isinstance(output, Tensor) else output[0]
        stay = self._decide(layer, hidden)
        if stay is None or len(stay) == len(hidden):
            return None
        if not len(stay):
            raise _Stop
        self._left = stay if self._left is None else self._left[stay]
        self._cut.clear()
        if self._axes is not None:
            self._width = int(self._lengths[self._left].max())
        hidden = hidden[:, : self._width][stay]
        return hidden if isinstance(output, Tensor) else type(output)((hidden, *output[1:]))

    def _rest(self, value: Any, path: tuple[str | int, ...]) -> Any:
        if isinstance(value, tuple | list):
            return type(value)(self._rest(item, (*path, i)) for i, item in enumerate(value))
        if isinstance(value, dict):
            return {key: self._rest(item, (*path, key)) for key, item in value.items()}
        if not isinstance(value, Tensor):
            return value
        known = self._cut.get(id(value))
        if known is None:
            known = (value, self._fewer_rows(self._narrower(value, path)))
            self._cut[id(value)] = known  # the whole one is kept with it, so that its id stays its own
        return known[1]

    def _narrower(self, value: Tensor, path: tuple[str | int, ...]) -> Tensor:
        if self._axes is None:
            return value
        # Found in the run that checks, whose rows have a length that is no other size; a later one might be a head's width.
        axes = self._axes.get((path, value.dim()))
        if axes is None:
            axes = tuple(axis for axis, size in enumerate(value.shape) if size == self._tokens)
            self._axes[path, value.dim()] = axes
        for axis in axes:
            value = value.narrow(axis, 0, min(self._width, value.shape[axis]))
        return value

    def _fewer_rows(self, value: Tensor) -> Tensor:
        # one-dimensional tensors count positions, not rows; BLOOM's alibi has (rows · heads) in front
        if value.dim() < 2 or self._rows == 1 or value.shape[0] % self._rows:
            return value
        if value.shape[0] == self._rows:
            return value[self._left]
        return value.reshape(self._rows, -1, *value.shape[1:])[self._left].flatten(0, 1) if value.dim() > 2 else value


@contextmanager
def stepping(model: LoadedModel) -> Iterator[Stepper]:
    """``with stepping(model) as stepper``: the hooks are on the layers, and nothing is dropped out; both end on the way out. Of
    a model that :func:`check_leaving` has let pass."""
    stepper = Stepper(model, _axes.get(model.body))
    handles = []
    training = [module for module in model.body.modules() if module.training]
    if training:
        model.body.eval()
    try:
        for number in range(model.n_layers):
            module = model.structure.taps[Site("resid", number)].module
            handles.append(module.register_forward_pre_hook(lambda _, a, k: stepper.before(a, k), with_kwargs=True))
            handles.append(module.register_forward_hook(lambda _, __, out, n=number: stepper.after(n, out)))
        yield stepper
    finally:
        for handle in handles:
            handle.remove()
        for module in training:
            module.training = True


def _check_layers(model: LoadedModel) -> None:
    """Raises InputError where the model cannot be stopped between layers."""
    from moescope.capture.session import is_offloaded
    from moescope.models.experts import mixes_tokens
    from moescope.models.experts.layers import find_layers

    if is_offloaded(model):
        raise InputError(
            f"{model.name}: some weights are offloaded, so stopping early saves nothing; load it without device_map"
        )
    points = [model.structure.taps.get(Site("resid", i)) for i in range(model.n_layers)]
    if not points or any(p is None or p.side != "output" for p in points):
        raise InputError(f"model type {model.config.model_type!r}: its layers are not known, so rows cannot leave between them")
    if mixes_tokens(model, find_layers(model.body, model.name)):
        raise InputError(
            f"model type {model.config.model_type!r} routes a token by what else is in the batch, so rows cannot leave it"
        )


_axes: WeakKeyDictionary[nn.Module, dict[Place, tuple[int, ...]] | None] = WeakKeyDictionary()
"""Of bodies that have been checked."""


def check_leaving(model: LoadedModel) -> None:
    """Once for each model: run three short rows of random tokens with rows leaving, and each by itself; the same must come out.
    A body for which that holds only with its padding left in place keeps it.

    Raises:
        InputError: it does not: this architecture hands something from layer to layer that cannot be cut to fewer rows. Or the
            model cannot be stopped between layers: weights are offloaded, routing mixes the rows of a batch, or its layers'
            outputs are not known.
    """
    if model.body in _axes:
        return
    _check_layers(model)  # once: it reads the signature of every module, which takes longer than a text's first layers
    problem: Exception | None = None
    for trims in (True, False):
        _axes[model.body] = {} if trims else None
        try:
            if _leaves(model):
                return
        except InputError:
            del _axes[model.body]
            raise
        except (RuntimeError, IndexError, ValueError) as error:
            problem = error
    del _axes[model.body]
    raise InputError(
        f"model type {model.config.model_type!r}: a row's answer changes when others leave its batch; not supported"
    ) from problem


def _leaves(model: LoadedModel) -> bool:
    """Whether rows come out alike from a batch that others leave, and by themselves."""
    draw = torch.Generator().manual_seed(0)
    vocabulary = int(getattr(model.config.get_text_config(), "vocab_size", 0) or 256)
    lengths = (5, 11, 8)
    ids = torch.randint(0, vocabulary, (3, 11), generator=draw)
    mask = torch.arange(11) < torch.tensor(lengths)[:, None]
    leaving = {0: 1, model.n_layers // 2: 0} if model.n_layers > 2 else {0: 1}
    rows = [0, 1, 2]
    last: dict[int, Tensor] = {}

    def shrink(layer: int, hidden: Tensor) -> Tensor | None:
        if layer == model.n_layers - 1:
            last.update(zip(rows, hidden.clone(), strict=True))
            return torch.arange(0)
        if layer not in leaving:
            return None
        stay = [i for i, row in enumerate(rows) if row != leaving[layer]]
        rows[:] = [rows[i] for i in stay]
        return torch.tensor(stay, device=hidden.device)

    alone: dict[int, Tensor] = {}

    def keep(row: int) -> Decide:
        def decide(layer: int, hidden: Tensor) -> None:
            if layer == model.n_layers - 1:
                alone[row] = hidden[0].clone()

        return decide

    with stepping(model) as stepper:
        stepper.run(ids, mask, shrink)
        for row in last:
            stepper.run(ids[row : row + 1, : lengths[row]], mask[row : row + 1, : lengths[row]], keep(row))
    tolerance = 1e-4 if model.dtype == torch.float32 else 5e-2
    for row, hidden in last.items():
        difference = (hidden[: lengths[row]].float() - alone[row].float()).norm() / alone[row].float().norm()
        if not float(difference) <= tolerance:
            return False
    return True
