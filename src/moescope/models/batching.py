"""Whether texts may share a batch: a model of which that is false is found by a check, and run on one text at a time.

In most architectures a text's activations are the same whoever is beside it and however it is padded. Not in all: landmarks
of attention are pooled over padding, a convolution reaches into it, an indexer's budget is spent on it, a recurrent state runs
through it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, Literal

import torch
from torch import Tensor, nn

from moescope.errors import InputError
from moescope.models.inputs import BodyInputs, Runs, first_position, padding_id

Beside = Literal["none", "right", "left"]
"""Texts of one length, or padded on that side"""
SIDES: tuple[Beside, ...] = ("none", "right", "left")
_SHORT, _LONG = 5, 19
_TOLERANCE, _TOLERANCE_HALF = 1e-4, 5e-2
# What the code of a model can throw that is given less, or other, than it needs.
_FOREIGN = (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError)


@dataclass(frozen=True)
class Batching:
    """How far a text's hidden states move when another stands beside it: what :func:`check_batching` measured."""

    difference: dict[Beside, float]
    """by the padding: norm of the difference over that of the hidden states, the larger of two texts; infinite where the model
    does not run so"""
    tolerance: float
    budget: int | None
    """keys that an indexer picks for a token, by what is in the batch: a longer text is never padded"""
    tokens: int
    """forward tokens that the check cost"""

    def allows(self, side: Beside, longest: int = 0) -> bool:
        """Whether texts of at most ``longest`` tokens, padded on this side, may share a batch (``"none"``: texts of one length,
        which is always asked)."""
        if side != "none" and self.budget is not None and longest > self.budget:
            return False
        return max(self.difference["none"], self.difference[side]) <= self.tolerance

    def note(self) -> str | None:
        """What a result says of a model whose texts are run one by one; None where they share batches."""
        worst = max(self.difference["none"], self.difference["right"])
        if worst <= self.tolerance:
            if self.budget is None:
                return None
            return f"texts of more than {self.budget} tokens were run one by one: in a batch they attend to other tokens"
        size = f"by {worst:.2g} of their size" if worst < float("inf") else "or cannot be had"
        return f"texts were run one by one: in a batch this model's activations change {size}"


def check_batching(model: Runs) -> Batching:
    """Run two short texts of random tokens by themselves and side by side, without and with padding on either side.

    Raises:
        InputError: the model does not run on token ids alone.
    """
    text = model.config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None) or _LONG
    long = max(_SHORT, min(_LONG, int(positions) - first_position(model)))
    difference = measure(model, short=_SHORT, long=long)
    budget = getattr(text, "index_topk", None)
    tolerance = _TOLERANCE if model.dtype == torch.float32 else _TOLERANCE_HALF
    # each by itself, both twice with padding, and once two of the longer
    return Batching(difference, tolerance, budget if isinstance(budget, int) else None, 3 * (_SHORT + long) + 2 * long)


def measure(model: Runs, *, short: int, long: int) -> dict[Beside, float]:
    """How far two texts of these lengths move beside each other: :attr:`Batching.difference`.

    Whoever watches or edits the model by hooks meanwhile neither sees nor touches this.
    """
    inputs = BodyInputs(model)
    ids = ordinary_ids(model, 2 * long).view(2, long)

    def states(ids: Tensor, mask: Tensor) -> Tensor:
        output: Any = model.body(**inputs(ids, mask))
        found: Tensor = output[0]
        return found.float()

    difference: dict[Beside, float] = {}
    with torch.no_grad(), _unwatched(model.body):
        try:
            alone = [states(row[None], torch.ones_like(row[None]))[0] for row in (ids[0], ids[1, :short])]
        except _FOREIGN as error:
            raise InputError(
                f"model type {model.config.model_type!r} does not run on token ids alone, so it is not supported: "
                f"{' '.join(str(error).split())[:200]}"
            ) from error
        for side in SIDES:
            rows, real = ids.clone(), torch.ones_like(ids)
            place = slice(long - short, long) if side == "left" else slice(0, short)
            if side != "none":
                rows[1], real[1] = padding_id(model), 0
                rows[1, place], real[1, place] = ids[1, :short], 1
            try:
                beside = states(rows, real)
            except _FOREIGN:
                difference[side] = float("inf")
                continue
            pairs = [(beside[0], alone[0]), (beside[1, place], alone[1])][: 1 if side == "none" else 2]
            difference[side] = max(_moved(*pair, exact=model.dtype == torch.float32) for pair in pairs)
    return difference


def _moved(a: Tensor, b: Tensor, *, exact: bool) -> float:
    """Norm of the difference of hidden states (T, D) over theirs; in half precision, where a near-tie may send a token to
    another expert, of the middle token."""
    if exact:
        return float((a - b).norm() / b.norm())
    return float(((a - b).norm(dim=-1) / b.norm(dim=-1)).median())


def ordinary_ids(model: Runs, count: int) -> Tensor:
    """Random token ids, none of them one that the config names (an image's place, say)."""
    text = model.config.get_text_config()
    configs = {id(c): c for c in (model.config, text)}.values()
    named = {v for c in configs for k, v in vars(c).items() if k.endswith(("token_id", "token_index")) and isinstance(v, int)}
    vocabulary = int(getattr(text, "vocab_size", 0) or 256)
    ids = torch.randint(0, vocabulary, (4 * count,), generator=torch.Generator().manual_seed(0)).tolist()
    return torch.tensor(list(islice(cycle([i for i in ids if i not in named] or ids), count)))


@contextmanager
def _unwatched(body: nn.Module) -> Iterator[None]:
    """Without the hooks that hang on the body's modules."""
    kept = [(m, m._forward_hooks, m._forward_pre_hooks) for m in body.modules()]
    try:
        for module, _, _ in kept:
            module._forward_hooks, module._forward_pre_hooks = OrderedDict(), OrderedDict()
        yield
    finally:
        for module, after, before in kept:
            module._forward_hooks, module._forward_pre_hooks = after, before
