"""Models in memory: from what a user holds to the module and the tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from moescope.errors import InputError
from moescope.models.adapters import merged
from moescope.models.vision.body import encoder_of


def pair_of(given: Any, tokenizer: Any) -> tuple[nn.Module, Any]:
    """(module, tokenizer) of a model, or of a pair of both.

    Raises:
        InputError: it is neither; says what would be.
    """
    if isinstance(given, tuple | list):
        if tokenizer is not None or len(given) != 2:
            raise InputError(f"{len(given)} things were given: give a pair, (model, tokenizer)", "model")
        given, tokenizer = given
    if not isinstance(given, nn.Module):
        raise InputError(
            f"{_named(given)} is no model: give a name, a folder, a Hub id, or a transformers model with its tokenizer as "
            "(model, tokenizer)",
            "model",
        )
    if tokenizer is not None and not callable(tokenizer):
        raise InputError(f"{_named(tokenizer)} is no tokenizer: give the one that the model was trained with", "tokenizer")
    if tokenizer is not None and encoder_of(given) is not None:  # of which a model that compares has both
        return given, getattr(tokenizer, "image_processor", None) or tokenizer
    # a processor, of a model that also sees or hears, holds the tokenizer of its texts
    return given, getattr(tokenizer, "tokenizer", None) or tokenizer


def _named(given: Any) -> str:
    return f"an object of class {type(given).__name__}"


def plain(model: Any, name: str) -> Any:
    """The Hugging Face model inside what runs it compiled, parallel or with adapters (merged into a copy).

    Raises:
        InputError: it has no Hugging Face config, or its adapters cannot be merged.
    """
    model = getattr(model, "_orig_mod", model)
    if not hasattr(model, "config") and isinstance(getattr(model, "module", None), nn.Module):  # DataParallel and its kin
        model = model.module
    model = merged(model, name)
    if not hasattr(getattr(model, "config", None), "model_type"):
        raise InputError(
            f"model {name!r} of class {type(model).__name__} has no Hugging Face config: give a transformers model"
        )
    return model


def name_of(model: nn.Module) -> str:
    """What the model in memory was loaded from, without the folders above it; its class where it does not say."""
    source = str(getattr(getattr(model, "config", None), "_name_or_path", "") or "")
    if source and (Path(source).is_absolute() or Path(source).exists()):
        source = Path(source).name
    return source or type(model).__name__
