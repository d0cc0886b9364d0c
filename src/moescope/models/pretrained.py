"""The parts of a model in a folder, as transformers reads them; what it throws for a foreign or garbled one is one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import transformers
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from moescope.errors import InputError
from moescope.models.fit import Plan
from moescope.models.source import Source
from moescope.models.vision.body import image_class, image_config
from moescope.models.weights import check_whole


def is_encoder(config: Any) -> bool:
    """Whether a model with this config is a masked language model."""
    return config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No loading bars and no load reports: what matters of them is checked here and raised."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


def read_config(source: Source, trust_remote_code: bool) -> Any:
    try:
        config = transformers.AutoConfig.from_pretrained(source.folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # what transformers, tokenizers and huggingface_hub throw for a garbled file has no one base
        raise InputError(f"{source.folder / 'config.json'} cannot be used: {_first_line(error)}") from error
    _check_count(source.folder / "config.json", config.get_text_config(), "max_position_embeddings")
    return config


def read_module(source: Source, config: Any, plan: Plan, device_map: Any, head: bool, trust_remote_code: bool) -> nn.Module:
    auto: Any = image_class(config) or transformers.AutoModel
    if head:
        auto = transformers.AutoModelForMaskedLM if is_encoder(config) else transformers.AutoModelForCausalLM
        images = transformers.AutoModelForImageTextToText  # whose text path alone is run
        auto = images if type(config) in images._model_mapping and type(config) not in auto._model_mapping else auto
    module: transformers.PreTrainedModel
    try:
        module, report = auto.from_pretrained(
            source.folder,
            config=image_config(config) if image_class(config) is not None else config,
            dtype=plan.dtype,
            quantization_config=plan.quantise,
            device_map=device_map,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    except Exception as error:  # likewise
        why = _first_line(error)
        if "ignore_mismatched_sizes" in why:  # transformers' advice is about an option that is not ours
            why = "its weights have other shapes than its config.json says; one of the two is another model's"
        raise InputError(f"model {source.name!r} cannot be loaded from {source.folder}: {why}") from error
    check_whole(f"{source.name!r} ({source.folder})", module, config, report, head=head)
    return module


def read_tokenizer(folder: Path, trust_remote_code: bool) -> Any:
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # tokenizers raises no other
        raise InputError(f"the tokenizer in {str(folder)!r} cannot be used: {_first_line(error)}") from error
    _check_count(folder / "tokenizer_config.json", tokenizer, "model_max_length")
    return tokenizer


def _check_count(path: Path, of: Any, name: str) -> None:
    """That a number of tokens, where one is given, is one."""
    value = getattr(of, name, None)
    if value is not None and not (isinstance(value, int | float) and not isinstance(value, bool) and value >= 1):
        raise InputError(f"{path}: {name} is {value!r:.80} and must be a number of tokens, at least 1")
