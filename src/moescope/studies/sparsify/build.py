"""The sparse model as files: codes in the place of the MLPs' weights, everything else as it was."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from moescope.errors import InputError
from moescope.intervene.held_out import Windows
from moescope.models import LoadedModel
from moescope.models.pretrained import quiet
from moescope.models.quantiser import PlanesConfig, PlanesQuantizer
from moescope.models.rounding import Nested
from moescope.models.sparse import every_neuron, put_sparse
from moescope.studies.sparsify.methods import ByNeuron, Layer, by_oracle, replaced
from moescope.studies.sparsify.settings import Format


def write_sparse(model: LoadedModel, layers: Sequence[Layer], neurons: Sequence[int], form: Format, folder: Path) -> None:
    """Write the checkpoint that :func:`moescope.load_model` reads, with its tokenizer.

    Args:
        neurons: that work on a token, for every layer.
    """
    source: Any = model.module
    config = copy.deepcopy(source.config)
    with torch.device("meta"):
        built: Any = type(source)(config)
    planes = PlanesConfig(form.bits, form.choose, list(neurons))
    for mlp, layer in zip(put_sparse(built, planes.neurons, form.bits, form.choose), layers, strict=True):
        for part, codes in ((mlp.gate_proj, layer.gate), (mlp.up_proj, layer.up), (mlp.down_proj, layer.down)):
            part.take(Nested(codes.codes.cpu().contiguous(), codes.scale.cpu().contiguous(), form.bits))
    inside = tuple(f"{layer.mlp.path}." for layer in layers)
    weights = {name: t.detach().cpu() for name, t in source.state_dict().items() if not name.startswith(inside)}
    # what is not there to be taken is the codes, which are there already
    built.load_state_dict(weights, assign=True, strict=False)
    built.tie_weights()
    built.config.quantization_config = planes
    built.hf_quantizer = PlanesQuantizer(planes)
    built.generation_config = source.generation_config
    with quiet():
        built.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)


def read_sparse(folder: Path, model: LoadedModel) -> Any:
    """What was written, on the device of the model that it was made from."""
    auto: Any = transformers.AutoModelForCausalLM
    with quiet():
        return auto.from_pretrained(folder, dtype=model.dtype).to(model.device).eval().requires_grad_(False)


@torch.no_grad()
def checked_equality(model: LoadedModel, layers: Sequence[Layer], written: Any, windows: Windows) -> float:
    """Norm of the difference in logits over theirs on 1,024 held-out tokens, between what was written, every neuron at work,
    and the dense model with the weights of the same codes.

    Raises:
        InputError: they differ by more than rounding explains.
    """
    ids = next(windows.batches(1024)).to(model.device)
    with replaced(ByNeuron(layers, by_oracle, [layer.mlp.neurons for layer in layers])):
        dense = model.module(input_ids=ids, use_cache=False).logits.float()
    with every_neuron(written):
        found = written(input_ids=ids, use_cache=False).logits.float()
    difference = float((found - dense).norm() / dense.norm().clamp_min(torch.finfo(torch.float32).tiny))
    most = max(3e-5, 8 * torch.finfo(model.dtype).eps)
    if not difference <= most:
        raise InputError(
            f"{model.name} as it was written is not {model.name}: with every neuron at work the logits differ by "
            f"{difference:.3g} of their norm, where rounding explains {most:.3g} at most; nothing was written"
        )
    return difference
