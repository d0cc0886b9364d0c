"""What any module of any torch model is given and gives, while the user's own loop runs it.

    with moescope.record(model, "blocks.3.mlp") as store:
        for batch in batches:
            store.of(batch.ids)  # which image, text or example each row is of
            model(batch.x)
    moescope.distill(store)

Kept is a uniform sample of all vectors, of bounded size: every vector has a random key; where there is no more room, the half
with the larger keys goes, and so do later vectors with such keys.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from moescope.errors import InputError, check_count

_PROBE = 64  # vectors by which it is seen whether the module is a function of one vector
_TOLERANCE, _TOLERANCE_HALF = 1e-3, 5e-2
_CHUNK = 4096


class Recorded:
    """Made by :func:`record`. ``module`` is the one that was listened to, ``name`` its name in the model."""

    def __init__(self, model: str, module: nn.Module, name: str, most: int, seed: int) -> None:
        self.model, self.module, self.name, self.most = model, module, name, most
        self.seen = 0
        """vectors that passed"""
        self.twin: Recorded | None = None
        """the same module of an untrained model, recorded on the same documents: what :func:`moescope.circuits` sets beside"""
        self._rng = torch.Generator().manual_seed(seed)
        self._threshold = 1.0
        self._parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []  # key, document, input, output
        self._held = self._calls = 0
        self._rows: Tensor | None = None
        self._keep: Tensor | None = None

    def of(self, documents: Sequence[int] | np.ndarray | Tensor, keep: Tensor | None = None) -> None:
        """Say what the rows of the batches that follow are of.

        Rows of one document (an image through all steps of a diffusion, the pieces of a text) are never in two splits. Without
        this each row of each call is a document of its own, which steps of one image are not.

        Args:
            documents: whole numbers (B,).
            keep: bool (B, T): the places that count, where others are padding; None: all.
        """
        self._rows, self._keep = torch.as_tensor(np.asarray(documents)).long(), keep

    @property
    def documents(self) -> Tensor:
        """int64 (n,)."""
        return self._joined(1)

    @property
    def x(self) -> Tensor:
        """float32 (n, d_in): inputs, in the order of their passing."""
        return self._joined(2)

    @property
    def y(self) -> Tensor:
        """float32 (n, d_out): outputs."""
        return self._joined(3)

    def __len__(self) -> int:
        """Vectors that are kept."""
        return self._held

    def means(self, side: str = "output") -> tuple[np.ndarray, np.ndarray]:
        """The mean vector of each document, by which neurons of this module are chosen
        (:class:`moescope.DivergenceSelector`).

        Args:
            side: ``"output"`` or ``"input"``.

        Returns:
            int64 (documents,), ascending, and float32 (documents, D).
        """
        if side not in ("output", "input"):
            raise InputError(f'"{side}" is not one of "output", "input"', "side")
        values = self.y if side == "output" else self.x
        names, at = self.documents.unique(return_inverse=True)
        total = torch.zeros(len(names), values.shape[1]).index_add_(0, at, values)
        return names.numpy(), (total / at.bincount()[:, None]).numpy()

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """What the module gives for vectors (N, d_in), each by itself: float32 (N, d_out)."""
        place = next(self.module.parameters(), torch.zeros(()))
        return torch.cat([_first(self.module(part[None].to(place)))[0].float().cpu() for part in x.split(_CHUNK)])

    def check_run(self) -> None:
        """That something was recorded.

        Raises:
            InputError: nothing was.
        """
        if not self._held:
            raise InputError(
                f"{self.name} of {self.model} was not run while it was recorded; run the model in the block", "model"
            )

    def check_by_vector(self) -> None:
        """That the module's output at a place is a function of its input at that place, so that it can be distilled.

        Raises:
            InputError: nothing was recorded, or the module also reads other places or other inputs; names it.
        """
        self.check_run()
        x, y = self.x[:_PROBE], self.y[:_PROBE]
        try:
            alone = torch.cat([self(row[None]) for row in x])
        except InputError:
            raise
        except Exception as error:  # of a module that wants more than one vector anything
            why = " ".join(str(error).split())[:160]
            raise InputError(
                f"{self.name} of {self.model} does not run on single vectors ({why}); name an MLP", "module"
            ) from error
        half = next((p.dtype for p in self.module.parameters()), torch.float32) != torch.float32
        if alone.shape != y.shape or not float((alone - y).norm() / y.norm().clamp_min(1e-12)) < (
            _TOLERANCE_HALF if half else _TOLERANCE
        ):
            raise InputError(
                f"{self.name} of {self.model} is no function of one vector: it also reads other places or inputs, as attention "
                "does; name an MLP",
                "module",
            )

    @contextmanager
    def replaced(self, by: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Inside the context the module gives ``by(x)`` for its input x (..., d_in): what a student costs the whole model."""

        at_work = False

        def put(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            nonlocal at_work
            if at_work:  # what replaces it may call the module itself
                return output
            old, at_work = _first(output), True
            try:
                with torch.no_grad():
                    new = by(_first((*args, *kwargs.values())).float()).to(old)
            finally:
                at_work = False
            return new if isinstance(output, Tensor) else type(output)((new, *output[1:]))

        handle = self.module.register_forward_hook(put, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def _hook(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        x, y = _first((*args, *kwargs.values())), _first(output)
        if x.dim() < 2 or x.shape[:-1] != y.shape[:-1]:
            raise InputError(
                f"{self.name} makes {tuple(y.shape)} of {tuple(x.shape)}: not one vector of each; name another module", "module"
            )
        rows, each = len(x), x[0].numel() // x.shape[-1]
        documents = torch.arange(rows) + self._calls if self._rows is None else self._rows
        if len(documents) != rows:
            raise InputError(f"{len(documents)} were given for a batch of {rows} rows; give a number for each row", "documents")
        self._calls += rows
        x, y = (t.detach().reshape(rows * each, t.shape[-1]).float().cpu() for t in (x, y))
        of, keys = documents.repeat_interleave(each), torch.rand(rows * each, generator=self._rng)
        wanted = keys < self._threshold
        if self._keep is not None:
            counted = self._keep.reshape(-1).cpu()
            self.seen += int(counted.sum())
            wanted &= counted
        else:
            self.seen += len(x)
        if not bool(torch.isfinite(x[wanted]).all() and torch.isfinite(y[wanted]).all()):
            raise InputError(
                f"{self.name} of {self.model} was given or gave a value that is not finite; check the model's input"
            )
        self._parts.append((keys[wanted], of[wanted], x[wanted], y[wanted]))
        self._held += int(wanted.sum())
        while self._held > self.most:
            self._threshold /= 2
            self._parts = [tuple(t[part[0] < self._threshold] for t in part) for part in self._parts]  # type: ignore[misc]
            self._held = sum(len(part[0]) for part in self._parts)

    def _joined(self, at: int) -> Tensor:
        if not self._parts:
            return torch.zeros(0, dtype=torch.long) if at == 1 else torch.zeros(0, 0)
        if len(self._parts) > 1:
            self._parts = [tuple(torch.cat(side) for side in zip(*self._parts, strict=True))]  # type: ignore[list-item]
        return self._parts[0][at]


@contextmanager
def record(model: Any, module: str, *, most: int = 1 << 18, seed: int = 0) -> Iterator[Recorded]:
    """Record inputs and outputs of a module while the block runs the model; what is kept is usable after the block.

    Args:
        model: any torch module, or a :class:`~moescope.models.LoadedModel` (then the names are those of its body).
        module: its name, as ``model.named_modules()`` gives it: ``"blocks.3.mlp"``.
        most: vectors that are kept, drawn uniformly from all that pass.
        seed: of that draw.

    Raises:
        InputError: no module of this name (says which are near); while it runs: inputs and outputs that are not one vector of
            each, or not finite.

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU())
    >>> with record(net, "0") as store:
    ...     _ = net(torch.ones(2, 3, 4))
    >>> store.x.shape, store.y.shape, store.documents.tolist()
    (torch.Size([6, 4]), torch.Size([6, 8]), [0, 0, 0, 1, 1, 1])
    """
    check_count("most", most, 2)
    body = model.named if hasattr(model, "tap_point") else model
    if not isinstance(body, nn.Module):
        raise InputError(f"{type(model).__name__} is no torch module; give the model itself", "model")
    names = [name for name, _ in body.named_modules() if name]
    if module not in names:
        near = difflib.get_close_matches(str(module), names, n=3, cutoff=0.3) or names[:3]
        raise InputError(f"the model has no {module!r}; near are {', '.join(near) or 'none'}", "module")
    found = body.get_submodule(module)
    store = Recorded(str(getattr(model, "name", None) or type(body).__name__), found, module, most, seed)
    handle = found.register_forward_hook(store._hook, with_kwargs=True)
    try:
        yield store
    finally:
        handle.remove()


def _first(values: Any) -> Tensor:
    """The first tensor among what a module is given or gives."""
    if isinstance(values, Tensor):
        return values
    members = values.values() if isinstance(values, dict) else values if isinstance(values, tuple | list) else ()
    for value in members:
        if isinstance(value, Tensor):
            return value
    raise InputError("the module is given or gives no tensor; name another one", "module")
