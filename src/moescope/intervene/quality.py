"""What a change of a model costs: perplexity on text it was not made from, and how far predictions are from the original's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from moescope.intervene.held_out import Windows
from moescope.intervene.text_loss import Reference
from moescope.models.rounding import rounded, share_of_bytes
from moescope.study.paired import interval_over, paired_effect
from moescope.study.verdicts import Effect

UNIT = "nats per token"


@dataclass(frozen=True)
class Contender:
    """One model, or one state of it: ``enter`` puts it in that state for as long as its context is open."""

    name: str
    model: Any
    enter: Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class Quality:
    """Over the predicted tokens of the held-out text, behind what the tokenizer begins a text with.

    ``loss`` nats per token; ``perplexity`` its exponential; ``kl`` KL(original ‖ this) in nats per token; ``agreement``
    the share of tokens with the same most likely prediction. ``rise`` is perplexity over the original's less one, with
    ``low`` and ``high`` its 95 % bootstrap interval over documents or windows, paired (NaN for a single one). ``excess`` is the
    loss over the original's, nats per token, window by window; ``groups`` the document of each, or none.
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
    groups: tuple[int, ...] = ()

    @property
    def units(self) -> np.ndarray:
        """int64 (windows,): what each window of ``excess`` is resampled with, its document or itself alone."""
        return np.array(self.groups or range(len(self.excess)))

    @property
    def row(self) -> dict[str, float]:
        """As a row of a table has it."""
        return {name: getattr(self, name) for name in ("loss", "perplexity", "kl", "agreement", "rise", "low", "high")}

    def below(self, other: Quality, against: str, margin: float, seed: int, **options: Any) -> Effect:
        """By how much another loses more, nats per token, paired by window; ``options`` are the effect's."""
        excess = np.array(other.excess), np.array(self.excess)
        return paired_effect(*excess, self.units, against, margin, seed, share=False, unit=UNIT, **options)


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
    n, predicted = windows.ids.shape[0], windows.ids.shape[1] - 1
    losses = np.zeros((len(contenders) + 1, n))  # sums of one window each
    kls, agreements = np.zeros(len(contenders)), np.zeros(len(contenders))
    done = 0
    for ids in windows.batches(2048):
        here = slice(done, done + len(ids))
        reference = Reference(_logits(original, ids), ids)
        losses[0, here] = reference.losses.double().sum(1)
        for i, contender in enumerate(contenders):
            with contender.enter():
                found = _logits(contender.model, ids)
            loss, kl, same = reference.beside(found)
            losses[i + 1, here] = loss.double().sum(1)
            kls[i] += float(kl.sum())
            agreements[i] += float(same.sum())
        done += len(ids)
        if report is not None:
            report(done, n)
    total = n * predicted
    rows: list[Quality] = []
    for i, name in enumerate(["original", *(c.name for c in contenders)]):
        mean = float(losses[i].sum() / total)
        excess = (losses[i] - losses[0]) / predicted
        low, high = interval_over(excess, windows.groups, seed) if excess.any() else (0.0, 0.0)
        far, agreement = (0.0, 1.0) if i == 0 else (float(kls[i - 1] / total), float(agreements[i - 1] / total))
        rise, low, high = (math.expm1(change) for change in (float(excess.mean()), low, high))
        of = tuple(windows.groups.tolist())
        rows.append(Quality(name, mean, math.exp(mean), far, agreement, rise, low, high, total, tuple(excess.tolist()), of))
    return rows


def _logits(model: Any, ids: Tensor) -> Tensor:
    """(B, length, V), on the CPU."""
    logits: Tensor = model(input_ids=ids.to(next(model.parameters()).device), use_cache=False).logits
    return logits.cpu()


EIGHT = "8-bit"
BYTES = share_of_bytes(8)
"""of 16-bit weights that 8-bit ones read"""


@contextmanager
def few_bits(mlps: Sequence[nn.Module], bits: int = 8, down: int | None = None) -> Iterator[None]:
    """The MLPs' weights rounded to the nearest of few bits, a scale for 32 neighbours in a row: the cheapest way to read fewer
    bytes; 8 bits any model survives.

    Args:
        down: bits of the down projections, where they are others.
    """
    kept: list[tuple[nn.Parameter, Tensor]] = []
    try:
        for mlp in mlps:
            for name, weight in mlp.named_parameters():
                if name.endswith("weight"):
                    kept.append((weight, weight.data))
                    weight.data = rounded(weight.data, down if down is not None and "down" in name else bits)
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
