"""Load a language model or encoder, body only or with its head, and say where it can be read."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from moescope.errors import InputError
from moescope.models.adapters import ADAPTER, attach, base_of
from moescope.models.batching import Batching, check_batching
from moescope.models.fit import DTYPES, check_precision, check_room, plan_of
from moescope.models.inputs import first_weight
from moescope.models.memory import name_of, pair_of, plain
from moescope.models.named import named_taps
from moescope.models.pretrained import is_encoder, quiet, read_config, read_module, read_tokenizer
from moescope.models.reading import Reading, SpecialTokens, reading_of
from moescope.models.refused import check_source, check_type
from moescope.models.sites import describe_sites
from moescope.models.source import Source, find_source, has_tokenizer, weight_files
from moescope.models.spread import Spread
from moescope.models.structure import resolve
from moescope.models.taps import Structure, TapPoint
from moescope.models.vision.body import ImageBody, check_image_type, check_images, encoder_of, image_class, measure_places
from moescope.models.vision.reader import ImageReader, read_processor
from moescope.models.weights import OPTIONAL, HeadMissing, quantization_of, stored
from moescope.types import MODULE, SITE_KINDS, Precision, Site


@dataclass
class LoadedModel:
    """A model in evaluation mode, without gradients, with its tokenizer and its sites.

    ``module`` is what was loaded; ``body`` the transformer without head (the same object when loaded body only).
    ``revision`` is the commit on the Hub, None for local and embedded models. ``device`` is where token ids go in.
    ``is_encoder`` tells a masked language model (BERT) from a causal one. ``stored`` is the precision of the checkpoint
    where ``dtype`` is another, ``quantisation`` how the weights are quantised (``bitsandbytes int4``); else both are None.

    Of a vision encoder ``tokenizer`` is an :class:`~moescope.models.vision.reader.ImageReader`, and a text is an image's path.
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
    stored: str | None = None
    quantisation: str | None = None
    """of the file that the weights were read from, where it held them in fewer bits"""
    mlp_bits: float | None = field(default=None, repr=False)
    """bits that a weight of the MLPs takes in that file, scales included"""
    reading: Reading = field(default_factory=Reading, repr=False)
    spread: Spread | None = field(default=None, repr=False)
    """over which processes its reading of texts is shared out; None: this one alone"""
    by_name: dict[Site, TapPoint] = field(default_factory=dict, repr=False)
    """modules that were asked for by their names, as sites"""
    loaded: Mapping[str, Any] | None = field(default=None, repr=False)
    """what :func:`load` was given, where that gives the same again; None for a model that came in memory"""

    def read_as(self, special_tokens: SpecialTokens = "default", chat: bool | None = None) -> LoadedModel:
        """The same model with its texts read otherwise: :func:`~moescope.models.reading.reading_of` (what it raises too)."""
        again = replace(self, reading=reading_of(self.tokenizer, special_tokens, chat, encoder=self.is_encoder))
        measured = {name: value for name, value in vars(self).items() if name in ("fingerprint", "batching")}
        vars(again).update(measured)  # what does not depend on how texts are read
        return again

    @property
    def n_layers(self) -> int:
        """Number of layers; sites count them from 0."""
        return len(self.structure.layers)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.structure.d_model

    @property
    def vocabulary(self) -> int | None:
        """Number of token ids that the embedding has a row for; None where it is not a table."""
        body: Any = self.body
        table = body.get_input_embeddings() if hasattr(body, "get_input_embeddings") else None
        return getattr(table, "num_embeddings", None)

    @property
    def has_head(self) -> bool:
        """Whether ``module`` also predicts tokens."""
        return self.module is not self.body and not self.reads_images

    @property
    def reads_images(self) -> bool:
        """Whether it is a vision encoder."""
        return isinstance(self.body, ImageBody)

    @property
    def named(self) -> nn.Module:
        """Whose modules are called by their names: the body; of a vision encoder, the encoder itself."""
        return self.body.encoder if isinstance(self.body, ImageBody) else self.body

    def modules(self, name: str) -> tuple[Site, ...]:
        """The sites that a module's name stands for: :func:`~moescope.models.named.named_taps` (what it raises too)."""
        taps = named_taps(self, name)
        self.by_name.update(taps)
        return tuple(taps)

    def sites(self, kind: str | None = None) -> tuple[Site, ...]:
        """All sites, or those of one kind, in the order of ``SITE_KINDS``, then of layers; none that is but a module by name.

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
        if site.kind.startswith(MODULE):
            if site not in self.by_name:
                self.modules(site.kind.removeprefix(MODULE))
            if site in self.by_name:
                return self.by_name[site]
        if site not in self.structure.taps:
            raise InputError(f"site {str(site)!r} does not exist: {self.name} has {describe_sites(self.sites())}")
        return self.structure.taps[site]

    @cached_property
    def batching(self) -> Batching:
        """Whether texts, or images, may share a batch. Measured once, by a few forward tokens."""
        if self.reads_images:
            return check_images(self.body, self.tokenizer, self.dtype)
        return check_batching(self)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that tell apart two models, or two checkpoints of one; the same for every load of the same one.

        SHA-256 over the config without its volatile fields and over eight 256-byte pieces of each weight of the body, in
        the loaded dtype: milliseconds for gigabytes. Not proof against tampering with single weights. Computed once.
        """
        body = self.module if self.reads_images else self.body
        return digest_of(self.config, {name: sampled(name, tensor) for name, tensor in body.state_dict().items()})


