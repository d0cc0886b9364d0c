"""Run a checkpoint layer by layer, many variants of it at once.

The model is built without weights (on the meta device). What its body hands to each decoder layer (positions, masks) is caught
by calling the body with layers that compute nothing; then every layer in turn is filled from the files, all variants' hidden
states go through it, and it is emptied. What comes after the layers (norm, head) is the body's own code again, given the hidden
states in the place of the last layer's. So peak memory is that of one layer, or of the embedding, and some hidden states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moescope.models.fit import PRECISIONS
from moescope.models.layered.files import WeightFiles
from moescope.models.load import LoadedModel, digest_of, sampled
from moescope.models.stubs import Call, called, stubbed
from moescope.types import Precision

Edit = Callable[[int, Any], AbstractContextManager[Any]]
"""Given a layer's number and the layer, a context that gives what is called in its place."""


def whole(number: int, layer: Any) -> AbstractContextManager[Any]:
    """The edit that changes nothing."""
    return nullcontext(layer)


@dataclass(eq=False)
class Pass:
    """Texts that are on their way through the layers."""

    ids: list[Tensor]
    """token ids (B, T) of each batch: texts of one length, so that none is padded"""
    rows: list[Tensor]
    """which texts these are"""
    states: list[Tensor]
    """what enters layer 0, (B, T, D)"""
    calls: list[list[Call]]
    """what each layer is called with beside it"""

    @property
    def nbytes(self) -> int:
        """Of the hidden states."""
        return sum(state.nbytes for state in self.states)


class Layered:
    """A model whose layers are filled from its files, one at a time; made by :func:`moescope.models.layered.open_layered`.

    ``model`` has its shapes, sites and tokenizer, and no weights.
    """

    def __init__(self, folder: Path, files: WeightFiles, model: LoadedModel) -> None:
        self.folder, self.files, self.model = folder, files, model
        module: Any = model.module
        self._layers = model.structure.layers
        names = {id(m): name for name, m in module.named_modules()}
        self.paths = [names[id(layer)] for layer in self._layers]
        """of each layer in the model"""
        inner = tuple(f"{path}." for path in self.paths)
        self._rest = [group for name, group in files.groups.items() if not name.startswith(inner)]
        entry = module.get_input_embeddings()
        self._entry = next(f"{name}.weight" for name, m in module.named_modules() if m is entry)
        head = module.get_output_embeddings()
        self._head = next(f"{name}.weight" for name, m in module.named_modules() if m is head)

    @property
    def precision(self) -> Precision:
        """In which it is computed."""
        return PRECISIONS[self.model.dtype]

    @property
    def layer_bytes(self) -> int:
        """Of the largest layer."""
        sizes = (sum(p.numel() * p.element_size() for p in layer.parameters()) for layer in self._layers)
        return max(sizes)

    @contextmanager
    def layer(self, number: int) -> Iterator[Any]:
        """A layer with its weights, for as long as the context is open."""
        with self._filled(number):
            yield self._layers[number]

    @contextmanager
    def _filled(self, number: int) -> Iterator[list[str]]:
        prefix = f"{self.paths[number]}."
        filled = self.files.fill(group for name, group in self.files.groups.items() if name.startswith(prefix))
        try:
            yield filled
        finally:
            self.files.empty(filled)

    @torch.no_grad()
    def begin(self, texts: Sequence[Tensor], batch_tokens: int) -> Pass:
        """Texts (T,) of token ids at the entry of layer 0, those of one length together."""
        rows, ids = _together(texts, batch_tokens)
        found = Pass(ids, rows, [], [])
        with self._outside(head=False):
            for batch in ids:
                calls: list[Any] = []
                with stubbed(self._layers, calls):
                    self._call(input_ids=batch.to(self.model.device))
                found.states.append(calls[0][0])
                found.calls.append([(args, options) for _, args, options in calls])
        return found

    @torch.no_grad()
    def sweep(self, begun: Pass, edits: Sequence[Edit], report: Callable[[int, int], None] | None = None) -> list[list[Tensor]]:
        """What leaves the last layer, (B, T, D) for every batch, of the model under each edit in turn."""
        variants = [list(begun.states) for _ in edits]
        for number in range(len(self._layers)):
            with self.layer(number) as layer:
                for edit, states in zip(edits, variants, strict=True):
                    with edit(number, layer) as module:
                        for i, state in enumerate(states):
                            states[i] = called(module, state, begun.calls[i][number])
            if report is not None:
                report(number + 1, len(self._layers))
        return variants

    @contextmanager
    def head(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """A function from what left the last layer, (B, T, D), to logits (B, T, V)."""

        @torch.no_grad()
        def logits(final: Tensor) -> Tensor:
            with stubbed(self._layers, [], last=final):
                return self._call(inputs_embeds=final).logits  # type: ignore[no-any-return]

        with self._outside(head=True):
            yield logits

    def _call(self, **inputs: Any) -> Any:
        module: Any = self.model.module
        return module(**inputs, use_cache=False)

    @contextmanager
    def _outside(self, *, head: bool) -> Iterator[list[str]]:
        """With what stands before the layers, or behind them."""
        tied = self._head not in self.files.groups
        left_out = self._entry if head and not tied else self._head if not head else None
        filled = self.files.fill(group for group in self._rest if group.target != left_out)
        if tied and head:
            self.files.put(self._head, self.model.module.get_parameter(self._entry))
            filled.append(self._head)
        try:
            yield filled
        finally:
            self.files.empty(filled)

    def fingerprint(self) -> str:
        """The model's own, read layer by layer."""
        module: Any = self.model.module
        body = {id(m): f"{name}." if name else "" for name, m in module.named_modules()}[id(self.model.body)]
        seen: dict[str, bytes] = {}

        def look(filled: Sequence[str]) -> None:
            values = module.state_dict()
            for name in filled:
                if name.startswith(body):
                    seen[name.removeprefix(body)] = sampled(name.removeprefix(body), values[name])

        with self._outside(head=False) as filled:
            look(filled)
        for number in range(len(self._layers)):
            with self._filled(number) as filled:
                look(filled)
        return digest_of(self.model.config, seen)


def _together(texts: Sequence[Tensor], batch_tokens: int) -> tuple[list[Tensor], list[Tensor]]:
    """(numbers, ids (B, T)) of the batches."""
    by_length: dict[int, list[int]] = {}
    for number, text in enumerate(texts):
        by_length.setdefault(len(text), []).append(number)
    rows = [
        part for length, numbers in by_length.items() for part in torch.tensor(numbers).split(max(1, batch_tokens // length))
    ]
    return rows, [torch.stack([texts[i] for i in part.tolist()]) for part in rows]
