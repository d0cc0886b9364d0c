"""What a checkpoint's files hold: how much, how precise, and whether all of it has a place in the model."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from torch import nn

from moescope.errors import InputError
from moescope.files.parse import parse_object

OPTIONAL = ("pooler.",)
"""Weights that some checkpoints of a body lack, and others have in vain, and no site depends on: BERT's pooler, for one."""

# What older or other software left beside the weights: masks and rotary tables that are computed now, the scales of a
# key-value cache in 8 bits, layers that predict further tokens while a model is trained or served.
_SPARED = re.compile(
    r"inv_freq$|(^|\.)position_ids$|(^|\.)token_type_ids$|masked_bias$|\.(attn|attention|self_attn)\.bias$|causal_mask$"
    r"|num_batches_tracked$|_extra_state$|(^|[._])(k|v|q|kv|prob)_scale$|(^|\.)(mtp|nextn|eh_proj|enorm|hnorm|shared_head)(\b|_)"
)
_OTHER_TOWER = re.compile("vision|visual|image|audio|speech|video|multi_modal|multimodal")
_QUANTISED = re.compile(r"scale|zero_?point|absmax|quant|SCB$|qweight|qzeros|g_idx|packed|_blocks$")
_FLOATS = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
# as a weight, each of these means nothing without its scales
_CODES = ("F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "I8", "U8")


@dataclass(frozen=True)
class Stored:
    """What weight files hold.

    ``dtype`` is ``fp32``, ``bf16`` or ``fp16``: that of most of the weights that are floating-point numbers of 16 bits or
    more (fp32 where there are none); ``count`` their number, and ``nbytes`` the bytes of all tensors.
    """

    dtype: str
    count: int
    nbytes: int


def stored(files: Iterable[Path], config: Any, name: str) -> Stored:
    """Read the headers of safetensors files.

    Raises:
        InputError: weights are stored as codes of 8 bits or fewer, and the config does not say how to read them; or it asks
            for more layers than there are tensors.
    """
    counts: dict[str, int] = {}
    nbytes, tensors = 0, 0
    quantised = quantization_of(config)
    for file in files:
        with file.open("rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            header = parse_object(handle.read(length))
        for tensor, entry in header.items():
            if tensor == "__metadata__":
                continue
            tensors += 1
            kind, shape = entry["dtype"], entry["shape"]
            if quantised is None and kind in _CODES and len(shape) > 1 and tensor.endswith("weight"):
                raise InputError(
                    f"model {name!r}: its weights are quantised ({tensor} is stored as {kind}) and its config.json has no "
                    "quantization_config to read them by: take the config.json that came with these weights"
                )
            counts[kind] = counts.get(kind, 0) + math.prod(shape)
            nbytes += entry["data_offsets"][1] - entry["data_offsets"][0]
    layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    if isinstance(layers, int) and layers > tensors:  # before they are built: a file may ask for millions
        raise InputError(
            f"model {name!r}: its config.json asks for {layers} layers, and its weights have {tensors} tensors: "
            "take the one that came with these weights"
        )
    floats = {kind: n for kind, n in counts.items() if kind in _FLOATS}
    most = max(floats, key=lambda kind: floats[kind], default="F32")
    return Stored({"BF16": "bf16", "F16": "fp16"}.get(most, "fp32"), sum(floats.values()), nbytes)


def quantization_of(config: Any) -> str | None:
    """How the weights of a model with this config are quantised, in its own word (``fp8``, ``gptq``, ``bitsandbytes``)."""
    found = getattr(config, "quantization_config", None)
    if not found:
        return None
    fields = found if isinstance(found, dict) else found.to_dict()
    bits = "int8" if fields.get("load_in_8bit") else "int4" if fields.get("load_in_4bit") else None
    method = fields.get("quant_method", "quantised")
    text = str(getattr(method, "value", method))
    return f"{text} {bits}" if bits else text


class HeadMissing(InputError):
    """A checkpoint of a body only was asked for its language-model head."""


def check_whole(name: str, module: Any, config: Any, report: dict[str, Any], *, head: bool) -> None:
    """That every weight of the model was in the files, and that every tensor in the files has a place in it.

    A tensor without one means that the files are read as what they are not (quantised weights without their scales, six
    layers of which four run), unless the class declares that it may be left out, or it is of a head that was not asked for.

    Args:
        name: of the model, and where it lies.
        report: ``missing_keys`` and ``unexpected_keys``, as transformers reports them.

    Raises:
        InputError: tensors are missing, or have no place.
        HeadMissing: ``head``, and the files have none.
    """
    prefix = f"{getattr(module, 'base_model_prefix', '')}."
    body_keys = {f"{prefix}{key}" if head else key for key in module.base_model.state_dict()}
    missing = sorted(report["missing_keys"])
    lost = [key for key in missing if key in body_keys and not key.removeprefix(prefix).startswith(OPTIONAL)]
    if lost:
        raise InputError(
            f"model {name}: its weights lack {len(lost)} tensors that its config asks for ({lost[0]}): "
            "the checkpoint is not of this architecture, or not whole"
        )
    if head and (absent := [key for key in missing if key not in body_keys]):
        raise HeadMissing(f"model {name} has no language-model head (its weights lack {absent[0]}): load it without one")
    strange = [key for key in sorted(report["unexpected_keys"]) if _matters(key, module, config, prefix, head)]
    if strange:
        beside = ", …" if len(strange) > 3 else ""
        raise InputError(
            f"model {name}: its weights hold {len(strange)} tensors that its config has no place for "
            f"({', '.join(strange[:3])}{beside}): {_mend(strange, config)}"
        )


def _matters(key: str, module: nn.Module, config: Any, prefix: str, head: bool) -> bool:
    """Whether a tensor that found no place belongs to what was loaded."""
    inner = key.removeprefix(prefix)
    if (
        _SPARED.search(key)
        or (not head and re.search(r"(^|\.)lm_head\.", key))  # also where it hangs in a language model beside a tower
        or inner.startswith(OPTIONAL)
        or any(re.search(pattern, key) for pattern in _declared(module, config))
    ):
        return False
    first = inner.split(".", 1)[0]
    body: Any = getattr(module, "base_model", module)
    parts = {name for name, _ in body.named_children()} | {name for name, _ in body.named_parameters(recurse=False)}
    if key.startswith(prefix) or first in parts:
        return first in parts or not _OTHER_TOWER.search(first)
    # beside the body: a further head is left alone, a tensor beside the weights of a head that is used is not
    parent = key.rpartition(".")[0]
    return head and any(name == parent for name, _ in module.named_modules() if name)


def _declared(module: nn.Module, config: Any) -> set[str]:
    """Patterns of what the class, or that of the same model with its head, declares may be left out; and the layers that
    the config counts apart, for predicting further tokens."""
    causal: Any = transformers.AutoModelForCausalLM
    classes = [module, causal._model_mapping.get(type(config), None)]
    found = {pattern for c in classes for pattern in getattr(c, "_keys_to_ignore_on_load_unexpected", None) or ()}
    text = config.get_text_config()
    begin, further = getattr(text, "num_hidden_layers", None), getattr(text, "num_nextn_predict_layers", None)
    if begin and further:
        found |= {rf"layers\.{begin + i}\." for i in range(int(further))}
    return found


def _mend(strange: list[str], config: Any) -> str:
    layers = [int(found[1]) for key in strange if (found := re.search(r"\.?(?:layers?|h|blocks?)\.(\d+)\.", key))]
    n_layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    if n_layers and layers and min(layers) >= n_layers:
        return f"its config.json says num_hidden_layers = {n_layers}: take the one that came with these weights"
    if any(re.search("lora_|adapter", key) for key in strange):
        return "an adapter's weights lie among the model's: merge it into the model (peft's merge_and_unload) and save that"
    if quantization_of(config) is None and any(_QUANTISED.search(key.rpartition(".")[2]) for key in strange):
        return "they are the scales of quantised weights, and its config.json has no quantization_config: take the one that "\
            "came with these weights"  # fmt: skip
    return "its config.json is of another model, or of another version: take the one that came with these weights"
