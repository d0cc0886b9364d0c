"""Tiny random models of every supported architecture, and a byte-level tokenizer, all made in memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from moescope.models import LoadedModel, from_model

VOCAB = 260  # 256 bytes, then pad, bos, eos, mask
PAD, BOS, EOS, MASK = 256, 257, 258, 259
D_MODEL = 32

COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": D_MODEL,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "initializer_range": 0.2,
}
GROUPED = {"intermediate_size": 48, "num_key_value_heads": 2}
MOE = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24}

# name: (config class, settings). The layer counts and dense/expert patterns are chosen to differ.
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", GROUPED | {"num_hidden_layers": 4}),
    "mistral": ("MistralConfig", GROUPED | {"num_hidden_layers": 3, "sliding_window": 8}),
    "qwen2": ("Qwen2Config", GROUPED | {"num_hidden_layers": 3}),
    "qwen3": ("Qwen3Config", GROUPED | {"num_hidden_layers": 3, "head_dim": 12}),
    "gemma2": ("Gemma2Config", GROUPED | {"num_hidden_layers": 4, "head_dim": 8, "sliding_window": 8}),
    "gemma3": ("Gemma3TextConfig", GROUPED | {"num_hidden_layers": 4, "head_dim": 8, "sliding_window": 8}),
    "phi3": ("Phi3Config", GROUPED | {"num_hidden_layers": 3}),
    "olmo2": ("Olmo2Config", GROUPED | {"num_hidden_layers": 3}),
    "gpt_neox": ("GPTNeoXConfig", {"num_hidden_layers": 3, "intermediate_size": 48}),
    "gpt2": ("GPT2Config", {"num_hidden_layers": 3}),
    "opt": ("OPTConfig", {"num_hidden_layers": 3, "ffn_dim": 48, "word_embed_proj_dim": 16}),
    "bloom": ("BloomConfig", {"num_hidden_layers": 3}),
    "bert": ("BertConfig", {"num_hidden_layers": 3, "intermediate_size": 48}),
    "olmoe": (
        "OlmoeConfig",
        {"num_hidden_layers": 3, "intermediate_size": 24, "num_experts": 6, "num_experts_per_tok": 2},
    ),
    "mixtral": ("MixtralConfig", GROUPED | {"num_hidden_layers": 3, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        GROUPED | MOE | {"num_hidden_layers": 3, "shared_expert_intermediate_size": 20},
    ),
    "qwen3_moe": ("Qwen3MoeConfig", GROUPED | MOE | {"num_hidden_layers": 4, "decoder_sparse_step": 2, "head_dim": 8}),
    "glm4_moe": (
        "Glm4MoeConfig",
        GROUPED
        | {"num_hidden_layers": 3, "first_k_dense_replace": 1, "n_routed_experts": 6, "n_shared_experts": 1}
        | {"num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 8},
    ),
    "gpt_oss": (
        "GptOssConfig",
        GROUPED
        | {"num_hidden_layers": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}
        | {"sliding_window": 8, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    ),
}
ENCODERS = frozenset({"bert"})
# true layer numbers of the layers with experts
EXPERT_LAYERS: dict[str, tuple[int, ...]] = {
    "olmoe": (0, 1, 2),
    "mixtral": (0, 1, 2),
    "qwen2_moe": (0, 1, 2),
    "qwen3_moe": (1, 3),
    "glm4_moe": (1, 2),
    "gpt_oss": (0, 1, 2, 3),
}


def build(name: str, *, head: bool = False, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A tiny fp32 model in evaluation mode; with ``head`` it predicts tokens. ``changes`` go to its config."""
    config_class, settings = SETTINGS[name]
    config = getattr(transformers, config_class)(**(COMMON | settings | changes))
    return from_config(config, head=head, encoder=name in ENCODERS, seed=seed)


def from_config(config: Any, *, head: bool = False, encoder: bool = False, seed: int = 0) -> PreTrainedModel:
    """Build from a config and shake every parameter, so that no norm is one and no bias nought."""
    auto: Any = transformers.AutoModel
    if head:
        auto = transformers.AutoModelForMaskedLM if encoder else transformers.AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = auto.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                # experts' stacked weights and routers start at nought or unset in some architectures
                if parameter.dim() == 1:
                    parameter.add_(0.3 * torch.randn_like(parameter))
                elif "embed" not in name or "position" in name:
                    parameter.normal_(0.0, 0.2)
    return model.eval()


TINY: dict[str, Callable[..., PreTrainedModel]] = {name: partial(build, name) for name in SETTINGS}


def tiny_mamba() -> PreTrainedModel:
    """A state-space model: it has no attention and no MLP, and is refused."""
    config = transformers.MambaConfig(vocab_size=VOCAB, hidden_size=D_MODEL, num_hidden_layers=2, state_size=4)
    return transformers.AutoModel.from_config(config).eval()


REFUSED: dict[str, Callable[[], PreTrainedModel]] = {"mamba": tiny_mamba}


def tiny_model(name: str, *, head: bool = False, seed: int = 0, padding_side: str = "right") -> LoadedModel:
    """A tiny model of the architecture with the tiny tokenizer, wrapped as a LoadedModel."""
    tokenizer = tiny_tokenizer(padding_side=padding_side, encoder=name in ENCODERS)
    return from_model(TINY[name](head=head, seed=seed), tokenizer, name=f"tiny-{name}")


def save_tiny(folder: Path) -> Path:
    """A tiny llama with its head and its tokenizer, as save_pretrained writes them."""
    build("llama", head=True).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def tiny_tokenizer(*, padding_side: str = "right", encoder: bool = False) -> PreTrainedTokenizerFast:
    """One token per byte; begins a text with <bos>, and ends it with <eos> for encoders."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {character: index for index, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<pad>", "<bos>", "<eos>", "<mask>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>" if encoder else "<bos> $A", special_tokens=[("<bos>", BOS), ("<eos>", EOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        mask_token="<mask>",
        padding_side=padding_side,
        model_max_length=256,
    )
