"""Small models converted in memory, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from moescope.intervene.held_out import Windows
from moescope.models import LoadedModel, from_model
from moescope.studies.convert.build import build_model
from moescope.studies.convert.layers import Converted, convert_layers
from moescope.studies.convert.settings import ConvertSettings, Counts, counts_of
from moescope.studies.convert.study import convert
from moescope.studies.convert.target import Target, target_of
from moescope.study.result import StudyResult
from moescope.study.run import Run
from tests.architectures import build, tiny_tokenizer

# Widths that cut into 8 experts of 8 neurons; no sliding window, which the targets lack.
SOURCES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama with qkv bias": {"attention_bias": True},
    "llama, tied, scaled rotary": {
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {},
    "olmo2": {},
    "phi3": {},
    "phi3, half of a head turned, long": {
        "original_max_position_embeddings": 32,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
            "short_factor": [1.0, 1.5],
            "long_factor": [2.0, 4.0],
        },
    },
}


def source(name: str) -> LoadedModel:
    """A tiny random model of the source type, with its head."""
    kind = name.split()[0].rstrip(",")
    module = build(kind, head=True, intermediate_size=64, **SOURCES[name])
    if "bias" in name:
        for layer in module.model.layers:
            layer.self_attn.o_proj.bias.data.zero_()
    return from_model(module, tiny_tokenizer(), name=name)


def windows(n: int = 40, length: int = 64, seed: int = 0) -> Windows:
    ids = torch.randint(0, 250, (n, length), generator=torch.Generator().manual_seed(seed))
    return Windows(ids, "random", "")


def converted(model: LoadedModel, **options: Any) -> tuple[Any, Counts, Target, Converted]:
    """The converted model, its counts, its target and what it was made from."""
    settings = ConvertSettings(**({"experts": 8, "active": 3, "controls": False} | options))
    target = target_of(model.module, model.config)
    counts = counts_of(settings, model.config.intermediate_size, has_shared=target.has_shared)
    found = convert_layers(model, target, counts, windows(), settings, 0)
    return build_model(model, target, counts, found.chosen), counts, target, found


def conversion(model: Any, out: Path, *, overwrite: bool = False, **options: Any) -> StudyResult:
    """The study, written to ``out``: its inputs and its settings alike as options."""
    inputs = {name: options.pop(name) for name in ("texts", "heldout", "finetune_text", "circuits") if name in options}
    return convert(model, settings=ConvertSettings(**options), run=Run(out=out, overwrite=overwrite), **inputs)
