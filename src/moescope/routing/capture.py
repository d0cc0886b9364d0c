"""From prompts to a routing trace: a forward pass over each prompt, or a whole generation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from moescope.capture.activations import batches_for
from moescope.capture.encode import Encoded, PaddingSide, encode
from moescope.capture.spread import Progress, read_batches
from moescope.errors import InputError
from moescope.models.experts import ExpertLayer, expert_layers, mixes_tokens
from moescope.models.writing import can_generate
from moescope.routing.generate import GREEDY, Decoding, Piece, Routers, run_pieces
from moescope.routing.trace import RoutingTrace, TracedSequence, id_dtype

if TYPE_CHECKING:
    from moescope.models import LoadedModel

WEIGHT_DTYPES = {"float16": torch.float16, "float32": torch.float32}


class PromptLike(Protocol):
    """What a prompt must have; ``moescope.tasks.prompts.Prompt`` has it."""

    @property
    def id(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def category(self) -> str | None: ...
    @property
    def group(self) -> str | None: ...


def trace_prompts(
    model: LoadedModel,
    prompts: Sequence[PromptLike] | Sequence[TracedSequence],
    *,
    encoded: Encoded | None = None,
    max_new_tokens: int = 0,
    decoding: Decoding = GREEDY,
    weights: bool = True,
    weight_dtype: str = "float16",
    scores: bool = False,
    tokens: bool = True,
    max_tokens: int | None = None,
    batch_tokens: int = 8192,
    apart: int | None = None,
    progress: Progress | None = None,
) -> RoutingTrace:
    """Trace the routing of prompts and, with ``max_new_tokens``, of what the model generates after them.

    Without sampling, the trace does not depend on which prompts share a batch (up to rounding). How each layer makes
    weights of scores is measured on a prompt of the first batch and stands in ``meta["gating"]`` and ``meta["scores"]``.

    Args:
        prompts: each with ``id``, ``text``, ``category`` and ``group``.
        encoded: their token ids where they are encoded already; then they need no text.
        max_new_tokens: tokens to generate after each prompt; the model must have been loaded with its head.
        weights, weight_dtype: whether and how ("float16", "float32") the weights are kept.
        scores: keep the router's scores of every expert, in the same type: T x L x E numbers.
        tokens: keep the token ids, from which the text can be read.
        max_tokens: keep at most this many tokens of a prompt, its last.
        batch_tokens: rows x longest row of a batch, generated tokens counted.
        apart: no batch holds prompts of two such runs, each of so many prompts.

    Raises:
        InputError: the model is dense, or has no head to generate with; a prompt is empty; a layer sent its tokens
            nowhere.
    """
    if weight_dtype not in WEIGHT_DTYPES:
        raise InputError(f'weight_dtype: "{weight_dtype}" is not one of {", ".join(WEIGHT_DTYPES)}')
    if max_new_tokens < 0:
        raise InputError(f"max_new_tokens: {max_new_tokens} is negative")
    if max_new_tokens and not can_generate(model):
        raise InputError(f"model {model.name} was loaded without its head, so it cannot generate: load it with head=True")
    if encoded is None:
        encoded = encode(model, [prompt.text for prompt in prompts], max_tokens=max_tokens)  # type: ignore[union-attr]
    layers = expert_layers(model)
    read = partial(
        run_pieces, weights=WEIGHT_DTYPES[weight_dtype] if weights else False, scores=scores,
        max_new_tokens=max_new_tokens, decoding=decoding,
    )  # fmt: skip
    side: PaddingSide = "left" if max_new_tokens else "right"
    # where tokens share the routing, padding too, a sequence must have the batch to itself
    budget = 1 if mixes_tokens(model, layers) else batch_tokens
    lengths, run = encoded.lengths + max_new_tokens, apart or max(1, len(encoded))
    groups = [
        start + rows
        for start in range(0, len(encoded), run)
        for rows in batches_for(model, lengths[start : start + run], budget, side)
    ]
    pieces: dict[int, Piece] = {}
    routers: Routers = {}
    for rows, (found, how) in read_batches(model, encoded, groups, side, read, progress=progress):
        pieces.update(zip(rows.tolist(), found, strict=True))
        if rows is groups[0] and how is not None:
            routers = how
    columns = _columns([pieces[row] for row in range(len(encoded))], layers)
    factors, logits, text = columns.pop("weights", None), columns.pop("scores", None), columns.pop("tokens")
    return RoutingTrace(
        layers=tuple(layer.layer for layer in layers),
        n_experts=tuple(layer.n_experts for layer in layers),
        weights=factors.astype(weight_dtype) if weights and factors is not None else None,
        scores=logits.astype(weight_dtype) if scores and logits is not None else None,
        tokens=text if tokens else None,
        sequences=tuple(TracedSequence(prompt.id, prompt.category, prompt.group) for prompt in prompts),
        meta=_describe(model) | routers,
        **columns,
    )


def _describe(model: LoadedModel) -> dict[str, Any]:
    """What ``meta`` of a trace says of the model."""
    meta: dict[str, Any] = {
        "model": model.name,
        "revision": model.revision,
        "fingerprint": model.fingerprint,
        "architecture": model.config.model_type,
        "dtype": str(model.dtype).removeprefix("torch."),
        "encoding": model.reading.record(model.tokenizer),
    }
    sizes = [layer.expert_bytes for layer in expert_layers(model)]
    if sizes and None not in sizes:
        meta["expert_bytes"] = max(size for size in sizes if size is not None)
    return meta


def _columns(pieces: Sequence[Piece], layers: Sequence[ExpertLayer]) -> dict[str, Any]:
    """The trace's arrays but the sequences' names."""
    lengths = [len(piece.tokens) for piece in pieces]
    names = list(pieces[0].columns) if pieces else []
    columns = {name: np.concatenate([piece.columns[name] for piece in pieces]) for name in names}
    positions = [np.arange(n, dtype=np.int32) for n in lengths]
    generated = [position >= piece.prompt for position, piece in zip(positions, pieces, strict=True)]
    return (
        {"ids": np.zeros((0, len(layers), 0), id_dtype(max(layer.n_experts for layer in layers)))}
        | columns
        | {
            "sequence": np.repeat(np.arange(len(pieces), dtype=np.int32), lengths),
            "position": np.concatenate([np.zeros(0, np.int32), *positions]),
            "generated": np.concatenate([np.zeros(0, bool), *generated]),
            "tokens": np.concatenate([np.zeros(0, np.int32), *(piece.tokens for piece in pieces)]),
        }
    )
