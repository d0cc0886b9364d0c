"""What a conversion costs: perplexity on text it was not made from, and how far its predictions are from the original's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from moescope.intervene.text_loss import token_losses
from moescope.models.rounding import rounded, share_of_bytes
from moescope.stats import group_bootstrap
from moescope.studies.convert.text import Windows


@dataclass(frozen=True)
class Contender:
    """One model, or one state of it: ``enter`` puts it in that state for as long as its context is open."""

    name: str
    model: Any
    enter: Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class Quality:
    """Over the predicted tokens of the held-out text.

    ``loss`` nats per token; ``perplexity`` its exponential; ``kl`` KL(original ‖ this) in nats per token; ``agreement``
    the share of tokens with the same most likely prediction. ``rise`` is perplexity over the original's less one, with
    ``low`` and ``high`` its 95 % bootstrap interval over windows, paired (NaN for a single one). ``excess`` is the loss over
    the original's, nats per token, window by window.
    """

    name: str
    loss: float
    perplexity: float
    kl: float
    agreement: float
    rise: float
    low: float
    high: float
    tokens: int
    excess: tuple[float, ...] = ()


@torch.no_grad()
def compare(
    original: nn.Module,
    contenders: Sequence[Contender],
    windows: Windows,
    *,
    seed: int = 0,
    report: Callable[[int, int], None] | None = None,
) -> list[Quality]:
    """Every contender beside the original on the same windows; the first row is the original itself.

    One batch goes through all models before the next, so that the original's logits are held for one batch only.
    """
    device = next(original.parameters()).device
    n, predicted = windows.ids.shape[0], windows.ids.shape[1] - 1
    losses = np.zeros((len(contenders) + 1, n))  # sums of one window each
    kls, agreements = np.zeros(len(contenders)), np.zeros(len(contenders))
    done = 0
    for ids in windows.batches(2048):
        here = slice(done, done + len(ids))
        reference = _log_probabilities(original, ids.to(device)).cpu()
        losses[0, here] = token_losses(reference, ids).double().sum(1)
        for i, contender in enumerate(contenders):
            with contender.enter():
                found = _log_probabilities(contender.model, ids.to(next(contender.model.parameters()).device)).cpu()
            losses[i + 1, here] = token_losses(found, ids).double().sum(1)
            kls[i] += float((reference.exp() * (reference - found)).sum())
            agreements[i] += float((reference.argmax(-1) == found.argmax(-1)).sum())
        done += len(ids)
        if report is not None:
            report(done, n)
    total = n * predicted
    rows = []
    for i, name in enumerate(["original", *(c.name for c in contenders)]):
        loss = losses[i].sum() / total
        difference = losses[i] - losses[0]
        excess = difference / predicted
        low, high = (0.0, 0.0) if not excess.any() else group_bootstrap(excess, seed=seed) if n > 1 else (math.nan, math.nan)
        kl, agreement = (0.0, 1.0) if i == 0 else (kls[i - 1] / total, agreements[i - 1] / total)
        rise = math.expm1(difference.sum() / total)
        interval = (math.expm1(low), math.expm1(high))
        rows.append(Quality(name, float(loss), math.exp(loss), kl, agreement, rise, *interval, total, tuple(excess.tolist())))
    return rows


def _log_probabilities(model: Any, ids: Tensor) -> Tensor:
    """(B, length - 1, V) float32: of the next token, at every place that has one."""
    return torch.log_softmax(model(input_ids=ids, use_cache=False).logits[:, :-1].float(), -1)


EIGHT = "8-bit"
BYTES = share_of_bytes(8)
"""of 16-bit weights that 8-bit ones read"""


@contextmanager
def eight_bits(layers: Sequence[nn.Module]) -> Iterator[None]:
    """The MLPs' weights rounded to the nearest of 8 bits, a scale for 32 neighbours in a row: the cheapest way to read fewer
    bytes, which any model survives."""
    kept: list[tuple[nn.Parameter, Tensor]] = []
    try:
        for layer in layers:
            for name, weight in layer.mlp.named_parameters():  # type: ignore[union-attr]
                if name.endswith("weight"):
                    kept.append((weight, weight.data))
                    weight.data = rounded(weight.data)
        yield
    finally:
        for weight, data in kept:
            weight.data = data


@contextmanager
def neurons_off(layers: Sequence[nn.Module], keep: Sequence[Tensor]) -> Iterator[None]:
    """Static pruning: in layer l only the neurons ``keep[l]`` (bool (I,)) reach the MLP's down projection."""
    handles = []
    try:
        for layer, mask in zip(layers, keep, strict=True):
            down: Any = layer.mlp.down_proj  # type: ignore[union-attr]
            place = mask.to(down.weight.device, down.weight.dtype)
            handles.append(down.register_forward_pre_hook(lambda _module, args, place=place: (args[0] * place,)))
        yield
    finally:
        for handle in handles:
            handle.remove()
