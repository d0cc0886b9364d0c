"""Open a model to be run layer by layer: its class without weights, and the files that they are in."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import accelerate
import torch
import transformers
from torch import Tensor

from moescope.errors import InputError
from moescope.files.folder import system_errors
from moescope.models.adapters import ADAPTER
from moescope.models.batching import SIDES, Batching
from moescope.models.fit import DTYPES, PRECISIONS, check_precision, plan_of
from moescope.models.layered.files import Group, WeightFiles
from moescope.models.layered.run import Layered, whole
from moescope.models.load import LoadedModel, device_of, from_model
from moescope.models.pretrained import is_encoder, quiet, read_config, read_tokenizer
from moescope.models.refused import check_source, check_type
from moescope.models.source import find_source, weight_files
from moescope.models.tiny import FOREIGN, NotBuilt, tiny_module
from moescope.models.weights import quantization_of, stored
from moescope.types import Precision


class _Present(WeightFiles):
    """The weights of a module that has them."""

    def __init__(self) -> None:
        self.groups, self.homeless = {}, []

    def empty(self, names: Iterable[str]) -> None:
        pass

    def fill(self, wanted: Iterable[Group]) -> list[str]:
        return []

    def put(self, name: str, value: Tensor) -> None:
        pass


@cache
def runs_in_layers(model_type: str) -> None:
    """Run a tiny random model of the type both ways.

    Raises:
        InputError: they differ: its layers hand each other more than hidden states, or depend on more than ids and places.
    """
    refused = InputError(f"model type {model_type!r} cannot be run layer by layer: its layers hand on more than hidden states")
    try:
        module: Any = tiny_module(model_type)
        layered = Layered(Path(), _Present(), from_model(module, None))
        ids = torch.arange(6, 48, 2)
        begun = layered.begin([ids, ids[:9]], batch_tokens=32)
        (states,) = layered.sweep(begun, [whole])
        with torch.no_grad(), layered.head() as head:
            pairs = [
                (head(state), module(input_ids=batch, use_cache=False).logits)
                for state, batch in zip(states, begun.ids, strict=True)
            ]
    except (NotBuilt, InputError, *FOREIGN) as error:
        raise refused from error
    if not all(torch.allclose(a, b, atol=1e-4, rtol=1e-4) for a, b in pairs):
        raise refused


def open_layered(model: Any, *, dtype: Precision = "auto", device: str | None = None) -> Layered:
    """A causal language model whose layers are filled from its files.

    Args:
        model: as :func:`moescope.models.load` takes it. One in memory is written to a temporary folder first.

    Raises:
        InputError: there is no such model, or it cannot be run so: it is an encoder, quantised, or of a type whose layers hand
            each other more than hidden states.
    """
    if isinstance(model, LoadedModel):
        return _of_memory(model)
    check_precision(dtype)
    source = find_source(model)
    if (source.folder / ADAPTER).is_file():
        raise InputError(f"{source.folder} is an adapter: save the model with it merged, and give that folder", "model")
    check_source(source)
    with quiet(), torch.random.fork_rng(devices=[]):
        config = read_config(source, False)
        check_type(config)
        runs_in_layers(config.model_type)
        if is_encoder(config) or type(config) not in transformers.AutoModelForCausalLM._model_mapping:
            raise InputError(f"model {source.name!r} of type {config.model_type!r} is no causal language model")
        if how := quantization_of(config):
            raise InputError(f"the weights of {source.name} are quantised ({how}): take or save a copy in 16 bits")
        files = weight_files(source.folder)
        held = stored(files, config, source.name)
        plan = plan_of(dtype, held, config, source.name)
        if plan.quantise:
            raise InputError(f"{dtype} does not apply: layers are run from their files, in fp32, bf16 or fp16", "dtype")
        tokenizer = read_tokenizer(source.folder, False)
    place = device_of(device)
    module = without_weights(config, plan.dtype, place)
    loaded = from_model(module, tokenizer, name=source.name, revision=source.revision)
    loaded.device, loaded.dtype = place, plan.dtype
    loaded.quantisation = source.quantisation
    loaded.stored = held.dtype if DTYPES[held.dtype] != plan.dtype else None
    made = Layered(source.folder, WeightFiles(files, module, place), loaded)
    if lost := made.files.missing():
        raise InputError(f"model {source.name!r}: its weights lack {len(lost)} tensors that its config asks for ({lost[0]})")
    # texts of one length share a batch, and none is padded
    vars(loaded)["batching"] = Batching(dict.fromkeys(SIDES, 0.0), 0.0, None, 0)
    vars(loaded)["fingerprint"] = made.fingerprint()
    return made


def without_weights(config: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """The causal language model of a config, its parameters on the meta device; what is computed and not stored, such as rotary
    frequencies, is on ``device``."""
    with quiet(), torch.random.fork_rng(devices=[]), accelerate.init_empty_weights(include_buffers=False):
        module: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    for name, buffer in module.named_buffers():
        path, _, leaf = name.rpartition(".")
        module.get_submodule(path)._buffers[leaf] = buffer.to(device)
    return module.eval().requires_grad_(False)


def _of_memory(loaded: LoadedModel) -> Layered:
    if loaded.quantisation is not None and quantization_of(loaded.config):
        raise InputError(f"the weights of {loaded.name} are quantised ({loaded.quantisation}): load it in fp32, bf16 or fp16")
    folder = Path(tempfile.mkdtemp(prefix="moescope-"))
    module: Any = loaded.module
    with quiet(), system_errors(folder):
        module.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
    made = open_layered(folder, dtype=PRECISIONS[loaded.dtype], device=str(loaded.device))
    weakref.finalize(made, shutil.rmtree, folder, ignore_errors=True)
    made.model.name, made.model.revision, made.model.tokenizer = loaded.name, loaded.revision, loaded.tokenizer
    made.model.stored, made.model.quantisation, made.model.reading = loaded.stored, loaded.quantisation, loaded.reading
    return made
