"""A model without its weights: built from its config on torch's meta device, where shapes are computed and nothing else."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from moescope.errors import InputError
from moescope.files.parse import parse_object
from moescope.files.text import read_bytes
from moescope.models.adapters import ADAPTER, base_of
from moescope.models.experts.layers import find_layers
from moescope.models.load import LoadedModel, from_model
from moescope.models.pretrained import is_encoder, quiet, read_config, read_tokenizer
from moescope.models.refused import check_type
from moescope.models.sites import parse_sites
from moescope.models.source import PROCESSOR_FILE, find_source, has_tokenizer, weight_files
from moescope.models.vision.body import image_class, image_config
from moescope.models.vision.reader import read_processor
from moescope.models.weights import Stored, quantization_of, stored
from moescope.types import MODULE, SITE_KINDS
from moescope.zoo import PACKAGED, embedded

_SHORT, _LONG = 16, 48
"""Tokens of two passes, from which the part of the work is known that grows with the square of a text."""


@dataclass(frozen=True, eq=False)
class Blueprint:
    """``model`` has shapes and no values; ``held`` is what its weight files hold, or what they would."""

    model: LoadedModel
    config: Any
    """as it came: also of how weights are quantised"""
    held: Stored
    weighed: bool
    """whether there are weight files"""

    @cached_property
    def parameters(self) -> int:
        """Those of the body and, where it writes text, of its head."""
        return sum(p.numel() for p in self.model.module.parameters())

    @cached_property
    def by_layer(self) -> list[int]:
        """Parameters of each layer."""
        return [sum(p.numel() for p in layer.parameters()) for layer in self.model.structure.layers]

    def resident(self, head: bool) -> int:
        """Parameters that are loaded: of the body, or with its head."""
        module = self.model.module if head else self.model.body
        return sum(p.numel() for p in module.parameters())

    @cached_property
    def active(self) -> int:
        """Parameters of the body that one token goes through: of experts, the share that are chosen."""
        total = sum(p.numel() for p in self.model.body.parameters())
        for layer in find_layers(self.model.body, self.model.name):
            held = sum(p.numel() for p in layer.module.parameters() if p.dim() == 3 and p.shape[0] == layer.n_experts)
            total -= round(held * (1 - min(1.0, self.chosen / layer.n_experts)))
        return total

    @cached_property
    def chosen(self) -> int:
        """Experts that a token is sent to; 0 in a dense model."""
        config = self.model.config.get_text_config()
        names = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts", "moe_top_k")
        return next((int(getattr(config, name)) for name in names if getattr(config, name, None)), 0)

    @cached_property
    def coordinates(self) -> dict[str, int]:
        """Neurons by kind of site, over all layers."""
        model = self.model
        found = {kind: sum(model.width(site) for site in model.sites(kind)) for kind in SITE_KINDS}
        return {kind: n for kind, n in found.items() if n}

    def neurons(self, sites: str) -> int:
        """That ``sites`` names in words, at every layer of a kind.

        Raises:
            InputError: the model has no module that is named.
        """
        if not sites.startswith(MODULE):
            return self.coordinates.get(sites.partition(":")[0], 0)
        try:
            return sum(self.model.width(site) for site in parse_sites(sites, self.model))
        except InputError:
            raise
        except Exception:  # what its code asks of values, which there are none of
            return self.model.d_model * self.model.n_layers

    @cached_property
    def _work(self) -> tuple[float, float]:
        short, long = (self._counted(tokens) / tokens for tokens in (_SHORT, _LONG))
        squared = max(0.0, (long - short) / (_LONG - _SHORT))
        return short - squared * _SHORT, squared

    def flops(self, rows: int, tokens: int) -> float:
        """Of the body, for a batch (rows, tokens), padding included: two for each product that is added up."""
        linear, squared = self._work
        return rows * tokens * (linear + squared * tokens)

    @property
    def head_flops(self) -> float:
        """Of the head, for one token."""
        return 2.0 * self.model.d_model * (self.model.vocabulary or 0)

    def _counted(self, tokens: int) -> float:
        ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
        places = self.model.tokenizer.places if self.model.reads_images else tokens  # an image has as many, whatever is asked
        try:
            with torch.no_grad(), FlopCounterMode(display=False) as counted:
                self.model.body(input_ids=ids)
        except Exception:  # what its code asks of values, which there are none of
            config = self.model.config.get_text_config()
            table = (self.model.vocabulary or 0) * self.model.d_model
            width = getattr(config, "num_attention_heads", 1) * (getattr(config, "head_dim", None) or 0) or self.model.d_model
            return tokens * (2.0 * (self.active - table) + 4.0 * self.model.n_layers * width * tokens)
        return float(counted.get_total_flops()) * tokens / places


def blueprint(model: str | Path, *, trust_remote_code: bool = False) -> Blueprint:
    """From a name, a folder (also an adapter's, which is that of its base), a Hub id, or a config.json alone; no weight is read
    or fetched.

    Raises:
        InputError: there is no such model or config, or no model can be built of it.
    """
    config, tokenizer, files, name = _parts(model, trust_remote_code)
    check_type(config)
    held = stored(files, config, name) if files else None
    config._experts_implementation = "batched_mm"  # the one whose shapes do not depend on what the router says
    quantised = quantization_of(config)
    bare = copy.deepcopy(config)
    if quantised:  # shapes are those of the weights themselves
        del bare.quantization_config
    images = image_class(config)
    heads: Any = transformers.AutoModelForMaskedLM if is_encoder(config) else transformers.AutoModelForCausalLM
    auto: Any = heads if type(config) in heads._model_mapping else transformers.AutoModel
    try:
        with quiet(), torch.random.fork_rng(devices=[]), torch.device("meta"):
            module = auto.from_config(bare) if images is None else images(image_config(bare))
    except Exception as error:  # what transformers throws for a garbled config has no one base
        why = " ".join(str(error).split())[:200]
        raise InputError(f"no model can be built of {name}'s config ({type(error).__name__}: {why})") from error
    made = from_model(module, tokenizer, name=name)
    if held is None:
        said = str(getattr(config, "dtype", None) or torch.float32).removeprefix("torch.")
        dtype = {"bfloat16": "bf16", "float16": "fp16"}.get(said, "fp32")
        count = sum(p.numel() for p in module.parameters())
        bits = _bits(config) if quantised else 32 if dtype == "fp32" else 16
        held = Stored(dtype, count, count * bits // 8)
    return Blueprint(made, config, held, bool(files))


def _bits(config: Any) -> int:
    """Of a weight that is stored as the config's quantisation says."""
    fields = config.quantization_config
    fields = fields if isinstance(fields, dict) else fields.to_dict()
    four = fields.get("load_in_4bit") or "4" in str(fields.get("quant_method", ""))
    return int(fields.get("bits") or (4 if four else 8))


def _parts(model: str | Path, trust: bool) -> tuple[Any, Any, list[Path], str]:
    """Config, tokenizer or None, weight files or none, and name."""
    text = str(model)
    path = Path(os.path.expanduser(text))
    if path.is_file() and path.suffix == ".json":
        try:
            values = parse_object(read_bytes(path))
            return transformers.AutoConfig.for_model(values.pop("model_type"), **values), None, [], _name(path)
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path} is no config of a model ({type(error).__name__}: {error}); name its config.json"
            ) from error
    if text in embedded() or text in PACKAGED or path.exists():
        if path.is_dir() and (path / "config.json").is_file() and not any(path.glob("*.safetensors")):
            return transformers.AutoConfig.from_pretrained(path, trust_remote_code=trust), _reader(path, trust), [], path.name
        source = find_source(model, trust_remote_code=trust)
        if (source.folder / ADAPTER).is_file():
            return *_parts(base_of(source.folder)[0], trust)[:3], source.name
        return read_config(source, trust), _reader(source.folder, trust), list(weight_files(source.folder)), source.name
    try:
        with quiet():
            config = transformers.AutoConfig.from_pretrained(text, trust_remote_code=trust)
            return config, transformers.AutoTokenizer.from_pretrained(text, trust_remote_code=trust), [], text
    except Exception as error:  # likewise
        why = " ".join(str(error).split())[:160]
        raise InputError(f"model {text!r}: no folder, no embedded name, and its config is not to be had ({why})") from error


def _reader(folder: Path, trust: bool) -> Any:
    """The tokenizer, or the image processor, that lies in a folder; None without one."""
    if has_tokenizer(folder):
        return read_tokenizer(folder, trust)
    return read_processor(folder, trust) if (folder / PROCESSOR_FILE).is_file() else None


def _name(path: Path) -> str:
    return path.resolve().parent.name if path.stem == "config" else path.stem
