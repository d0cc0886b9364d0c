"""A tiny llama in which one known coordinate carries the answer."""

from __future__ import annotations

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from moescope.models import LoadedModel, from_model
from moescope.types import Example, Site, Task

COORDINATE = 11
CARRIER = Site("resid", 1)
PLAIN = {
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
"""What configs of tiny decoders that read words have in common."""
WORDS = 40  # w0..w39; as the last word, the first twenty mean class 0


def word_tokenizer() -> PreTrainedTokenizerFast:
    words = ["<pad>", "<unk>", "yes", "no", *(f"w{i}" for i in range(WORDS))]
    inner = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>")


def planted_llama(*, layers: int = 4, width: int = 32, seed: int = 0) -> LoadedModel:
    """A llama whose layers 0 and 1 do next to nothing to coordinate ``COORDINATE``, in which the last word writes its
    class.

    Every other coordinate of a word is random with the same mean square, and the head reads "yes" and "no" from the one
    coordinate with opposite signs. So any norm-matched neuron is as large, and only this one matters.
    """
    torch.manual_seed(seed)
    tokenizer = word_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_key_value_heads=2,
        **PLAIN,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        embedding = model.model.embed_tokens.weight
        embedding.normal_()
        first = tokenizer.convert_tokens_to_ids("w0")
        sign = torch.tensor([1.0] * (WORDS // 2) + [-1.0] * (WORDS // 2))
        embedding[first : first + WORDS, COORDINATE] = sign
        head = model.lm_head.weight
        head.normal_(std=0.05)
        for word, weight in (("yes", 2.0), ("no", -2.0)):
            row = tokenizer.convert_tokens_to_ids(word)
            head[row] = 0
            head[row, COORDINATE] = weight
    return from_model(model, tokenizer, name="planted-llama")


def planted_task(*, rows: int = 120, seed: int = 0, answers: tuple[str, ...] = (" yes", " no")) -> Task:
    """Texts of 3 to 9 words whose last word gives the class."""
    rng = np.random.default_rng(seed)
    examples = []
    for row in range(rows):
        label = row % 2
        words = [f"w{i}" for i in rng.integers(WORDS, size=rng.integers(2, 9))]
        words.append(f"w{rng.integers(WORDS // 2) + label * WORDS // 2}")
        examples.append(Example(" ".join(words), label, group=str(row // 2)))
    return Task("planted", tuple(examples), ("positive", "negative"), source="made here", answers=answers)
