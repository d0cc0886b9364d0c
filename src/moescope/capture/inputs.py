"""What a model's body is called with for one padded batch."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from moescope.capture.encode import first_position

if TYPE_CHECKING:
    from moescope.models import LoadedModel


class BodyInputs:
    """Made once for a model, since the body's modules are searched; called for every batch."""

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._accepts = frozenset(inspect.signature(model.body.forward).parameters)
        self._first_position = first_position(model)

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
