"""Adapters (LoRA and its kin, by peft): a model that carries one is made the plain model that it stands for.

Neurons, experts and conversions are of weights; an adapter that is not merged adds maps of its own beside them, which no
site reads.
"""

from __future__ import annotations

import contextlib
import copy
import sys
import warnings
from pathlib import Path
from typing import Any

from torch import nn

from moescope.errors import InputError
from moescope.files.memory import available_memory, gib
from moescope.files.parse import parse_object

ADAPTER = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
# what peft throws for adapters that it cannot attach or merge
_ERRORS = (NotImplementedError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError)


def merged(model: nn.Module, name: str) -> Any:
    """``model``, or where it carries adapters a copy of it in which they are merged into the weights; the model itself stays
    as it is.

    Raises:
        InputError: the adapters are of a kind that cannot be merged, or memory has no room for the copy.
    """
    peft: Any = sys.modules.get("peft")  # without it, no model carries any
    if peft is None:
        return model
    layer_class = peft.tuners.tuners_utils.BaseTunerLayer
    wrapped = isinstance(model, peft.PeftModel | peft.PeftMixedModel)
    if not wrapped and not any(isinstance(module, layer_class) for module in model.modules()):
        return model
    _refuse_prompts(model, name)
    size = sum(p.numel() * p.element_size() for p in model.parameters() if p.device.type == "cpu")
    if size > (free := available_memory()):
        raise InputError(
            f"model {name!r} carries adapters, and memory has no room for a merged copy ({gib(size)}, {gib(free)} free): "
            "merge them in place and give what merge_and_unload() returns"
        )
    try:
        own = copy.deepcopy(model)
        return merge(own) if wrapped else _merge_injected(own, peft)
    except _ERRORS as error:
        raise InputError(
            f"model {name!r} carries adapters that cannot be merged into its weights "
            f"({str(error).splitlines()[0] if str(error) else type(error).__name__}): give the base model, or a merged one"
        ) from error


def merge(model: Any) -> Any:
    """A PeftModel's base with the active adapters merged, in place; without them where they are switched off."""
    peft: Any = sys.modules["peft"]
    layers = [module for module in model.modules() if isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer)]
    if layers and all(layer.disable_adapters for layer in layers):
        return model.unload()
    return model.merge_and_unload(safe_merge=True)


def _merge_injected(model: Any, peft: Any) -> Any:
    """The same for adapters that were put into a model without a wrapper (transformers' ``add_adapter``)."""
    if any(isinstance(module, peft.utils.other.AuxiliaryTrainingWrapper) for module in model.modules()):
        raise ValueError("modules_to_save without a PeftModel around them")
    layer_class = peft.tuners.tuners_utils.BaseTunerLayer
    for name, layer in [(n, m) for n, m in model.named_modules() if isinstance(m, layer_class)]:
        if not layer.disable_adapters:
            layer.merge(safe_merge=True)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())
    model._hf_peft_config_loaded = False
    with contextlib.suppress(AttributeError):
        del model.peft_config
    return model


def _refuse_prompts(model: Any, name: str) -> None:
    for config in (getattr(model, "peft_config", None) or {}).values():
        if getattr(config, "is_prompt_learning", False):
            kind = getattr(config.peft_type, "value", config.peft_type)
            raise InputError(
                f"model {name!r} carries an adapter of type {kind}, which adds to the input and cannot be merged into weights: "
                "give the base model"
            )


def base_of(folder: Path) -> tuple[str, str | None]:
    """The model that the adapter in ``folder`` is of (a path where there is one, relative to the working folder or to the
    adapter's), and its revision.

    Raises:
        InputError: the adapter's files are damaged, a pickle, or name no model; or peft is not installed.
    """
    try:
        fields = parse_object((folder / ADAPTER).read_bytes())
        base, revision = fields.get("base_model_name_or_path"), fields.get("revision")
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{folder / ADAPTER} cannot be read as JSON ({error}): fetch or save the adapter again") from error
    if not (folder / _WEIGHTS).is_file():
        raise InputError(f"{folder} is an adapter without {_WEIGHTS} (pickles are never read): save it as safetensors")
    if not isinstance(base, str) or not base:
        raise InputError(
            f"{folder} is an adapter and its {ADAPTER} names no base_model_name_or_path: write the model's folder or id there, "
            "or save a merged model (peft's merge_and_unload, then save_pretrained) and give that"
        )
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"{folder} is an adapter of {base!r}, which needs peft: pip install 'moescope[finetune]', or give a merged model"
        ) from error
    for place in (Path(base), folder / base, folder.parent / base):
        with contextlib.suppress(OSError):
            if place.is_dir() and place.resolve() != folder.resolve():
                return str(place), None
    return base, revision


def attach(module: Any, folder: Path, name: str) -> Any:
    """``module`` with the adapter of ``folder`` merged into its weights, in place.

    Raises:
        InputError: the adapter is of another model, or of a kind that cannot be merged.
    """
    import peft

    # what peft has to say about vocabularies and names is checked below
    with warnings.catch_warnings(action="ignore"):
        return _attach(module, folder, name, peft)


def _attach(module: Any, folder: Path, name: str, peft: Any) -> Any:
    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
        config.inference_mode = True
        if config.is_prompt_learning:
            kind = getattr(config.peft_type, "value", config.peft_type)
            raise InputError(
                f"{folder} is an adapter of type {kind}, which adds to the input and cannot be merged into weights: "
                "give the base model"
            )
        model: Any = peft.get_peft_model(module, config)
        weights = peft.utils.load_peft_weights(str(folder), device="cpu")
        found: Any = peft.set_peft_model_state_dict(model, weights)
        strange = sorted(found.unexpected_keys)
        lost = sorted(key for key in found.missing_keys if getattr(model.base_model, "prefix", "lora_") in key)
        if strange or lost:
            what = f"holds {strange[0]}, which the model has no place for" if strange else f"lacks {lost[0]}"
            raise InputError(f"the adapter {name!r} does not fit its model: it {what}; name the right base_model_name_or_path")
        return merge(model)
    except InputError:
        raise
    except Exception as error:  # of peft, torch or safetensors: of a garbled file anything
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"the adapter {name!r} cannot be merged into its model ({line[:200]}): give a merged model") from error
