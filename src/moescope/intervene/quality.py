"""What a change of a model costs: perplexity on text it was not made from, and how far predictions are from the original's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from moescope.intervene.held_out import Windows
from moescope.intervene.text_loss import Reference
from moescope.models.rounding import rounded, share_of_bytes
from moescope.study.paired import interval_over, paired_effect
from moescope.study.verdicts import Effect

UNIT = "nats per token"


class Counting(Protocol):
    """What counts as it runs, batch by batch."""

    used: dict[str, list[float]]

    def begin(self, batch: int) -> None:
        """Count from nought; what is drawn from here on depends on the batch's number alone."""


Each = Callable[[Sequence[str], Callable[[list[int]], Iterator[tuple[int, Any]]]], list[Any]]
"""Runs stages that do not depend on each other: :meth:`moescope.study.protocol.Context.each`."""


@dataclass(frozen=True)
class Contender:
    """One model, or one state of it: ``enter`` puts it in that state for as long as its context is open. ``counts`` has, after
    :func:`compare`, what it counted on all windows."""

    name: str
    model: Any
    enter: Callable[[], AbstractContextManager[None]]
    counts: Counting | None = None


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
    each: Each | None = None,
) -> list[Quality]:
    """Every contender beside the original on the same windows; the first row is the original itself.

    One batch goes through all models before the next, so that the original's logits are held for one batch only.

    Args:
        each: keeps a batch's figures as soon as they are there, so that a run that is cut off goes on behind it.
    """
    n, predicted = windows.ids.shape[0], windows.ids.shape[1] - 1
    batches = list(windows.batches(2048))
    ends = np.cumsum([len(ids) for ids in batches])

    def through(wanted: list[int]) -> Iterator[tuple[int, dict[str, Any]]]:
        for number in wanted:
            yield number, _through(original, contenders, batches[number], number)
            if report is not None:
                report(int(ends[number]), n)

    names = [f"windows {end - len(ids) + 1} to {end}" for ids, end in zip(batches, ends, strict=True)]
    found = each(names, through) if each is not None else [value for _, value in through(list(range(len(batches))))]
    losses = np.concatenate([batch["losses"] for batch in found], 1)
    kls, agreements = (np.sum([batch[what] for batch in found], 0) for what in ("kls", "agreements"))
    for i, contender in enumerate(contenders):
        if contender.counts is not None:
            parts = [batch["used"][i] for batch in found]
            contender.counts.used = {what: [sum(part[what][k] for part in parts) for k in (0, 1)] for what in parts[0]}
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


def _through(original: nn.Module, contenders: Sequence[Contender], ids: Tensor, number: int) -> dict[str, Any]:
    """A batch's figures: sums of losses (1 + contenders, windows), and of KL and agreement (contenders)."""
    reference = Reference(_logits(original, ids), ids)
    losses = [reference.losses.double().sum(1).cpu().numpy()]
    kls, agreements, used = [], [], []
    for contender in contenders:
        if contender.counts is not None:
            contender.counts.begin(number)
        with contender.enter():
            logits = _logits(contender.model, ids)
        loss, kl, same = reference.beside(logits.to(reference.losses.device))
        losses.append(loss.double().sum(1).cpu().numpy())
        kls.append(float(kl.sum()))
        agreements.append(float(same.sum()))
        used.append({} if contender.counts is None else contender.counts.used)
    return {"losses": np.stack(losses), "kls": np.array(kls), "agreements": np.array(agreements), "used": used}


def _logits(model: Any, ids: Tensor) -> Tensor:
    """(B, length, V), where the model has them."""
    logits: Tensor = model(input_ids=ids.to(next(model.parameters()).device), use_cache=False).logits
    return logits


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
