"""Which mixture-of-experts type of transformers can say exactly what a dense model says, and how.

The attention, norms, rotary embedding and residual path of the target must be those of the source, or no routing could
make them equal. The evidence is in docs/convert.md; :mod:`tests.test_convert_equality` checks it for every source type.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from moescope.errors import InputError
from moescope.studies.convert.settings import Counts

# How far the calibrated router's logits spread (standard deviation). Gates are one plus half of a logit's distance from
# the mean, so this is also how far a conversion with every expert active may stray from the dense model; and float32
# still tells scores apart that differ by a two-hundredth of it.
SPREAD = 2.5e-5

# Pre-norm Llama blocks go to glm4_moe; Olmo 2's norms stand after attention and MLP, as only flex_olmo's do.
SOURCES = {
    "llama": "glm4_moe",
    "mistral": "glm4_moe",
    "qwen2": "glm4_moe",
    "qwen3": "glm4_moe",
    "arcee": "glm4_moe",
    "phi3": "glm4_moe",
    "olmo2": "flex_olmo",
}

# What no mixture-of-experts type of transformers 5.23 has, of dense types that are often asked for.
_LACKING = {
    "gemma2": "norms before and after both attention and MLP, and soft caps on attention scores and logits",
    "gemma3_text": "norms before and after both attention and MLP, beside keys normalised head by head (gemma4 has the norms, "
    "and normalises values too)",
    "gpt2": "LayerNorms with biases, learnt positions and an MLP without a gate",
    "gpt_neox": "LayerNorms with biases, an MLP without a gate, and attention and MLP side by side on the same stream",
    "opt": "LayerNorms with biases, learnt positions and an MLP without a gate",
    "bloom": "LayerNorms with biases, alibi and an MLP without a gate",
}


@dataclass(frozen=True)
class Target:
    """The type that a source is converted to.

    ``max_positions`` is shorter than the source's where a sliding window would make longer texts differ.
    """

    source: str
    model_type: str
    activation: str
    attention_bias: bool
    max_positions: int
    notes: tuple[str, ...]

    @property
    def has_shared(self) -> bool:
        """Whether the type has experts that work on every token."""
        return self.model_type == "glm4_moe"

    @property
    def has_output_bias(self) -> bool:
        """Whether the attention's output projection may have a bias."""
        return self.model_type == "flex_olmo"


def target_of(model: nn.Module, config: Any) -> Target:
    """The target of a loaded causal language model.

    Raises:
        InputError: the model is a mixture of experts already, of a type that no target can express, or has a bias that
            the target has no place for; names it.
    """
    kind = str(config.model_type)
    experts = next((k for k in ("num_experts", "num_local_experts", "n_routed_experts") if getattr(config, k, None)), None)
    if experts is not None:
        raise InputError(
            f"model type {kind!r} is a mixture of experts already ({experts} = {getattr(config, experts)}): "
            "convert takes dense models; `moescope signatures` reads this one's routing"
        )
    if kind not in SOURCES:
        why = f"no mixture of experts in transformers has its {_LACKING[kind]}; " if kind in _LACKING else ""
        raise InputError(f"model type {kind!r} cannot be converted: {why}supported are {', '.join(SOURCES)}")
    if not isinstance(model, PreTrainedModel) or model.get_output_embeddings() is None:
        raise InputError(f"model of type {kind!r} was loaded without its language-model head: load it with head=True")
    weights = model.state_dict()
    for name, tensor in weights.items():
        if (
            name.endswith(("o_proj.bias", "gate_proj.bias", "up_proj.bias", "down_proj.bias"))
            and kind != "olmo2"
            and tensor.any()
        ):
            raise InputError(f"{name}: {SOURCES[kind]} has no place for this bias, so the model cannot be converted")
    notes = []
    positions = config.max_position_embeddings
    window = _window(config)
    if window is not None and window < positions:
        positions = window
        notes.append(
            f"the source attends to the last {window} tokens only, which {SOURCES[kind]} cannot say: "
            f"max_position_embeddings is {window}, up to which the two are the same"
        )
    activation = config.hidden_act
    if kind == "arcee":
        if activation != "relu2":
            raise InputError(f"model type 'arcee' with hidden_act {activation!r} cannot be converted: only relu2, as relu(x)·x")
        activation = "relu"
        notes.append("relu2(x) = relu(x)·x: each neuron's up weights are stored twice, as gate and as up")
    if activation != "silu":
        notes.append(f"activation {activation!r}: vLLM and SGLang load glm4_moe with silu only; transformers loads it as it is")
    return Target(
        source=kind,
        model_type=SOURCES[kind],
        activation=activation,
        attention_bias=any(name.endswith("q_proj.bias") for name in weights),
        max_positions=positions,
        notes=tuple(notes),
    )


