"""Load a language model or encoder, body only or with its head, and say where it can be read."""

from __future__ import annotations

import contextlib
import hashlib
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from moescope.errors import InputError
from moescope.models.sites import describe_sites
from moescope.models.source import Source, check_folder, find_source
from moescope.models.structure import resolve
from moescope.models.taps import Structure, TapPoint
from moescope.types import SITE_KINDS, Site

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# What loading a foreign or garbled checkpoint can throw; anything else is a bug of ours and keeps its traceback.
_LOAD_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError, SafetensorError)


class HeadMissing(InputError):
    """A checkpoint of a body only was asked for its language-model head."""


@dataclass
class LoadedModel:
    """A model in evaluation mode, without gradients, with its tokenizer and its sites.

    ``module`` is what was loaded; ``body`` the transformer without head (the same object when loaded body only).
    ``revision`` is the commit on the Hub, None for local and embedded models. ``device`` is where token ids go in.
    ``is_encoder`` tells a masked language model (BERT) from a causal one.
    """

    name: str
    module: nn.Module
    body: nn.Module
    tokenizer: Any
    revision: str | None
    dtype: torch.dtype
    device: torch.device
    is_encoder: bool
    config: Any
    structure: Structure = field(repr=False)
    quantisation: str | None = None
    """of the file that the weights were read from, where it held them in fewer bits"""

    @property
    def n_layers(self) -> int:
        """Number of layers; sites count them from 0."""
        return len(self.structure.layers)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.structure.d_model

    @property
    def has_head(self) -> bool:
        """Whether ``module`` also predicts tokens."""
        return self.module is not self.body

    def sites(self, kind: str | None = None) -> tuple[Site, ...]:
        """All sites, or those of one kind, in the order of ``SITE_KINDS``, then of layers.

        Raises:
            InputError: ``kind`` is none of ``SITE_KINDS``.
        """
        if kind is not None and kind not in SITE_KINDS:
            raise InputError(f"site kind {kind!r} is unknown: the kinds are {', '.join(SITE_KINDS)}")
        return tuple(site for site in self.structure.taps if kind is None or site.kind == kind)

    def width(self, site: Site) -> int:
        """Number of neurons (coordinates, experts) at the site. Raises InputError where the model lacks it."""
        return self.tap_point(site).width

    def tap_point(self, site: Site) -> TapPoint:
        """Where and how to read and replace the site. Raises InputError where the model lacks it."""
        if site not in self.structure.taps:
            raise InputError(f"site {str(site)!r} does not exist: {self.name} has {describe_sites(self.sites())}")
        return self.structure.taps[site]

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that tell apart two models, or two checkpoints of one; the same for every load of the same one.

        SHA-256 over the config without its volatile fields and over eight 256-byte pieces of each weight of the body, in
        the loaded dtype: milliseconds for gigabytes. Not proof against tampering with single weights. Computed once.
        """
        digest = hashlib.sha256(json.dumps(_stable_config(self.config), sort_keys=True, default=str).encode())
        for name, tensor in sorted(self.body.state_dict().items()):
            if name.startswith(_OPTIONAL):
                continue
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            if not tensor.is_meta:
                digest.update(_sample_bytes(tensor))
        return digest.hexdigest()[:16]


def load(
    model: str | Path,
    *,
    dtype: str = "fp32",
    device: str | None = None,
    device_map: Any = None,
    revision: str | None = None,
    head: bool = False,
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Load a model by name, local folder or Hub id. Safetensors only; no pickle is ever read.

    Args:
        model: embedded name; ``minilm``, ``smollm2`` or ``gemma3-270m`` (with their packages); local folder (plain or in the
            Hub cache's layout); GGUF file, or a folder that holds one; or Hub id.
        dtype: ``fp32``, ``bf16`` or ``fp16``; weights are converted to it.
        device: as in torch (``cpu``, ``cuda``, ``cuda:1``); None takes a GPU if there is one.
        device_map: passed on to transformers (``"auto"``, or a dict); not together with ``device``.
        revision: branch, tag or commit on the Hub.
        head: also load the language-model head (causal, or masked for encoders); without it the body only.
        trust_remote_code: run the model's own Python code, which can do anything that you can; warns.

    Raises:
        InputError: the model cannot be found, read, or is of a kind without sites; one line with the mend.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is unknown: choose from {', '.join(DTYPES)}")
    if device is not None and device_map is not None:
        raise InputError("device and device_map exclude each other: give one")
    place = None if device_map is not None else _device(device)
    if trust_remote_code:
        warnings.warn(f"trust_remote_code: Python code that comes with {str(model)!r} will be run", stacklevel=2)
    source = find_source(model, revision=revision, trust_remote_code=trust_remote_code)
    check_folder(source)
    # building a model draws random numbers; the caller's stream of them must not depend on whether one was loaded
    with _quiet(), torch.random.fork_rng(devices=[]):
        config = _config(source, trust_remote_code)
        if getattr(config, "is_encoder_decoder", False):
            raise InputError(f"model type {config.model_type!r} is an encoder-decoder, which is not supported")
        if device_map is None and place is not None and place.type != "cpu":
            device_map = {"": place}
        module = _module(source, config, DTYPES[dtype], device_map, head, trust_remote_code)
        tokenizer = _tokenizer(source, trust_remote_code)
    loaded = from_model(module, tokenizer, name=source.name, revision=source.revision)
    loaded.quantisation = source.quantisation
    return loaded


def from_model(model: nn.Module, tokenizer: Any, name: str = "model", *, revision: str | None = None) -> LoadedModel:
    """Wrap a Hugging Face model that is in memory already; it is put into evaluation mode and frozen.

    A tokenizer without a padding token gets its end-of-text token for it (padding is masked out everywhere).

    Raises:
        InputError: the model has no sites (names its type), or no config.
    """
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "model_type"):
        raise InputError(f"model {name!r} of class {type(model).__name__} has no Hugging Face config")
    model.eval().requires_grad_(False)
    body: Any = getattr(model, "base_model", model)
    structure = resolve(body, config)
    if tokenizer is not None and getattr(tokenizer, "pad_token", None) is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    entry = body.get_input_embeddings().weight if hasattr(body, "get_input_embeddings") else next(body.parameters())
    return LoadedModel(
        name=name,
        module=model,
        body=body,
        tokenizer=tokenizer,
        revision=revision,
        dtype=entry.dtype,
        device=entry.device,
        is_encoder=_is_encoder(config),
        config=config,
        structure=structure,
    )


# Weights that some checkpoints of a body lack and no site depends on: BERT's pooler, for one.
_OPTIONAL = ("pooler.",)
_VOLATILE = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "use_cache")


def _stable_config(config: Any) -> dict[str, Any]:
    return {key: value for key, value in config.to_dict().items() if key not in _VOLATILE}


def _sample_bytes(tensor: torch.Tensor, pieces: int = 8, size: int = 256) -> bytes:
    """Evenly spaced contiguous pieces of a tensor's storage order: few pages of a memory-mapped file are touched."""
    flat = tensor.detach().reshape(-1)
    length = max(1, size // tensor.element_size())
    if flat.numel() > pieces * length:
        step = (flat.numel() - length) // (pieces - 1)
        flat = torch.cat([flat[i * step : i * step + length] for i in range(pieces)])
    return flat.contiguous().cpu().view(torch.uint8).numpy().tobytes()


def _is_encoder(config: Any) -> bool:
    return config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)


