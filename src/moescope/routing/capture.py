"""From prompts to a routing trace: a forward pass over each prompt, or a whole generation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from transformers import GenerationConfig

from moescope.capture.activations import Progress
from moescope.capture.encode import Batch, Encoded, batches, encode, pad, padding_id
from moescope.capture.session import CaptureSession
from moescope.errors import InputError
from moescope.routing.dispatch import Dispatch, DispatchRecorder, recording
from moescope.routing.trace import RoutingTrace, TracedSequence, id_dtype

if TYPE_CHECKING:
    from moescope.models import LoadedModel


class PromptLike(Protocol):
    """What a prompt must have; ``moescope.tasks.Prompt`` has it."""

    @property
    def id(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def category(self) -> str | None: ...
    @property
    def group(self) -> str | None: ...


@dataclass(frozen=True)
class Decoding:
    """How text is generated: greedily, sampled (``sample``), by beam search (``beams`` > 1), or both.

    Sampled text depends on the seed and on which prompts share a batch.
    """

    sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """sample among the k likeliest tokens only; 0: among all"""
    beams: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.beams < 1:
            raise InputError(f"beams: {self.beams} is not a positive number")
        if not self.temperature > 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise InputError("decoding: temperature must be above 0, top_p in (0, 1] and top_k at least 0")


GREEDY = Decoding()


def trace_prompts(
    model: LoadedModel,
    prompts: Sequence[PromptLike],
    *,
    max_new_tokens: int = 0,
    decoding: Decoding = GREEDY,
    weights: bool = True,
    weight_dtype: str = "float16",
    tokens: bool = True,
    max_tokens: int | None = None,
    batch_tokens: int = 8192,
    progress: Progress | None = None,
) -> RoutingTrace:
    """Trace the routing of prompts and, with ``max_new_tokens``, of what the model generates after them.

    Without sampling, the trace does not depend on which prompts share a batch (up to rounding).

    Args:
        prompts: each with ``id``, ``text``, ``category`` and ``group``.
        max_new_tokens: tokens to generate after each prompt; the model must have been loaded with its head.
        weights, weight_dtype: whether and how ("float16", "float32") the weights are kept.
        tokens: whether the token ids are kept, from which the text can be read.
        max_tokens: keep at most this many tokens of a prompt, its last.
        batch_tokens: rows x longest row of a batch, generated tokens counted.

    Raises:
        InputError: the model is dense, or has no head to generate with; a prompt is empty; a layer sent its tokens
            nowhere.
    """
    if weight_dtype not in ("float16", "float32"):
        raise InputError(f'weight_dtype: "{weight_dtype}" is not one of "float16", "float32"')
    if max_new_tokens < 0:
        raise InputError(f"max_new_tokens: {max_new_tokens} is negative")
    if max_new_tokens and not model.has_head:
        raise InputError(f"model {model.name} was loaded without its head, so it cannot generate: load it with head=True")
    encoded = encode(model, [prompt.text for prompt in prompts], max_tokens=max_tokens)
    pieces: dict[int, _Piece] = {}
    dtype = {"float16": torch.float16, "float32": torch.float32}[weight_dtype]
    with recording(model, weights=weights, weight_dtype=dtype) as recorder:
        layers = recorder.layers
        for batch in _batches(model, encoded, max_new_tokens, batch_tokens):
            recorder.steps.clear()
            for row, piece in zip(batch.rows, _run(model, recorder, batch, max_new_tokens, decoding), strict=True):
                pieces[int(row)] = piece
            if progress is not None:
                progress(len(pieces), len(prompts))
    ordered = [pieces[row] for row in range(len(prompts))]
    n_experts = tuple(layer.n_experts for layer in layers)
    empty_ids = np.zeros((0, len(layers), 1), id_dtype(max(n_experts)))
    lengths = [len(piece.ids) for piece in ordered]
    return RoutingTrace(
        layers=tuple(layer.layer for layer in layers),
        n_experts=n_experts,
        ids=np.concatenate([piece.ids for piece in ordered]) if ordered else empty_ids,
        weights=(np.concatenate([p.weights for p in ordered]) if ordered else empty_ids.astype(weight_dtype))
        if weights
        else None,
        sequence=np.repeat(np.arange(len(ordered), dtype=np.int32), lengths),
        position=np.concatenate([np.arange(n, dtype=np.int32) for n in lengths]) if ordered else np.zeros(0, np.int32),
        generated=np.concatenate([np.arange(len(p.ids)) >= p.prompt for p in ordered]) if ordered else np.zeros(0, bool),
        tokens=(np.concatenate([p.tokens for p in ordered]) if ordered else np.zeros(0, np.int32)) if tokens else None,
        sequences=tuple(TracedSequence(p.id, getattr(p, "category", None), getattr(p, "group", None)) for p in prompts),
        meta={
            "model": model.name,
            "revision": model.revision,
            "fingerprint": model.fingerprint,
            "architecture": model.config.model_type,
            "dtype": str(model.dtype).removeprefix("torch."),
        },
    )


@dataclass(frozen=True, eq=False)
class _Piece:
    """The trace of one sequence."""

    ids: np.ndarray  # (n, L, K)
    weights: Any  # (n, L, K)
    tokens: np.ndarray  # (n,)
    prompt: int  # tokens of the prompt


def _batches(model: LoadedModel, encoded: Encoded, max_new_tokens: int, batch_tokens: int) -> Iterator[Batch]:
    fill = padding_id(model)
    for rows in batches(encoded.lengths + max_new_tokens, batch_tokens):
        yield pad(encoded, rows, pad_id=fill, side="left" if max_new_tokens else "right")


def _run(model: LoadedModel, recorder: DispatchRecorder, batch: Batch, max_new_tokens: int, decoding: Decoding) -> list[_Piece]:
    lengths = batch.mask.sum(1).tolist()
    if not max_new_tokens:
        CaptureSession(model, (), stop=False).run(batch.ids, batch.mask)
        (first,) = recorder.steps
        return _prompt_pieces(first, batch, lengths, 1)
    sequences, parents = _generate(model, batch, max_new_tokens, decoding)
    prompts = _prompt_pieces(recorder.steps[0], batch, lengths, decoding.beams)
    ids, weights = _stack(recorder.steps[1:])  # (S, R, L, K)
    ends = _generated_lengths(model, sequences)
    pieces = []
    for row, prompt in enumerate(prompts):
        fed = np.arange(ends[row] - 1)  # the last generated token is never fed back
        source = parents[row, fed + 1] if parents is not None else np.full(len(fed), row)
        pieces.append(
            _Piece(
                np.concatenate([prompt.ids, ids[fed, source]]) if len(fed) else prompt.ids,
                prompt.weights if weights is None or not len(fed) else np.concatenate([prompt.weights, weights[fed, source]]),
                np.concatenate([prompt.tokens, sequences[row, fed].astype(np.int32)]),
                prompt.prompt,
            )
        )
    return pieces


def _generate(
    model: LoadedModel, batch: Batch, max_new_tokens: int, decoding: Decoding
) -> tuple[np.ndarray, np.ndarray | None]:
    """Generated ids (B, S), and for beams the row of the forward pass that each came from (B, S)."""
    module: Any = model.module
    own = getattr(module, "generation_config", None)
    sampling = {"temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": decoding.top_k}
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=decoding.sample,
        num_beams=decoding.beams,
        eos_token_id=getattr(own, "eos_token_id", None),
        pad_token_id=padding_id(model),
        use_cache=True,
        return_dict_in_generate=True,
        output_scores=decoding.beams > 1,  # without it, no beam indices are returned
        **(sampling if decoding.sample else {}),
    )
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        torch.manual_seed(decoding.seed)
        result = module.generate(
            batch.ids.to(model.device), attention_mask=batch.mask.to(model.device, torch.long), generation_config=config
        )
    sequences = result.sequences[:, batch.ids.shape[1] :].cpu().numpy()
    return sequences, result.beam_indices.cpu().numpy() if decoding.beams > 1 else None


def _generated_lengths(model: LoadedModel, sequences: np.ndarray) -> np.ndarray:
    """Tokens generated in each row (B,): to the first end-of-text token, which is one of them, or to the last."""
    ends = getattr(getattr(model.module, "generation_config", None), "eos_token_id", None)
    if ends is None:
        return np.full(len(sequences), sequences.shape[1])
    over = np.isin(sequences, ends)
    return np.where(over.any(1), over.argmax(1) + 1, sequences.shape[1])


def _prompt_pieces(step: tuple[Dispatch, ...], batch: Batch, lengths: list[int], beams: int) -> list[_Piece]:
    ids, weights = _stack([step])  # (1, rows * T, L, K); the rows of one prompt's beams are alike
    mask = batch.mask.numpy()
    shape = (-1, mask.shape[1], *ids.shape[2:])
    every = beams if ids.shape[1] == beams * mask.size else 1
    by_row = ids.reshape(shape)[::every]
    factors = None if weights is None else weights.reshape(shape)[::every]
    return [
        _Piece(
            by_row[row][mask[row]],
            None if factors is None else factors[row][mask[row]],
            batch.ids[row].numpy()[mask[row]].astype(np.int32),
            lengths[row],
        )
        for row in range(len(mask))
    ]


def _stack(steps: Sequence[tuple[Dispatch, ...]]) -> tuple[np.ndarray, np.ndarray | None]:
    """ids and weights of some forward passes, (S, N, L, K)."""
    if not steps:
        return np.zeros((0, 0, 0, 0), np.uint8), None
    ids = torch.stack([torch.stack([d.ids for d in step], 1) for step in steps]).cpu().numpy()
    if steps[0][0].weights is None:
        return ids, None
    return ids, torch.stack(
        [torch.stack([d.weights for d in step if d.weights is not None], 1) for step in steps]
    ).cpu().numpy()
