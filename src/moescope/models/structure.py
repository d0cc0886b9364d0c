"""Where a transformer can be read and written: sites, found by structure.

No table of model classes is kept. A decoder or encoder is a list of layers; a layer has an attention block and, beside it,
either a dense MLP (linear maps from the model width to an inner width and back) or a block of experts with a router. What is
what is told by the shapes of the weights and by where the modules hang. Models that are not built so (state-space models,
encoder-decoders) are refused by the name of their type.

``embed`` is transformers' ``hidden_states[0]`` and ``resid:L`` its ``hidden_states[L + 1]``, but for the last entry, which most
models give after their final norm: ``resid`` is always before it.

``attn_out`` and ``mlp_out`` are what a block computes, before it joins the residual stream and before any norm that stands
between: in Gemma and OLMo 2, which normalise a block's output, the stream receives norm(mlp_out); in BERT, norm(mlp_out +
stream). In GPT-NeoX attention and MLP read the same stream, side by side. A layer with experts has no ``mlp_act``; its
``mlp_in`` and ``mlp_out`` are those of the whole block, shared experts included.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any, Literal

from torch import Tensor, nn

from moescope.errors import InputError
from moescope.models.refused import check_text
from moescope.models.taps import BatchShape, Structure, TapPoint
from moescope.types import SITE_KINDS, Site

_ADAPTER = re.compile("(^|_)(lora|adapter|dora|ia3)(_|$)")


def resolve(body: nn.Module, config: Any, *, images: bool = False) -> Structure:
    """Find every site of a transformer body, of texts or of ``images``, from the shapes and places of its modules.

    Raises:
        InputError: the model has neither a stack of attention and MLP layers nor experts (names the model type).
    """
    if not images:
        check_text(type(body), config)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    kind = getattr(config, "model_type", type(body).__name__)
    d_model = int(getattr(text, "hidden_size", 0) or 0)
    layers = _layer_stack(body, int(getattr(text, "num_hidden_layers", 0) or 0))
    taps: dict[Site, TapPoint] = {}
    why = _unreadable(body, text, layers)
    if layers and d_model and why is None:
        taps = _taps(layers, d_model)
    kinds = {site.kind for site in taps}
    has_experts = any(name.rpartition(".")[2] == "experts" for name, _ in body.named_modules())
    if "attn_out" not in kinds or not ("mlp_out" in kinds or has_experts):
        why = why or "it has no stack of layers with an attention and an MLP block of linear maps at the width of the stream"
        if not has_experts:
            raise InputError(f"model type {kind!r} is not supported: {why}")
        taps = {}  # the routing of its experts can still be traced
    order = sorted(taps, key=lambda site: (SITE_KINDS.index(site.kind), site.layer))
    return Structure(layers, d_model, {site: taps[site] for site in order}, "" if taps else why or "")


# By how many residual streams a config says it has: AltUp (Gemma 3n) and hyper-connections (DeepSeek V4).
_STREAMS = ("altup_num_inputs", "hc_mult", "hc_count")

# What of a layer is not its MLP.
_NOT_MLP = "attn|attention|norm|ple_block|per_layer|audio|vision|image"
# How often a stack is run: Dory and HRM.
_LOOPS = ("n_recurrent_loops", "H_cycles", "L_cycles")


def _unreadable(body: nn.Module, text: Any, layers: tuple[nn.Module, ...]) -> str | None:
    """Why a model has no sites though it may have attention and MLPs; None where nothing speaks against it."""
    streams = next((n for name in _STREAMS if isinstance(n := getattr(text, name, None), int) and n > 1), None)
    if streams is not None:
        return f"it keeps {streams} residual streams side by side, so there is not one stream to read"
    if hasattr(text, "num_hidden_groups") or any((getattr(text, name, 1) or 1) > 1 for name in _LOOPS):
        return "its layers share one set of weights that is run several times, so no layer can be read by itself"
    if hasattr(body, "_pad_to_window_size") or getattr(text, "prompt_length", None):
        return "it lengthens texts by itself, so places in it are not those of the text"
    if any("time_mix" in name for layer in layers for name, _ in layer.named_parameters()):
        return "it is recurrent, and its MLP reads the token before too"
    if any(_convolves(layer) for layer in layers):
        return "it mixes tokens by convolutions beside its attention"
    if any("attentionresidual" in type(module).__name__.lower() for layer in layers for module in layer.children()):
        return "its layers attend over what earlier layers gave, so there is not one stream to read"
    if any(_attention(layer) is None and any("cross" in name for name, _ in layer.named_children()) for layer in layers):
        return "some of its layers attend to images alone and do not run on text"
    return None


def _convolves(layer: nn.Module) -> bool:
    """Whether what a block gives goes through a convolution before it joins the stream (Inkling), or images' convolutions stand
    where the MLP would (SAM's text encoder)."""
    if _attention(layer) is None:
        return any(isinstance(module, nn.Conv2d) for module in layer.modules())
    return any("shortconv" in type(child).__name__.lower() for child in layer.children())


def _layer_stack(body: nn.Module, n_layers: int) -> tuple[nn.Module, ...]:
    """The outermost list of ``n_layers`` modules of which some have attention, in the language model where there is one; a
    vision or audio tower's is not meant."""
    found = []
    for name, module in body.named_modules():
        if not isinstance(module, nn.ModuleList) or len(module) != n_layers:
            continue
        if re.search("vision|visual|image|video|audio|speech", name):
            continue
        if any(_attention(layer) is not None for layer in module):
            found.append((not re.search("language_model|text_model", name), tuple(module)))
    return min(found, key=lambda item: item[0])[1] if found else ()


def _linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """(in, out) of a linear map: nn.Linear and its quantised kin, the transposed Conv1D of GPT-2, or a map with adapters
    (LoRA) beside it, which is one map as a whole; else None."""
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return int(module.in_features), int(module.out_features)  # type: ignore[arg-type]
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        return int(module.weight.shape[0]), int(module.nf)  # type: ignore[arg-type, index]
    children = list(module.named_children())
    if any(_ADAPTER.search(name) for name, _ in children) and not _takes_residual(module):
        shapes = [shape for name, child in children if not _ADAPTER.search(name) and (shape := _linear_shape(child))]
        return shapes[0] if len(shapes) == 1 else None
    return None


def _parts(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Every module under this one, by name, in the order in which it was built; what a linear map is made of, should it
    be wrapped or have adapters, is no part of its own."""
    for name, child in module.named_children():
        yield prefix + name, child
        if not _linear_shape(child):
            yield from _parts(child, f"{prefix}{name}.")


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() and not any(True for _ in module.children())


def _attention(layer: nn.Module) -> str | None:
    """Name of the layer's self-attention child."""
    for name, child in layer.named_children():
        words = f"{name} {type(child).__name__}".lower()  # RecurrentGemma calls it temporal_block
        if not re.search("attn|attention", words) or re.search("cross|encoder", name.lower()) or _is_norm(child):
            continue
        if any(_linear_shape(module) for module in child.modules()):
            return name
    return None


def _taps(layers: tuple[nn.Module, ...], d_model: int) -> dict[Site, TapPoint]:
    shape = _batch_shape(layers[0])
    taps: dict[Site, TapPoint] = {}

    def add(kind: Any, layer: int, module: nn.Module, side: Literal["input", "output"], width: int = d_model) -> None:
        site = Site(kind, layer)
        taps[site] = TapPoint(site, module, side, width, shape)

    add("embed", 0, layers[0], "input")
    for index, layer in enumerate(layers):
        add("resid", index, layer, "output")
        attention = _attention(layer)
        if attention is not None:
            add("attn_out", index, _before_residual(layer.get_submodule(attention), d_model), "output")
        experts = _expert_block(layer, attention, d_model)
        if experts is not None:
            block, router, n_experts = experts
            # where a shared expert stands beside the block (GraniteMoeShared), no module's output is that of both
            if _dense_mlp(layer, attention, d_model, beside=block) is None:
                add("mlp_in", index, block, "input")
                add("mlp_out", index, block, "output")
            add("router", index, router, "output", n_experts)
            continue
        dense = _dense_mlp(layer, attention, d_model)
        if dense is not None and not _banks_beside(layer, attention, dense[0]):
            entry, down, inner = dense
            add("mlp_in", index, entry, "input")
            if any(isinstance(module, nn.Embedding) for module in entry.modules()):
                # experts that are looked up and added to the MLP inside it (Doge)
                add("mlp_out", index, entry, "output")
                continue
            add("mlp_act", index, down, "input", inner)
            # not the MLP module's own output: in some architectures (BLOOM) that has the residual added already
            add("mlp_out", index, down, "output")
    return taps


def _batch_shape(first_layer: nn.Module) -> BatchShape:
    """The one recorder of layer 0: resolving a model twice must not pile up hooks."""
    for hook in first_layer._forward_pre_hooks.values():
        if isinstance(hook, BatchShape):
            return hook
    recorder = BatchShape()
    first_layer.register_forward_pre_hook(recorder, with_kwargs=True)
    return recorder


def _before_residual(block: nn.Module, d_model: int) -> nn.Module:
    """The module whose output is the block's contribution before it joins the residual stream.

    That is the block itself, except where it, or a module in it, is handed the residual to add (BLOOM, BERT): then that
    module's last map to the model width; or where it adds the residual to what an attention inside it gives (MPNet).
    """
    for module in block.modules():
        if _takes_residual(module):
            linear = [part for _, part in _parts(module) if (_linear_shape(part) or (0, 0))[1] == d_model]
            if linear:
                return linear[-1]
    inner = _attention(block)
    if inner is not None and any(_is_norm(child) for child in block.children()):
        return block.get_submodule(inner)
    return block


def _takes_residual(module: nn.Module) -> bool:
    """Whether a module is handed the residual, which it adds to what it gives."""
    return bool({"residual", "input_tensor"} & inspect.signature(module.forward).parameters.keys())


def _rest(layer: nn.Module, attention: str | None) -> Iterator[tuple[str, nn.Module]]:
    """Every module under the layer outside attention (self or cross), norms that have maps of their own (AXK2), what adds
    per-layer embeddings (Gemma 4) and what other than text goes through (Higgs Audio), in the order in which it was built."""
    for name, module in _parts(layer):
        head = name.split(".", 1)[0].lower()
        aside = re.search(_NOT_MLP, head) or "adapter" in name  # X-MOD's stand inside the MLP's output
        if head != (attention or "").lower() and not aside:
            yield name, module


def _expert_block(layer: nn.Module, attention: str | None, d_model: int) -> tuple[nn.Module, nn.Module, int] | None:
    """(block, router, number of experts): a module that holds a bank of experts and a weight (experts, d_model) beside it."""
    for _, block in _rest(layer, attention):
        for bank_name, bank in block.named_children():
            n_experts = _bank_size(bank)
            if n_experts < 2:
                continue
            for name, module in block.named_modules():
                weight = getattr(module, "weight", None)
                inside = name == bank_name or name.startswith(bank_name + ".")
                if not inside and isinstance(weight, Tensor) and tuple(weight.shape) == (n_experts, d_model):
                    return block, module, n_experts
    return None


def _bank_size(bank: nn.Module) -> int:
    """Number of experts in a bank: leading size of its stacked (experts, ·, ·) weights, or length of its list; else 0."""
    if isinstance(bank, nn.ModuleList):
        return len(bank) if any(_linear_shape(m) for m in bank.modules()) else 0
    if isinstance(bank, nn.Conv1d | nn.Conv2d):  # of a short convolution (LFM2): channels, not experts
        return 0
    stacked = {parameter.shape[0] for parameter in bank.parameters(recurse=False) if parameter.dim() == 3}
    return int(stacked.pop()) if len(stacked) == 1 else 0


def _banks_beside(layer: nn.Module, attention: str | None, mlp: nn.Module) -> bool:
    """Whether the layer has experts outside its dense MLP, whose output joins that of the MLP later (Gemma 4)."""
    within = {id(module) for module in mlp.modules()}
    return any(name.rpartition(".")[2] == "experts" and id(m) not in within for name, m in _rest(layer, attention))


def _dense_mlp(
    layer: nn.Module, attention: str | None, d_model: int, beside: nn.Module | None = None
) -> tuple[nn.Module, nn.Module, int] | None:
    """(module that takes the MLP's input, down projection, inner width), not inside ``beside``."""
    within = {id(module) for module in beside.modules()} if beside is not None else set()
    linear = [
        (name, module, shape)
        for name, module in _rest(layer, attention)
        if id(module) not in within and (shape := _linear_shape(module))
    ]
    for position in range(len(linear) - 1, -1, -1):
        down_name, down, (inner, out) = linear[position]
        if out != d_model:
            continue
        for up_name, up, (width, made) in linear[:position]:
            # one map up, or gate and up in one matrix of twice the width (Phi-3)
            if width == d_model and made in (inner, 2 * inner):
                container = _common(layer, up_name, down_name)
                if container is layer or any(_is_norm(module) for module in container.modules()):
                    return up, down, inner
                return container, down, inner
    return None


def _common(layer: nn.Module, a: str, b: str) -> nn.Module:
    """The smallest module that holds both."""
    shared = []
    for x, y in zip(a.split("."), b.split("."), strict=False):
        if x != y:
            break
        shared.append(x)
    return layer.get_submodule(".".join(shared))
