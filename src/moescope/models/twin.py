"""A randomly initialised twin: what of a result is architecture and tokenizer alone."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch

from moescope.errors import InputError
from moescope.models.load import LoadedModel, from_model


def random_twin(model: LoadedModel, seed: int = 0) -> LoadedModel:
    """The same architecture, tokenizer, dtype and device with freshly initialised weights.

    Weights are drawn on the CPU from ``seed`` alone by the architecture's own initialiser, so that the twin does not
    depend on the device, and the global random state stays as it was. Untrained networks as a baseline of probes:
    Zhang & Bowman 2018, "Language Modeling Teaches You More than Translation Does".

    Raises:
        InputError: the model's class cannot be built from its config alone.
    """
    build: Any = type(model.module)
    config = copy.deepcopy(model.config)
    vars(config).pop("quantization_config", None)  # codes of the trained weights, which the twin has none of
    with torch.random.fork_rng(devices=[]):
        # not torch.manual_seed: that would seed the GPUs' generators too, which fork_rng leaves alone here
        torch.default_generator.manual_seed(seed)
        try:
            module = build(config)
        except (TypeError, ValueError, AttributeError) as error:
            raise InputError(f"model {model.name!r} cannot be built anew from its config: {error}") from error
    numbers = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    weights = dict(model.module.named_parameters()) | dict(model.module.named_buffers())
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if name in weights:
            target = weights[name]
            # offloaded weights sit on the meta device: their twin stays where the model takes its input
            # quantised weights are codes, their twin's are not
            dtype = target.dtype if target.dtype in numbers or not tensor.is_floating_point() else model.dtype
            tensor.data = tensor.data.to(dtype=dtype, device=model.device if target.is_meta else target.device)
    twin = from_model(module, model.tokenizer, name=f"{model.name} (random twin, seed {seed})")
    twin = replace(twin, reading=model.reading, spread=None if model.spread is None else model.spread.twin(seed))
    vars(twin)["batching"] = model.batching  # of the architecture
    return twin