def _window(config: Any) -> int | None:
    """The sliding window of any of the model's layers, if one is used."""
    window = getattr(config, "sliding_window", None)
    if window is None or getattr(config, "use_sliding_window", True) is False:
        return None
    kinds = getattr(config, "layer_types", None)
    return int(window) if kinds is None or "sliding_attention" in kinds else None


def target_config(target: Target, config: Any, counts: Counts) -> Any:
    """The configuration of the converted model."""
    experts, active, shared = counts.experts, counts.active, counts.shared
    heads = config.num_attention_heads
    common: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": getattr(config, "num_key_value_heads", None) or heads,
        "hidden_act": target.activation,
        "max_position_embeddings": target.max_positions,
        "initializer_range": config.initializer_range,
        "rms_norm_eps": config.rms_norm_eps,
        # vLLM's glm4_moe has no tied embeddings, so they are written out
        "tie_word_embeddings": False,
        "attention_bias": target.attention_bias,
        "attention_dropout": config.attention_dropout,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
        "num_experts_per_tok": active - shared,
    }
    rope = copy.deepcopy(dict(config.rope_parameters))
    width = config.intermediate_size // experts
    if target.model_type == "flex_olmo":
        return transformers.FlexOlmoConfig(
            **common, rope_parameters=rope, intermediate_size=width, num_experts=experts, norm_topk_prob=False
        )
    # glm4_moe turns half of each head by default; of the sources only phi3 may turn less than all
    turned = rope.get("partial_rotary_factor", 1.0) if target.source == "phi3" else 1.0
    glm4_moe: Any = transformers.Glm4MoeConfig
    built = glm4_moe(
        **common,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        rope_parameters=rope | {"partial_rotary_factor": turned},
        intermediate_size=config.intermediate_size,
        moe_intermediate_size=width,
        n_routed_experts=experts - shared,
        n_shared_experts=shared,
        norm_topk_prob=True,
        routed_scaling_factor=float(active - shared),
        n_group=1,
        topk_group=1,
        first_k_dense_replace=0,
        num_nextn_predict_layers=0,
        use_qk_norm=target.source == "qwen3",
    )
    built.partial_rotary_factor = turned  # where SGLang looks for it
    return built


def set_active(model: Any, active: int) -> None:
    """Make a converted model, in memory, use ``active`` experts on each token, shared ones included; at full equality
    ``active`` is their whole number."""
    config = model.config
    routed = active - getattr(config, "n_shared_experts", 0)
    config.num_experts_per_tok = routed
    if hasattr(config, "routed_scaling_factor"):
        config.routed_scaling_factor = float(routed)
    for module in model.modules():
        if hasattr(module, "top_k") and hasattr(module, "num_experts"):
            module.top_k = routed
            if hasattr(module, "routed_scaling_factor"):
                module.routed_scaling_factor = float(routed)


def other_tensors(target: Target, config: Any, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What of the source's weights is not its MLPs', by the names of the target."""
    found = {name: tensor for name, tensor in weights.items() if ".mlp." not in name}
    if target.source == "phi3":  # q, k and v are one matrix
        heads, groups = config.num_attention_heads, config.num_key_value_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        for name in [name for name in found if name.endswith("qkv_proj.weight")]:
            parts = found.pop(name).split([heads * width, groups * width, groups * width])
            found |= {name.replace("qkv", part): rows for part, rows in zip("qkv", parts, strict=True)}
    # an output bias of nought, which target_of has seen to, has no place in the target and needs none
    return {name: tensor for name, tensor in found.items() if not name.endswith("o_proj.bias") or target.has_output_bias}


def layer_tensors(target: Target, mlp: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """gate (I, d), up (I, d) and down (d, I) of one dense MLP, gated or made so."""
    if hasattr(mlp, "gate_up_proj"):
        gate, up = mlp.gate_up_proj.weight.detach().chunk(2)
        return gate, up, mlp.down_proj.weight.detach()
    up = mlp.up_proj.weight.detach()
    gate = mlp.gate_proj.weight.detach() if hasattr(mlp, "gate_proj") else up
    return gate, up, mlp.down_proj.weight.detach()
