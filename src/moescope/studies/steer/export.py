"""Edits of experts as a checkpoint: what an engine loads instead of being told.

No released engine takes bans or boosts of single experts as an option, so that they are written into the tensors that a model's
own router has. What can be written depends on these:

=============================  ===========================================  ============================================
tensor                         architectures                                what it takes
=============================  ===========================================  ============================================
bias on the router's logits    gpt-oss                                      bans, boosts
bias on the choice alone       DeepSeek-V3's family, GLM-4.5, MiniMax-M2 …  bans (a boost changes weights too)
none                           OLMoE, Mixtral, Qwen …                       as many bans in each layer, by leaving those
                                                                            experts out
each expert's down projection  all of these                                 scales
=============================  ===========================================  ============================================

Every export is read again by plain transformers and compared with the model under the hooked edits before it counts.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from moescope.capture.encode import Encoded
from moescope.errors import InputError
from moescope.intervene.experts import ExpertEdits, edits_by_layer, steer_experts
from moescope.models import LoadedModel
from moescope.models.experts import ExpertLayer, expert_layers
from moescope.models.experts.layers import COUNT_FIELDS
from moescope.models.experts.rules import ExpertsCall
from moescope.models.pretrained import quiet
from moescope.study.checkpoint import Checkpoint

NEVER = -1e4
"""added to the logit or the score of a banned expert: within every float type, and beyond what any other can lack"""
_CHOICE = ("e_score_correction_bias", "expert_bias")
_TOKENS = 1024


@dataclass(frozen=True)
class Change:
    """One tensor that is written otherwise."""

    layer: int
    tensor: str
    edit: str


@dataclass(frozen=True, eq=False)
class Patch:
    """What is written otherwise than it was."""

    state: dict[str, Tensor]
    config: dict[str, int]
    changes: tuple[Change, ...]


def patch_of(model: LoadedModel, edits: ExpertEdits) -> Patch:
    """The tensors and config that do what ``edits`` do.

    Raises:
        InputError: this architecture has no tensor for one of them; names layer and edit.
    """
    module: Any = model.module
    names = {id(part): name for name, part in module.named_modules()}
    state = dict(module.state_dict())
    layers = {layer.layer: layer for layer in expert_layers(model)}
    by_layer = edits_by_layer(model, edits)
    changes: list[Change] = []
    dropped: dict[int, tuple[int, ...]] = {}

    def held(part: nn.Module, leaf: str) -> Tensor | None:
        return state.get(f"{names[id(part)]}.{leaf}")

    def put(number: int, part: nn.Module, leaf: str, new: Tensor, edit: str) -> None:
        name = f"{names[id(part)]}.{leaf}"
        state[name] = new
        changes.append(Change(number, name, edit))

    for number, edit in by_layer.items():
        layer = layers[number]
        if edit.force:
            raise InputError(
                f"{model.name}, layer {number}: no tensor of a router forces an expert; ban or boost instead", "export"
            )
        if edit.scale:
            bank, leaves, new = _scaled(layer, edit.scale)
            for name, value in zip(leaves, new, strict=True):
                put(number, bank, name, value, "scale " + _said(edit.scale))
        if not edit.ban and not edit.boost:
            continue
        bias = _logit_bias(layer)
        choice = _choice_bias(model, layer)
        if bias is not None:
            values = {**(edit.boost or {}), **dict.fromkeys(edit.ban, NEVER)}
            put(number, bias, "bias", _added(bias.bias, values), "add " + _said(values))
        elif edit.boost:
            kind = model.config.model_type
            raise InputError(
                f"{model.name}, layer {number}: a router of type {kind!r} has no bias on its logits, so a boost cannot be "
                f"written: {'its bias joins the choice alone, and not the weights' if choice else 'it has no bias at all'}",
                "export",
            )
        elif choice is not None:
            part, leaf = choice
            put(number, part, leaf, _added(getattr(part, leaf), dict.fromkeys(edit.ban, NEVER)), f"ban {_listed(edit.ban)}")
        else:
            dropped[number] = edit.ban
    config = _drop(model, layers, dropped, held, put) if dropped else {}
    return Patch(state, config, tuple(changes))


def _logit_bias(layer: ExpertLayer) -> Any:
    """The router, where it has a bias on the logits of its experts."""
    router: Any = layer.router
    bias = getattr(router, "bias", None)
    return router if isinstance(bias, Tensor) and bias.shape == (layer.n_experts,) else None


def _choice_bias(model: LoadedModel, layer: ExpertLayer) -> tuple[nn.Module, str] | None:
    """The module and the name of a bias that joins the choice of experts and not their weights."""
    block = model.body.get_submodule(layer.path.rpartition(".")[0])
    for part in [*(layer.router.modules() if layer.router is not None else ()), block]:
        for leaf in _CHOICE:
            found = getattr(part, leaf, None)
            if isinstance(found, Tensor) and found.numel() == layer.n_experts:
                return part, leaf
    return None


def _added(tensor: Tensor, values: Mapping[int, float]) -> Tensor:
    new = tensor.detach().clone()
    flat = new.view(-1)
    for expert, value in values.items():
        flat[expert] += value
    return new


def _scaled(layer: ExpertLayer, scale: Mapping[int, float]) -> tuple[Any, list[str], list[Tensor]]:
    bank: Any = layer.module
    if type(layer.rule) is not ExpertsCall or not hasattr(bank, "down_proj") or hasattr(bank, "post_expert_norm"):
        raise InputError(
            f"{layer}: what an expert gives is not its down projection's output, so it cannot be scaled there", "export"
        )
    leaves = [leaf for leaf in ("down_proj", "down_proj_bias") if isinstance(getattr(bank, leaf, None), Tensor)]
    found = []
    for leaf in leaves:
        new = getattr(bank, leaf).detach().clone()
        for expert, factor in scale.items():
            if expert >= len(new):
                raise InputError(f"{layer}: expert {expert} has no weights, so it cannot be scaled", "export")
            new[expert] *= factor
        found.append(new)
    return bank, leaves, found


def _drop(
    model: LoadedModel, layers: Mapping[int, ExpertLayer], dropped: Mapping[int, tuple[int, ...]], held: Any, put: Any
) -> dict[str, int]:
    """Leave banned experts out, as a config can say it: as many in each layer."""
    kind, sizes = model.config.model_type, {number: len(dropped.get(number, ())) for number in layers}
    if len(set(sizes.values())) > 1:
        few, most = min(sizes, key=lambda n: sizes[n]), max(sizes, key=lambda n: sizes[n])
        raise InputError(
            f"{model.name}: a router of type {kind!r} has no bias, so banned experts can only be left out of the checkpoint, "
            f"as many in each layer; layer {most} bans {sizes[most]}, layer {few} {sizes[few]}: ban as many in every layer "
            "(ban_top does)",
            "export",
        )
    config, gone = model.config.get_text_config(), next(iter(sizes.values()))
    for number, layer in layers.items():
        keep = torch.tensor([e for e in range(layer.n_experts) if e not in dropped[number]], device=model.device)
        parts = [layer.module, *(layer.router.modules() if layer.router is not None else ())]
        for part in {id(p): p for p in parts}.values():
            for leaf in (*part._parameters, *part._buffers):
                tensor = held(part, leaf)
                if tensor is not None and tensor.dim() and len(tensor) == layer.n_experts:
                    put(number, part, leaf, tensor[keep.to(tensor.device)], f"without {_listed(dropped[number])}")
    found = {
        name: layers[min(layers)].n_experts - gone for name in COUNT_FIELDS if getattr(config, name, None) == _size(layers)
    }
    if not found:
        raise InputError(
            f"{model.name}: its config says nowhere that it has {_size(layers)} experts, so none can be left out", "export"
        )
    return found


def _size(layers: Mapping[int, ExpertLayer]) -> int:
    return next(iter(layers.values())).n_experts


def _said(values: Mapping[int, float]) -> str:
    return ", ".join(f"{expert}: {value:g}" for expert, value in sorted(values.items()))


def _listed(experts: Sequence[int]) -> str:
    return ", ".join(map(str, experts))


@dataclass(frozen=True, eq=False)
class Export:
    """A checkpoint, and how far what it computes is from the model under the hooked edits."""

    checkpoint: Checkpoint
    patch: Patch
    difference: float
    """norm of the difference of the logits over theirs"""
    untouched: float
    """the same of the model without the edits: what an export that does nothing would give"""
    tokens: int


def export(model: LoadedModel, edits: ExpertEdits, texts: Encoded) -> Export:
    """Write the checkpoint beside, read it again, and compare.

    Raises:
        InputError: it cannot be written, or computes something else than the hooked edits.
    """
    patch = patch_of(model, edits)
    draft = tempfile.TemporaryDirectory(prefix="moescope-")
    folder = Path(draft.name)
    with quiet(), _config(model, patch.config):
        module: Any = model.module
        module.save_pretrained(folder, state_dict=patch.state)
        model.tokenizer.save_pretrained(folder)
    with quiet():
        again: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=model.dtype)
    again.to(model.device).eval()
    rows = _few(texts)
    off, whole, nothing, tokens = 0.0, 0.0, 0.0, 0
    with torch.no_grad():
        for row in rows:
            ids = torch.from_numpy(texts[row].astype(np.int64))[None].to(model.device)
            plain = model.module(input_ids=ids, use_cache=False).logits.float()
            with steer_experts(model, edits):
                hooked = model.module(input_ids=ids, use_cache=False).logits.float()
            found = again(input_ids=ids, use_cache=False).logits.float()
            off += float((found - hooked).square().sum())
            nothing += float((plain - hooked).square().sum())
            whole += float(hooked.square().sum())
            tokens += ids.numel()
    difference, untouched = (off / whole) ** 0.5, (nothing / whole) ** 0.5
    most = max(3e-5, 8 * torch.finfo(model.dtype).eps)
    if not difference <= most:
        raise InputError(
            f"{model.name}: a checkpoint with these edits gives other logits than the edits do, by {difference:.2g} of their "
            f"norm, where rounding explains {most:.1g}: type {model.config.model_type!r} cannot have them written",
            "export",
        )
    checkpoint = Checkpoint(folder)
    checkpoint.draft = draft
    return Export(checkpoint, patch, difference, untouched, tokens)


def _few(texts: Encoded) -> list[int]:
    """Rows of texts, from all over them, of about a thousand tokens."""
    order = np.random.default_rng(0).permutation(len(texts))
    ends = np.cumsum(texts.lengths[order])
    return [int(i) for i in order[: int(np.searchsorted(ends, _TOKENS)) + 1]]


@contextmanager
def _config(model: LoadedModel, changes: Mapping[str, int]) -> Iterator[None]:
    config = model.config.get_text_config()
    before = {name: getattr(config, name) for name in changes}
    try:
        for name, value in changes.items():
            setattr(config, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)


def check_engine(engine: str) -> None:
    """Refuse an engine that takes no checkpoint of transformers.

    Raises:
        InputError: naming what to do instead.
    """
    if engine == "llama.cpp":
        raise InputError(
            "llama.cpp takes no bans as an option; export for transformers and convert that with llama.cpp's own script",
            "export",
        )


def check_patch(model: LoadedModel, edits: Any) -> None:
    """Refuse, before any work, edits that cannot be written."""
    if not isinstance(edits, ExpertEdits):
        raise InputError("neurons that are switched off cannot be written for an engine; give edits of experts", "export")
    patch_of(model, edits)
