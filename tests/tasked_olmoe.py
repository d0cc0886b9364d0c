"""A tiny mixture of experts whose later experts are of one task each, or of none."""

from __future__ import annotations

import torch
from transformers import OlmoeConfig, OlmoeForCausalLM

from moescope.models import LoadedModel, from_model
from tests.gated_llama import TASKS, word_of
from tests.planted_llama import PLAIN, word_tokenizer

EXPERTS = 6
"""Two of each task: 2t and 2t + 1."""
_TASK, _ALL, _LABEL, _OUT = 0, 4, 8, 12
"""Coordinates: in which a word has its task (one each), what all words have, their class, and what says the task at the end."""


def tasked_olmoe(*, tasked: bool, seed: int = 0) -> LoadedModel:
    """In layers 2 and 3 a token is sent to an expert of its task, which says at the end that words of that task follow.

    Where it is not ``tasked``, a token is sent by what has nothing to do with its task, and no expert says anything.
    """
    torch.manual_seed(seed)
    tokenizer = word_tokenizer()
    config = OlmoeConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=8,
        num_hidden_layers=4,
        num_key_value_heads=4,
        num_experts=EXPERTS,
        num_experts_per_tok=1,
        norm_topk_prob=True,
        **PLAIN,
    )
    model = OlmoeForCausalLM(config).eval()
    with torch.no_grad():
        words, head = model.model.embed_tokens.weight, model.lm_head.weight
        words.normal_()
        words[:, : _OUT + TASKS] = 0
        words[:, _ALL] = 2
        head.zero_()
        for task in range(TASKS):
            for label in range(2):
                for which in range(6):
                    row = tokenizer.convert_tokens_to_ids(word_of(task, label, which))
                    words[row, _TASK + task] = 2
                    words[row, _LABEL] = 1 - 2 * label
                    head[row, _OUT + task] = 2
        for layer in model.model.layers[2:]:
            layer.mlp.gate.weight.normal_()
            layer.mlp.gate.weight[:, : _OUT + TASKS] = 0
            for expert in range(EXPERTS if tasked else 0):
                layer.mlp.gate.weight[expert, _TASK + expert // 2] = 8
                layer.mlp.experts.gate_up_proj[expert] = 0
                layer.mlp.experts.gate_up_proj[expert, [0, 8], _ALL] = 2
                layer.mlp.experts.down_proj[expert, _OUT + expert // 2, 0] = 1
    return from_model(model, tokenizer, name=f"{'tasked' if tasked else 'untasked'}-olmoe")
