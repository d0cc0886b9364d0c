"""Run prompts, and what a model generates after them, and cut the recorded dispatch into one piece per sequence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import GenerationConfig

from moescope.capture.encode import Batch
from moescope.capture.session import CaptureSession
from moescope.errors import InputError
from moescope.models.experts import Dispatch, DispatchRecorder, describe_gating, recording
from moescope.models.inputs import padding_id
from moescope.models.writing import end_tokens
from moescope.routing.trace import id_dtype

if TYPE_CHECKING:
    from moescope.models import LoadedModel


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


@dataclass(frozen=True, eq=False)
class Piece:
    """The routing of one sequence of n traced tokens, the first ``prompt`` of which are the prompt's."""

    columns: dict[str, np.ndarray]
    """``ids`` (n, L, K), and where recorded ``weights`` (n, L, K) and ``scores`` (n, L, E)"""
    tokens: np.ndarray
    """int32 (n,)"""
    prompt: int


Routers = dict[str, Any]
"""``gating`` and ``scores`` of each layer, one value where all agree, and ``weight_on``"""
_PROBE = 16  # tokens of the first text on which the layers' gating is measured


def run_pieces(
    model: LoadedModel,
    batches: Iterable[Batch],
    *,
    weights: torch.dtype | bool,
    scores: bool,
    max_new_tokens: int,
    decoding: Decoding,
) -> Iterator[tuple[list[Piece], Routers | None]]:
    """The pieces of each batch's texts, padded on the left where tokens are generated; and of the first batch how the layers
    make weights of scores."""
    with recording(model, weights=weights, scores=scores, first=True) as recorder:
        for number, batch in enumerate(batches):
            if max_new_tokens:
                pieces = _generated(model, recorder, batch, max_new_tokens, decoding)
            else:
                CaptureSession(model, (), stop=False).run(batch.ids, batch.mask)
                pieces = _prompts(recorder, batch, 1)
            routers = _routers(model, recorder, batch) if number == 0 else None
            recorder.steps.clear()
            yield pieces, routers


def _routers(model: LoadedModel, recorder: DispatchRecorder, batch: Batch) -> Routers:
    """What the last tokens of a batch's first prompt say, read from the recorder's first pass."""
    tokens = torch.from_numpy(np.flatnonzero(batch.mask[0])[-_PROBE:])
    tolerance = 1e-3 if model.dtype == torch.float32 else 3e-2
    gating, meanings = {}, {}
    for layer, dispatch in zip(recorder.layers, recorder.steps[0], strict=True):
        meanings[layer.layer] = recorder.meanings.get(layer.layer, "none")
        if dispatch.scores is None or dispatch.weights is None or meanings[layer.layer] != "logits":
            continue
        scores, ids, weights = (part[tokens.to(part.device)] for part in (dispatch.scores, dispatch.ids, dispatch.weights))
        chosen = torch.where(ids == 255, -1, ids.int()) if ids.dtype == torch.uint8 else ids
        gating[layer.layer] = str(describe_gating(scores, chosen, weights, tolerance))
    return {"gating": _by_layer(gating), "scores": _by_layer(meanings), "weight_on": recorder.layers[0].rule.weight_on}


def _by_layer(values: dict[int, str]) -> str | dict[str, str]:
    """One value where all layers agree, else one per layer."""
    if len(set(values.values())) == 1:
        return next(iter(values.values()))
    return {str(layer): value for layer, value in values.items()}


def _generated(
    model: LoadedModel, recorder: DispatchRecorder, batch: Batch, max_new_tokens: int, decoding: Decoding
) -> list[Piece]:
    sequences, parents = _generate(model, batch, max_new_tokens, decoding)
    prompts = _prompts(recorder, batch, decoding.beams)
    ends = _generated_lengths(model, sequences)
    if ends.max() < 2:
        return prompts
    columns = _stack(recorder.steps[1 : ends.max()], recorder)  # (S, rows, L, ·)
    pieces = []
    for row, prompt in enumerate(prompts):
        # the last generated token is never fed back, so it has no routing; neither has padding after the end
        fed = np.arange(ends[row] - 1)
        source = np.full(len(fed), row) if parents is None else parents[row, fed + 1]
        pieces.append(
            Piece(
                {name: np.concatenate([prompt.columns[name], columns[name][fed, source]]) for name in columns},
                np.concatenate([prompt.tokens, sequences[row, fed].astype(np.int32)]),
                prompt.prompt,
            )
        )
    return pieces


