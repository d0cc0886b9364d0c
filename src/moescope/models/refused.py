"""What is neither a text model nor a vision encoder is refused by its type, before anything of it is built or read."""

from __future__ import annotations

import inspect
from typing import Any

import transformers

from moescope.errors import InputError
from moescope.models.source import PROCESSOR_FILE, Source, check_folder
from moescope.models.vision.body import check_image_type, image_class


def check_source(source: Source) -> None:
    """:func:`~moescope.models.source.check_folder`, after what the type says: an image model lacks a tokenizer, but that it is
    one says more.

    Raises:
        InputError: the type is refused, or the folder is not whole.
    """
    try:
        check_folder(source)
    except InputError:
        try:
            config = transformers.AutoConfig.from_pretrained(source.folder)
        except Exception:  # of a garbled file no one kind; what the folder lacks is said all the same
            config = None
        if config is not None:
            check_type(config)
            if image_class(config) is not None and not (source.folder / PROCESSOR_FILE).is_file():
                raise InputError(
                    f"{source.folder}: model type {config.model_type!r} reads images, and has no image processor "
                    f"({PROCESSOR_FILE}): save the model's processor beside its weights"
                ) from None
        raise


def check_type(config: Any) -> None:
    """Refuse a type that reads neither texts nor images by itself before anything of it is built.

    Raises:
        InputError: names the type.
    """
    if image_class(config) is not None:
        return check_image_type(config)
    for auto in (transformers.AutoModel, transformers.AutoModelForCausalLM):
        if type(config) in auto._model_mapping:
            body: Any = auto._model_mapping[type(config)]
            check_text(body[0] if isinstance(body, tuple) else body, config)


def check_text(body: type, config: Any) -> None:
    """Refuse what reads no text by itself, from the class of its body alone.

    Raises:
        InputError: names the model type.
    """
    kind = getattr(config, "model_type", body.__name__)
    accepted = inspect.signature(body.forward).parameters  # type: ignore[attr-defined]
    if getattr(config, "is_encoder_decoder", False) or "decoder_input_ids" in accepted:
        raise InputError(f"model type {kind!r} is an encoder-decoder, which is not supported: use a decoder or an encoder")
    if "input_ids" not in accepted:
        raise InputError(f"model type {kind!r} is not a text model: it takes no token ids")
    if hasattr(body, "get_text_features"):
        raise InputError(f"model type {kind!r} is not a text model: it compares texts with images or sounds")
