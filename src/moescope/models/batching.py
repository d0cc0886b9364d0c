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
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from moescope.errors import InputError
from moescope.models.inputs import BodyInputs, padding_id

if TYPE_CHECKING:
    from moescope.models.load import LoadedModel

Beside = Literal["none", "right", "left"]
"""Texts of one length, or padded on that side"""
SIDES: tuple[Beside, ...] = ("none", "right", "left")
_SHORT, _LONG = 5, 19
_TOLERANCE, _TOLERANCE_HALF = 1e-4, 5e-2


@dataclass(frozen=True)
class Batching:
    """How far a text's hidden states move when another stands beside it: what :func:`check_batching` measured."""

    difference: dict[Beside, float]
    """by the padding: norm of the difference over that of the hidden states, the larger of two texts; infinite where the model
    does not run so"""
    tolerance: float
    tokens: int
    """forward tokens that the check cost"""

    def allows(self, side: Beside) -> bool:
        """Whether texts padded on this side may share a batch (``"none"``: texts of one length, which is always asked)."""
        return max(self.difference["none"], self.difference[side]) <= self.tolerance

    def note(self, name: str, side: Beside = "right") -> str | None:
        """What a result says of a model whose texts are run one by one; None where they share batches."""
        if self.allows(side):
            return None
        worst = max(self.difference["none"], self.difference[side])
        size = f"by {worst:.2g} of their size" if worst < float("inf") else "(it does not run on a batch)"
        return f"{name}: a text's activations change {size} with what else is in the batch; texts were run one by one"


def check_batching(model: LoadedModel) -> Batching:
    """Run two short texts of random tokens by themselves and side by side, without and with padding on either side.

    Whoever watches or edits the model by hooks meanwhile neither sees nor touches this.

    Raises:
        InputError: the model does not run on token ids alone.
    """
    inputs = BodyInputs(model)
    ids = _ordinary_ids(model, 2 * _LONG).view(2, _LONG)
    mask = torch.ones_like(ids)
    short = torch.arange(_LONG) < _SHORT
    tokens = 0

    def states(ids: Tensor, mask: Tensor) -> Tensor:
        nonlocal tokens
        tokens += int(mask.sum())
        output: Any = model.body(**inputs(ids, mask))
        found: Tensor = output[0]
        return found.float()

    difference: dict[Beside, float] = {}
    with torch.no_grad(), _unwatched(model.body):
        try:
            long = states(ids[:1], mask[:1])[0]
            alone = states(ids[1:, :_SHORT], mask[1:, :_SHORT])[0]
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
            what = " ".join(str(error).split())[:200]
            raise InputError(
                f"model type {model.config.model_type!r} does not run on token ids alone, so it is not supported: {what}"
            ) from error
        for side in SIDES:
            rows, real, place = ids.clone(), mask.clone(), slice(None)
            if side != "none":
                kept = short if side == "right" else short.flip(0)
                rows[1], real[1] = padding_id(model), kept.long()
                rows[1, kept] = ids[1, :_SHORT]
                place = slice(0, _SHORT) if side == "right" else slice(_LONG - _SHORT, _LONG)
            try:
                beside = states(rows, real)
            except (RuntimeError, ValueError, TypeError, AttributeError, IndexError):
                difference[side] = float("inf")
                continue
            pairs = [(beside[0], long)] + ([(beside[1, place], alone)] if side != "none" else [])
            difference[side] = max(_moved(*pair, exact=model.dtype == torch.float32) for pair in pairs)
    return Batching(difference, _TOLERANCE if model.dtype == torch.float32 else _TOLERANCE_HALF, tokens)


def _moved(a: Tensor, b: Tensor, *, exact: bool) -> float:
    """Norm of the difference of hidden states (T, D) over theirs; in half precision, where a near-tie may send a token to another
    expert, of the middle token."""
    if exact:
        return float((a - b).norm() / b.norm())
    return float(((a - b).norm(dim=-1) / b.norm(dim=-1)).median())


def _ordinary_ids(model: LoadedModel, count: int) -> Tensor:
    """Random token ids, none of them one that the config names (an image's place, say)."""
    text = model.config.get_text_config()
    configs = {id(c): c for c in (model.config, text)}.values()
    named = {v for c in configs for k, v in vars(c).items() if k.endswith(("token_id", "token_index")) and isinstance(v, int)}
    vocabulary = int(getattr(text, "vocab_size", 0) or 256)
    ids = torch.randint(0, vocabulary, (4 * count + len(named),), generator=torch.Generator().manual_seed(0)).tolist()
    return torch.tensor(([i for i in ids if i not in named] or ids)[:count])


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