def _generate(
    model: LoadedModel, batch: Batch, max_new_tokens: int, decoding: Decoding
) -> tuple[np.ndarray, np.ndarray | None]:
    """Generated ids (B, S), and with beams the row of the forward pass that each token was chosen from (B, S)."""
    module: Any = model.module
    sampling = {"temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": decoding.top_k}
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=decoding.sample,
        num_beams=decoding.beams,
        eos_token_id=end_tokens(model),
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
    ends = end_tokens(model)
    if ends is None:
        return np.full(len(sequences), sequences.shape[1])
    over = np.isin(sequences, ends)
    return np.asarray(np.where(over.any(1), over.argmax(1) + 1, sequences.shape[1]))


def _prompts(recorder: DispatchRecorder, batch: Batch, beams: int) -> list[Piece]:
    """The prompts' pieces, from the first forward pass, without padding."""
    mask = batch.mask.numpy()
    columns = {}
    for name, stacked in _stack(recorder.steps[:1], recorder).items():
        rows = stacked.reshape(-1, mask.shape[1], *stacked.shape[2:])
        columns[name] = rows[::beams] if len(rows) == beams * len(mask) else rows  # the beams of a prompt are alike
    return [
        Piece(
            {name: rows[row][mask[row]] for name, rows in columns.items()},
            batch.ids[row].numpy()[mask[row]].astype(np.int32),
            int(mask[row].sum()),
        )
        for row in range(len(mask))
    ]


def _stack(steps: Sequence[tuple[Dispatch, ...]], recorder: DispatchRecorder) -> dict[str, np.ndarray]:
    """Columns (S, N, L, ·) of some forward passes of equal N."""
    width = max(layer.n_experts for layer in recorder.layers)
    columns = {}
    for name, dtype in recorder.columns.items():
        arrays = [[getattr(dispatch, name) for dispatch in step] for step in steps]
        if all(array is None for array in arrays[0]):
            continue
        if dtype is not None:
            arrays = [[tensor.to(dtype) for tensor in step] for step in arrays]
        columns[name] = np.stack([_layers(step, name, id_dtype(width), width) for step in arrays])
    return columns


def _layers(tensors: Sequence[torch.Tensor | None], name: str, dtype: np.dtype[Any], n_experts: int) -> np.ndarray:
    """One forward pass's tensors (N, ·) of the layers as (N, L, ·), the narrower ones filled up."""
    present = [tensor for tensor in tensors if tensor is not None]
    if len(present) == len(tensors) and len({(t.shape, t.dtype, t.device) for t in present}) == 1 and name != "scores":
        block = torch.stack(present, 1).cpu().numpy()
        return _ids(block, dtype) if name == "ids" else block
    width = n_experts if name == "scores" else max(tensor.shape[1] for tensor in present)
    fill = {"ids": np.iinfo(dtype).max, "weights": 0, "scores": np.nan}[name]
    columns = []
    for tensor in tensors:
        array = np.zeros((len(present[0]), 0)) if tensor is None else tensor[:, :width].cpu().numpy()
        array = _ids(array, dtype) if name == "ids" else array
        columns.append(np.pad(array, ((0, 0), (0, width - array.shape[1])), constant_values=fill))
    return np.stack(columns, 1)


def _ids(array: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """Recorded ids in the trace's type: -1 and the largest value of uint8 both mean no expert."""
    if array.dtype == dtype:
        return array
    empty = np.iinfo(dtype).max
    none = array == 255 if array.dtype == np.uint8 else array < 0
    return np.where(none, empty, array).astype(dtype)
