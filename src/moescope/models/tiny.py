"""Tiny random models of every type of the installed transformers: what the tables of coverage run.

A config's sizes are set by the names of its attributes, which the types share; what a type needs besides stands in
:data:`OWN`.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedConfig

VOCABULARY = 64
EXPERTS, TOP_K = 8, 2

# By attribute name. Experts and heads are powers of two so that groups divide them.
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "unpadded_vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "max_position_embeddings": 64,
    "attention_dropout": 0.0,
    # width and depth
    "hidden_size": 32,
    "d_model": 32,
    "num_hidden_layers": 4,
    "n_layers": 4,
    "num_attention_heads": 4,
    "n_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "intermediate_size": 24,
    "hidden_dim": 24,
    "dff": 24,
    "embedding_size": 32,
    "sliding_window": 16,
    # experts
    "num_experts": EXPERTS,
    "num_local_experts": EXPERTS,
    "n_routed_experts": EXPERTS,
    "moe_num_experts": EXPERTS,
    "num_experts_per_tok": TOP_K,
    "num_experts_per_token": TOP_K,
    "moe_topk": TOP_K,
    "moe_k": TOP_K,
    "top_k_experts": TOP_K,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "moe_num_shared_experts": 1,
    "moe_intermediate_size": 16,
    "expert_ffn_hidden_size": 16,
    "shared_expert_intermediate_size": 16,
    "shared_intermediate_size": 16,
    "moe_shared_expert_intermediate_size": 16,
    "share_expert_dim": 16,
    "n_group": 2,
    "num_expert_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    # latent attention and its indexer
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "index_topk": 16,
    "index_head_dim": 8,
    "index_n_heads": 2,
    # linear attention and state space
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_head_dim": 8,
    "linear_num_heads": 4,
    "ssm_state_size": 8,
    "mamba_num_heads": 4,
    "mamba_head_dim": 16,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_dt_rank": 4,
    "n_groups": 2,
    # towers for images and sound, which text never enters
    "depth": 1,
    "image_size": 16,
    "patch_size": 8,
}

_SPARSE = ["dense", "sparse", "sparse", "sparse"]
_MIXED = ["linear_attention", "full_attention", "linear_attention", "full_attention"]

_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_INDEXER = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 16,
    "indexer_compress_ratio": 2,
}

OWN: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1, 3]},
    "chameleon": {"vocabulary_map": {"<image>": 3}},
    "codegen": {"rotary_dim": 4},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE}},
    "diffllama": {"head_dim": None},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma3n_text": {"num_kv_shared_layers": 0, "layer_types": None, "activation_sparsity_pattern": [0.0] * 4}
    | {"vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "gptj": {"rotary_dim": 4},
    "higgs_audio_v2": {"pad_token_id": 0},
    "lilt": {"hidden_size": 48},
    "mamba2": {"num_heads": 4, "head_dim": 16},
    "mobilebert": {"intra_bottleneck_size": 16, "embedding_size": 32, "true_hidden_size": 16},
    "reformer": {"is_decoder": True},
    "squeezebert": {"embedding_size": 32},
    "xmod": {"default_language": "en_XX"},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"]},
    "bailing_hybrid": {"layer_group_size": 2},
    "doge": {"is_moe": True, "num_experts": 16},
    "Nemotron3DiarizationHeadConfig": {"audio_hidden_size": 32},
    "beam": {"mlp_layer_types": _SPARSE},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": EXPERTS, "moe_top_k": TOP_K},
    },
    "deepseek_ocr2_text": {"mlp_layer_types": _SPARSE, "num_experts_per_tok": TOP_K},
    "diffusion_gemma_text": {"per_layer_config": {}},
    "dots3_note_text": {"use_sliding_window": False, "head_dim": 16},
    "ernie4_5_vl_moe_text": {"moe_intermediate_size": [16, 16], "rope_parameters": _ROPE | {"mrope_section": [1, 1, 2]}},
    "gemma4_text": {"enable_moe_block": True, "global_head_dim": 8, "vocab_size_per_layer_input": VOCABULARY},
    "glm5_next_text": {"qk_rope_head_dim": 0},
    "hy_v4_vl_text": {"rope_parameters": _ROPE | {"mrope_section": [1, 1, 2]}},
    "granitemoehybrid": {"layer_types": _MIXED},
    "jamba": {"attn_layer_offset": 1, "attn_layer_period": 2},
    "kimi_linear": {"layer_types": _MIXED},
    "lfm2": {"block_auto_adjust_ff_dim": False, "layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"], "num_dense_layers": 1},
    "mimo_v2_flash": {"num_key_value_heads": 2},
    "mistral4": {"head_dim": 16},
    "muse_spark_audio": {"out_hidden_size": 32},
    "longcat_flash": {"zero_expert_num": 4},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 3},
    "qwen4_exp_text": _INDEXER,
    "nemotron_h": {"layers_block_type": ["linear_attention", "moe", "full_attention", "moe"]},
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}

# whose rotary angles count time, height and width
for _name in ("qwen2_vl_text", "qwen2_5_vl_text", "qwen2_5_omni_text", "paddleocr_vl_text", "hunyuan_vl_text"):
    OWN[_name] = {"rope_parameters": _ROPE | {"mrope_section": [1, 1, 2]}}
for _name in ("glm4v_text", "glm4v_moe_text", "glm_ocr_text", "glm_image_text"):
    OWN[_name] = {"rope_parameters": _ROPE | {"partial_rotary_factor": 0.5, "mrope_section": [1, 1, 0]}}

# in this order: with a language-model head where there is one
_AUTO = (
    "AutoModelForCausalLM",
    "AutoModelForMaskedLM",
    "AutoModelForImageTextToText",
    "AutoModelForSeq2SeqLM",
    "AutoModel",
)

FOREIGN = (
    *(ValueError, TypeError, AttributeError, KeyError, IndexError, RuntimeError, AssertionError, ArithmeticError, ImportError),
    StrictDataclassError,
)
"""What the code of a model that was sized wrongly can throw."""


class NotBuilt(Exception):
    """The type has no class that makes a model of its config."""


def tiny_config(model_type: str) -> Any:
    """A small config of the type; composite ones have small parts."""
    return _shrink(CONFIG_MAPPING[model_type], OWN.get(model_type, {}))


def _shrink(config_class: Any, own: dict[str, Any]) -> Any:
    default = config_class()
    default.allow_global_per_layer_attribute_access = True
    settings = {name: value for name, value in SIZES.items() if hasattr(default, name) and not _derived(default, name)}
    for name, part in vars(default).items():
        if isinstance(part, PreTrainedConfig) and name not in own:
            settings[name] = _shrink(type(part), OWN.get(part.model_type or type(part).__name__, {})).to_dict()
    rope = getattr(default, "rope_parameters", None)
    if isinstance(rope, dict) and "mrope_section" in rope and "rope_parameters" not in own:
        # rotary angles of time, height and width share half of the head between them
        half = int(settings.get("head_dim", 8) * rope.get("partial_rotary_factor", 1.0)) // 2
        settings["rope_parameters"] = rope | {"mrope_section": [half // 4, half // 4, half - 2 * (half // 4)]}
    return config_class(**(settings | own))


def _derived(config: Any, name: str) -> bool:
    attribute = getattr(type(config), name, None)
    return isinstance(attribute, property) and attribute.fset is None


def tiny_module(model_type: str, seed: int = 0) -> nn.Module:
    """A random fp32 model of the type with its language-model head, on the CPU, in evaluation mode.

    Every parameter is drawn anew: some architectures leave their experts or routers unset or at nought, and a selection
    bias of nought would hide whether it is heeded.
    """
    config = tiny_config(model_type)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = _build(config)
        with torch.no_grad():
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
                if "bias" in name and tensor.is_floating_point() and "inv_freq" not in name:
                    tensor.normal_(0.0, 0.2)
                elif name.endswith("tid2eid"):  # DeepSeek-V4's table from token to experts
                    tensor.copy_(torch.rand(len(tensor), EXPERTS).argsort(1)[:, : tensor.shape[1]])
                elif isinstance(tensor, nn.Parameter):
                    tensor.add_(0.1 * torch.randn_like(tensor)) if tensor.dim() == 1 else tensor.normal_(0.0, 0.2)
    return model.eval().requires_grad_(False)


def _build(config: Any) -> nn.Module:
    for name in _AUTO:
        auto = getattr(transformers, name)
        if type(config) in auto._model_mapping:
            built: nn.Module = auto.from_config(config, dtype=torch.float32)
            return built
    raise NotBuilt("no language model: no automatic model class makes one of its config")