def digest_of(config: Any, tensors: Mapping[str, bytes]) -> str:
    """The fingerprint of a model: its config, and of each tensor of its body what :func:`sampled` gives."""
    digest = hashlib.sha256(json.dumps(_stable_config(config), sort_keys=True, default=str).encode())
    for name in sorted(tensors):
        if not name.startswith(OPTIONAL):
            digest.update(tensors[name])
    return digest.hexdigest()[:16]


def sampled(name: str, tensor: torch.Tensor) -> bytes:
    """Name, shape and type of a tensor, and pieces of what is in it."""
    head = f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode()
    return head if tensor.is_meta else head + _sample_bytes(tensor)


def load(
    model: Any,
    *,
    tokenizer: Any = None,
    dtype: Precision = "auto",
    device: str | None = None,
    device_map: Any = None,
    revision: str | None = None,
    head: bool = False,
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Load a language model or a vision encoder by name, local folder or Hub id, or take one that is in memory.

    Safetensors only; no pickle is ever read.

    Args:
        model: embedded name; ``minilm``, ``smollm2`` or ``gemma3-270m`` (with their packages); local folder (plain or in the
            Hub cache's layout); GGUF file, or a folder that holds one; or Hub id; also of an adapter, which is merged into its
            base. Or a transformers or peft model, alone or as ``(model, tokenizer)``: then only ``tokenizer`` and ``head``
            count of the rest.
        tokenizer: of a model in memory; of a vision encoder its image processor.
        dtype: ``fp32``, ``bf16`` or ``fp16``: weights are converted to it; ``int8`` or ``int4``: quantised by bitsandbytes;
            ``auto``: the checkpoint's own, but fp32 for a checkpoint of 16 bits with at most 2^30 weights.
        device: as in torch (``cpu``, ``cuda``, ``cuda:1``); None takes a GPU if there is one.
        device_map: passed on to transformers (``"auto"``, or a dict); not together with ``device``.
        revision: branch, tag or commit on the Hub.
        head: also load the language-model head (causal, or masked for encoders); without it the body only.
        trust_remote_code: run the model's own Python code, which can do anything that you can; warns.

    Raises:
        InputError: the model cannot be found, read, or is of a kind without sites; one line with the mend.
    """
    if not isinstance(model, str | Path):
        return _in_memory(model, tokenizer, head)
    if tokenizer is not None:
        raise InputError(f"goes with a model in memory; {str(model)!r} brings its own, so leave it out", "tokenizer")
    options = {"dtype": dtype, "device": device, "device_map": device_map, "trust_remote_code": trust_remote_code}
    loaded = _from_files(model, revision, head, **options)
    if not trust_remote_code:
        loaded.loaded = {"model": str(model), "revision": revision, **options}
    return loaded


def load_whole(model: Any, **options: Any) -> LoadedModel:
    """:func:`load`, with the language-model head where the model has one."""
    try:
        return load(model, head=True, **options)
    except HeadMissing:
        return load(model, **options)


def _from_files(
    model: str | Path,
    revision: str | None,
    head: bool,
    *,
    dtype: Precision,
    device: str | None,
    device_map: Any,
    trust_remote_code: bool,
) -> LoadedModel:
    check_precision(dtype)
    if device is not None and device_map is not None:
        raise InputError("device and device_map exclude each other: give one")
    place = None if device_map is not None else device_of(device)
    if trust_remote_code:
        warnings.warn(f"trust_remote_code: Python code that comes with {str(model)!r} will be run", stacklevel=2)
    source = find_source(model, revision=revision, trust_remote_code=trust_remote_code)
    if (source.folder / ADAPTER).is_file():
        options = {"dtype": dtype, "device": device, "device_map": device_map, "trust_remote_code": trust_remote_code}
        return _with_adapter(source, head, options)
    check_source(source)
    # building a model draws random numbers; the caller's stream of them must not depend on whether one was loaded
    with quiet(), torch.random.fork_rng(devices=[]):
        config = read_config(source, trust_remote_code)
        check_type(config)
        held = stored(weight_files(source.folder), config, source.name)
        plan = plan_of(dtype, held, config, source.name)
        check_room(source.name, plan, held, place)
        if device_map is None and place is not None and (place.type != "cpu" or plan.quantise):
            device_map = {"": place}
        images = image_class(config) is not None
        module = read_module(source, config, plan, device_map, head and not images, trust_remote_code)
        tokenizer: Any = (read_processor if images else read_tokenizer)(source.folder, trust_remote_code)
    loaded = from_model(module, tokenizer, name=source.name, revision=source.revision)
    loaded.quantisation, loaded.mlp_bits = source.quantisation or loaded.quantisation, source.mlp_bits
    loaded.stored = held.dtype if DTYPES[held.dtype] != plan.dtype else None
    return loaded


def _in_memory(given: Any, tokenizer: Any, head: bool) -> LoadedModel:
    if isinstance(given, LoadedModel):
        loaded = given
    else:
        module, tokenizer = pair_of(given, tokenizer)
        loaded = from_model(module, tokenizer, name=name_of(module))
    if head and not loaded.has_head:
        raise InputError(f"{loaded.name} has no language-model head, which is needed; load it with head=True", "model")
    return loaded


def _with_adapter(source: Source, head: bool, options: dict[str, Any]) -> LoadedModel:
    """The base of the adapter in a folder, with the adapter merged; its own tokenizer where it brings one."""
    name, revision = base_of(source.folder)
    try:
        try:
            base = load(name, revision=revision, head=True, **options)  # what adapters are named after, also those of a body
        except HeadMissing:
            base = load(name, revision=revision, head=head, **options)
    except InputError as error:
        raise InputError(f"{source.folder} is an adapter of {name!r}, which cannot be loaded: {error}") from error
    with quiet(), torch.random.fork_rng(devices=[]):
        module = attach(base.module, source.folder, source.name)
        own = has_tokenizer(source.folder)
        tokenizer = read_tokenizer(source.folder, options["trust_remote_code"]) if own else base.tokenizer
    loaded = from_model(module if head else module.base_model, tokenizer, name=source.name, revision=source.revision)
    loaded.stored, loaded.quantisation = base.stored, base.quantisation
    return loaded


def from_model(model: nn.Module, tokenizer: Any, name: str = "model", *, revision: str | None = None) -> LoadedModel:
    """Wrap a Hugging Face model that is in memory already; it is put into evaluation mode and frozen.

    A tokenizer without a padding token gets its end-of-text token for it (padding is masked out everywhere). Adapters are
    merged into a copy, and the model itself left as it is; a head that does not predict tokens is left out.

    Raises:
        InputError: the model has no sites (names its type), or no config, or adapters that cannot be merged.
    """
    own: Any = plain(model, name)
    encoder = encoder_of(own)
    if encoder is not None:
        return _from_encoder(encoder, tokenizer, name, revision)
    config = own.config
    own.eval().requires_grad_(False)
    body: Any = getattr(own, "base_model", own)
    if body is not own and hasattr(own, "get_output_embeddings") and own.get_output_embeddings() is None:
        own = body  # of a classifier of texts or tokens
    structure = resolve(body, config)
    if tokenizer is not None and getattr(tokenizer, "pad_token", None) is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    entry = first_weight(body)
    return LoadedModel(
        name=name,
        module=own,
        body=body,
        tokenizer=tokenizer,
        revision=revision,
        dtype=entry.dtype,
        device=entry.device,
        is_encoder=is_encoder(config),
        config=config,
        structure=structure,
        quantisation=quantization_of(config),
    )


def _from_encoder(encoder: Any, processor: Any, name: str, revision: str | None) -> LoadedModel:
    """A vision encoder with its image processor, or the reader of another model of its kind (a twin's).

    Raises:
        InputError: no processor, or the encoder is built as no other that can be read (names its type).
    """
    if processor is None:
        raise InputError(f"{name} reads images, and has no image processor; give (model, processor)", "model")
    config = encoder.config
    check_image_type(config)
    encoder.eval().requires_grad_(False)
    reader = processor if isinstance(processor, ImageReader) else ImageReader(processor)
    structure = resolve(encoder, config, images=True)
    measure_places(encoder, structure, config, reader)
    weight = next(encoder.parameters())
    return LoadedModel(
        name=name,
        module=encoder,
        body=ImageBody(encoder, reader),
        tokenizer=reader,
        revision=revision,
        dtype=weight.dtype,
        device=weight.device,
        is_encoder=True,
        config=config,
        structure=structure,
        quantisation=quantization_of(config),
    )


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


def device_of(device: str | None) -> torch.device:
    """The device of that name; a GPU if there is one, where none is named.

    Raises:
        InputError: it is not there.
    """
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
