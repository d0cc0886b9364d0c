"""What pruning is held against, as edits of a layer: a mean in the place of an expert, and weights of few bits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from moescope.models.layered import Edit
from moescope.models.rounding import rounded, share_of_bytes
from moescope.runtime.mask import PruneMask
from moescope.studies.prune.cut import Banks
from moescope.studies.prune.saliency import Saliency

_ROWS = 64


def mean_output(banks: Banks, found: Saliency, mask: PruneMask) -> Edit:
    """The router chooses as it did; an expert that the mask leaves out writes its own mean output, times its weight.

    A rival that no standard checkpoint can express: it has no experts that are constants.
    """
    at = {layer.layer: layer for layer in banks.layers}

    @contextmanager
    def edit(number: int, layer: Any) -> Iterator[Any]:
        if number not in at or mask.keep[number].all():
            yield layer
            return
        bank = at[number].module
        first = next(bank.parameters())
        gone = torch.from_numpy(~mask.keep[number]).to(first.device)
        means = torch.from_numpy(found.mean_output(number)).to(first.device, first.dtype)
        added: list[Tensor] = []

        def before(_: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
            hidden, ids, weights = (*args, *options.values())
            constant = weights * gone[ids.long()]
            added.append((constant[..., None].to(means.dtype) * means[ids.long()]).sum(-2))
            return (hidden, ids, weights - constant), {}

        def after(_: nn.Module, args: Any, output: Tensor) -> Tensor:
            return output + added.pop().reshape(output.shape)

        handles = (bank.register_forward_pre_hook(before, with_kwargs=True), bank.register_forward_hook(after))
        try:
            yield layer
        finally:
            for handle in handles:
                handle.remove()

    return edit


def rounded_experts(banks: Banks, which: Mapping[int, np.ndarray], bits: int) -> Edit:
    """The weights of some experts (layer -> bool (E,)) rounded where they lie: a sweep of this edit alone."""
    at = {layer.layer: layer for layer in banks.layers}

    @contextmanager
    def edit(number: int, layer: Any) -> Iterator[Any]:
        if number in at:
            for parameter in at[number].module.parameters():
                if parameter.dim() == 3:
                    for expert in np.flatnonzero(which[number]):
                        for part in parameter[expert].split(_ROWS):  # what is made on the way stays small
                            part.copy_(rounded(part, bits))
        yield layer

    return edit


def same_bytes(saliency: Mapping[int, np.ndarray], share: float) -> tuple[int, dict[int, np.ndarray], float]:
    """As many of the least salient experts in 8 bits as save ``share`` of the experts' bytes, of 16-bit weights; in 4 bits
    where 8 could not save so much.

    Returns: the bits, layer -> bool (E,) of the experts, and the share that they save.
    """
    bits = 8 if share <= 1 - share_of_bytes(8) else 4
    each = 1 - share_of_bytes(bits)
    which, saved = {}, []
    for layer, values in saliency.items():
        count = min(len(values), round(share * len(values) / each))
        which[layer] = np.zeros(len(values), dtype=bool)
        which[layer][np.argsort(values, kind="stable")[:count]] = True
        saved.append(each * count / len(values))
    return bits, which, float(np.mean(saved))