def _device(device: str | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"device {device!r} is unknown: use cpu, cuda or cuda:N") from error
    if place.type == "cuda" and (not torch.cuda.is_available() or (place.index or 0) >= torch.cuda.device_count()):
        raise InputError(f"device {device!r} is not there: torch sees {torch.cuda.device_count()} CUDA devices; use cpu")
    if place.type not in ("cpu", "cuda") and not torch.get_device_module(place.type).is_available():
        raise InputError(f"device {device!r} is not there: use cpu or cuda")
    return place


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
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


def _config(source: Source, trust_remote_code: bool) -> Any:
    try:
        return transformers.AutoConfig.from_pretrained(source.folder, trust_remote_code=trust_remote_code)
    except _LOAD_ERRORS as error:
        raise InputError(f"{source.folder / 'config.json'} cannot be used: {_first_line(error)}") from error


def _module(source: Source, config: Any, dtype: torch.dtype, device_map: Any, head: bool, trust_remote_code: bool) -> nn.Module:
    auto: Any = transformers.AutoModel
    if head:
        auto = transformers.AutoModelForMaskedLM if _is_encoder(config) else transformers.AutoModelForCausalLM
    module: transformers.PreTrainedModel
    try:
        module, report = auto.from_pretrained(
            source.folder,
            config=config,
            dtype=dtype,
            device_map=device_map,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    except _LOAD_ERRORS as error:
        raise InputError(f"model {source.name!r} cannot be loaded: {_first_line(error)}") from error
    prefix = f"{getattr(module, 'base_model_prefix', '')}."
    body_keys = {f"{prefix}{name}" if head else name for name in module.base_model.state_dict()}
    missing = sorted(report["missing_keys"])
    lost = [key for key in missing if key in body_keys and not key.removeprefix(prefix).startswith(_OPTIONAL)]
    if lost:
        raise InputError(
            f"model {source.name!r}: its weights lack {len(lost)} tensors that its config asks for ({lost[0]}): "
            "the checkpoint is not of this architecture, or not whole"
        )
    if head and (absent := [key for key in missing if key not in body_keys]):
        raise HeadMissing(
            f"model {source.name!r} has no language-model head (its weights lack {absent[0]}): load it without one"
        )
    return module


def _tokenizer(source: Source, trust_remote_code: bool) -> Any:
    try:
        return transformers.AutoTokenizer.from_pretrained(source.folder, trust_remote_code=trust_remote_code)
    except _LOAD_ERRORS as error:
        raise InputError(f"the tokenizer in {str(source.folder)!r} cannot be used: {_first_line(error)}") from error
