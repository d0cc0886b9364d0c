"""The converted model, from the dense weights, the neurons' new places and the routers."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn

from moescope.models import LoadedModel
from moescope.studies.convert.router import LinearRouter
from moescope.studies.convert.settings import Counts
from moescope.studies.convert.split import Split
from moescope.studies.convert.target import SPREAD, Target, layer_tensors, other_tensors, target_config


def build_model(
    model: LoadedModel, target: Target, counts: Counts, layers: list[tuple[Split, LinearRouter]], module: Any | None = None
) -> Any:
    """The converted model in memory, on the CPU, in the source's dtype; everything but the MLPs is the source's own.

    Args:
        layers: for every layer, in order, its split and the router fitted for it.
        module: the same model with other weights, to be converted in its place.
    """
    source: Any = model.module if module is None else module
    config = target_config(target, model.config, counts)
    with torch.device("meta"):
        built = transformers.AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    weights = {n: t.detach().cpu() for n, t in other_tensors(target, model.config, source.state_dict()).items()}
    # a copy of its own: tied weights are written out
    weights["lm_head.weight"] = source.get_output_embeddings().weight.detach().cpu().clone()
    for number, (split, router) in enumerate(layers):
        parts = [t.cpu() for t in layer_tensors(target, source.model.layers[number].mlp)]
        for name, tensor in _moe_tensors(target, parts, split, router).items():
            keep = torch.float32 if name == "gate.e_score_correction_bias" else model.dtype
            weights[f"model.layers.{number}.mlp.{name}"] = tensor.to(keep)
    built.load_state_dict(weights, assign=True)
    # the rotary frequencies are computed, not stored, and were made on the meta device
    built.model.rotary_emb = type(built.model.rotary_emb)(config=built.config)
    _check_whole(built)
    built.generation_config = source.generation_config
    return built.eval().requires_grad_(False)


def _moe_tensors(target: Target, parts: list[Tensor], split: Split, router: LinearRouter) -> dict[str, Tensor]:
    """The weights of one mixture-of-experts block, by their names in it."""
    gate, up, down = parts
    members = torch.tensor(split.routed)  # (E, w)
    always = torch.tensor(split.shared)
    experts = len(members)
    found = {
        "experts.gate_up_proj": torch.cat([gate[members], up[members]], 1),  # (E, 2w, d)
        "experts.down_proj": down.T[members].transpose(1, 2).contiguous(),  # (E, d, w)
    }
    if target.model_type == "flex_olmo":
        # softmax over all experts without renormalising gives 1/E where scores are equal, whatever the number of active
        # experts; so each expert's output is E times larger
        found["experts.down_proj"] = found["experts.down_proj"] * experts
        return found | {"gate.weight": router.weight * router.scale(SPREAD)}
    scale = router.scale(SPREAD)
    return found | {
        "gate.weight": router.weight * scale,
        # added to sigmoid(logit), whose slope at nought is a quarter
        "gate.e_score_correction_bias": (router.bias - router.bias.mean()) * scale / 4,
        "shared_experts.gate_proj.weight": gate[always],
        "shared_experts.up_proj.weight": up[always],
        "shared_experts.down_proj.weight": down[:, always].contiguous(),
    }


def _check_whole(model: nn.Module) -> None:
    lost = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    if lost:
        raise RuntimeError(f"{lost[0]} of the converted model was not given a value")
