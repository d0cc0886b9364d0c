"""What a model's body is called with for one padded batch."""

from __future__ import annotations

import inspect
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn


class Runs(Protocol):
    """A model, as far as running its body goes."""

    @property
    def body(self) -> nn.Module: ...
    @property
    def config(self) -> Any: ...
    @property
    def tokenizer(self) -> Any: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...


_known: WeakKeyDictionary[nn.Module, tuple[frozenset[str], int]] = WeakKeyDictionary()
"""What a body's forward takes and where its positions begin, since all of its modules are searched for that."""


class BodyInputs:
    """Made once for a model; called for every batch."""

    def __init__(self, model: Runs) -> None:
        self._model = model
        if model.body not in _known:
            _known[model.body] = frozenset(inspect.signature(model.body.forward).parameters), first_position(model)
        self._accepts, self._first_position = _known[model.body]

    def __call__(self, ids: Tensor, mask: Tensor | None) -> dict[str, Any]:
        """Keyword arguments on the model's device for token ids (B, T) and their mask (B, T), true where there is a token;
        None: no padding."""
        device = self._model.device
        ids = ids.to(device)
        mask = torch.ones_like(ids) if mask is None else mask.to(device, ids.dtype)
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        # Learned and rotary positions alike must count tokens, not columns; left padding would shift them. The RoBERTa
        # family counts by itself, from the ids.
        if "position_ids" in self._accepts and not self._first_position:
            inputs["position_ids"] = (mask.cumsum(1) - 1).clamp_(min=0)
        if "use_cache" in self._accepts:
            inputs["use_cache"] = False
        return inputs


def first_position(model: Runs) -> int:
    """Where the model's own position ids begin: padding_idx + 1 in the RoBERTa family, which counts from the padding id
    and derives positions from the ids itself; 0 elsewhere."""
    for module in model.body.modules():
        if hasattr(module, "create_position_ids_from_input_ids") or hasattr(module, "create_position_ids_from_inputs_embeds"):
            return int(getattr(module, "padding_idx", None) or 0) + 1
    return 0


def padding_id(model: Runs) -> int:
    """An id that may stand at a padded place: the tokenizer's, else the model's, else 0."""
    vocabulary = getattr(model.config, "vocab_size", None)
    for candidate in (getattr(model.config, "pad_token_id", None), getattr(model.tokenizer, "pad_token_id", None)):
        if isinstance(candidate, int) and candidate >= 0 and (vocabulary is None or candidate < vocabulary):
            return candidate
    return 0


def first_weight(body: Any) -> Tensor:
    """The word embeddings, which token ids go into; the first parameter of a body that does not say which they are."""
    try:
        found: Tensor = body.get_input_embeddings().weight
    except (AttributeError, NotImplementedError):
        found = next(body.parameters())
    return found
