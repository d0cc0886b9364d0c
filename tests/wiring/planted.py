"""Models that are tables: what every word does at every layer is written down, so that a study's right answer is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, OlmoeConfig, OlmoeForCausalLM, PreTrainedTokenizerFast

from moescope.models import LoadedModel, from_model
from moescope.types import Example, Task

UNKNOWN = "<unk>"
Words = Mapping[str, np.ndarray]
"""What each word is: its vector, which enters layer 0."""


def lookup_model(words: Words, *, layers: int = 1, inner: int = 48) -> LoadedModel:
    """A llama none of whose layers does anything, so that a text's last activations are its last word's vector everywhere.

    Its head gives every word the logit 0; see :func:`expects`.
    """
    tokenizer, width = _tokenizer(words), len(next(iter(words.values())))
    config = LlamaConfig(num_hidden_layers=layers, intermediate_size=inner, num_attention_heads=4, **_shared(tokenizer, width))
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        _fill(model, tokenizer, words)
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    return from_model(model, tokenizer, name="table")


def squares(model: LoadedModel, layer: int, source: int, write: np.ndarray) -> None:
    """Let the MLP of a layer add ``write`` (D,) times the square of the coordinate ``source``, in units of the mean square."""
    mlp: Any = model.body.layers[layer].mlp
    with torch.no_grad():
        mlp.gate_proj.weight.zero_()
        mlp.up_proj.weight.zero_()
        # z silu'd times z, plus the same of -z: the two sigmoids add up to one
        for neuron, sign in enumerate((1.0, -1.0)):
            mlp.gate_proj.weight[neuron, source] = sign
            mlp.up_proj.weight[neuron, source] = sign
            mlp.down_proj.weight[:, neuron] = torch.from_numpy(write).float()


def scramble(model: LoadedModel, seed: int = 0) -> None:
    """Let every MLP overwrite the stream with a random function of it, so that no layer tells what another does."""
    rng = torch.Generator().manual_seed(seed)
    body: Any = model.body
    with torch.no_grad():
        for number, layer in enumerate(body.layers):
            for part in (layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj):
                part.weight.normal_(generator=rng)
            layer.mlp.down_proj.weight.mul_(4.0**number)


def expects(model: LoadedModel, word: str, direction: np.ndarray) -> None:
    """Let the head's logit of a word be the product of ``direction`` (D,) with the normalised stream."""
    head: Any = model.module.get_output_embeddings()
    with torch.no_grad():
        head.weight[model.tokenizer.convert_tokens_to_ids(word)] = torch.from_numpy(direction).float()


def expert_model(
    words: Words, gates: np.ndarray, writes: np.ndarray, *, reads: np.ndarray | None = None, top_k: int = 1
) -> LoadedModel:
    """A mixture of E experts in one layer, without attention: ``gates`` (E, D) read the normalised word, and an expert that is
    chosen adds its row of ``writes`` (E, D) times its router's weight, and times its product with ``reads`` (E, D) where
    given. Coordinate 0 of every word must be 1.
    """
    tokenizer, width = _tokenizer(words), gates.shape[1]
    config = OlmoeConfig(
        num_hidden_layers=1,
        intermediate_size=8,
        num_attention_heads=4,
        num_experts=len(gates),
        num_experts_per_tok=top_k,
        **_shared(tokenizer, width),
    )
    model = OlmoeForCausalLM(config).eval()
    with torch.no_grad():
        _fill(model, tokenizer, words)
        layer = model.model.layers[0]
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.gate.weight.copy_(torch.from_numpy(gates).float())
        experts = layer.mlp.experts
        experts.gate_up_proj.zero_()
        experts.down_proj.zero_()
        inner = experts.gate_up_proj.shape[1] // 2
        experts.gate_up_proj[:, [0, inner], 0] = 2.0  # one neuron, gate and up, that is on for every word
        if reads is not None:
            experts.gate_up_proj[:, inner] = torch.from_numpy(reads).float()
        experts.down_proj[:, :, 0] = torch.from_numpy(writes).float()
    return from_model(model, tokenizer, name="table of experts")


def task(texts: Sequence[str], y: Sequence[int] | np.ndarray, groups: Sequence[Any] | None = None, name: str = "made") -> Task:
    """Two classes; without groups every row is its own."""
    groups = range(len(texts)) if groups is None else groups
    rows = tuple(Example(t, int(c), str(g)) for t, c, g in zip(texts, y, groups, strict=True))
    return Task(name, rows, ("zero", "one"), source="made here")


def several(texts: Sequence[str], y: Sequence[int] | np.ndarray, name: str = "made") -> Task:
    """Classes c0, c1, …; every row is a group of its own."""
    rows = tuple(Example(t, int(c), str(i)) for i, (t, c) in enumerate(zip(texts, y, strict=True)))
    return Task(name, rows, tuple(f"c{c}" for c in range(int(np.max(y)) + 1)), source="made here")


def graded(texts: Sequence[str], y: np.ndarray, groups: Sequence[Any] | np.ndarray | None = None, name: str = "made") -> Task:
    """A number for each text; without groups every row is its own."""
    groups = range(len(texts)) if groups is None else groups
    rows = tuple(Example(t, 0, str(g), value=float(v)) for t, v, g in zip(texts, y, groups, strict=True))
    return Task(name, rows, (), source="made here", kind="graded")


def words_of(x: np.ndarray, prefix: str = "w") -> dict[str, np.ndarray]:
    """A word for every row of x (N, D), used by no other: a text of it alone has those activations, and no surface cue."""
    return {f"{prefix}{i}": row for i, row in enumerate(x)}


def _tokenizer(words: Words) -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(["<pad>", UNKNOWN, *(w for w in words if w != UNKNOWN)])}
    inner = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    inner.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", unk_token=UNKNOWN)


def _shared(tokenizer: PreTrainedTokenizerFast, width: int) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "num_key_value_heads": 4,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def _fill(model: Any, tokenizer: PreTrainedTokenizerFast, words: Words) -> None:
    embedding = model.get_input_embeddings().weight
    embedding.zero_()
    embedding[:, 0] = 1.0  # of words that are not in the table: a norm of nought has no direction
    for word, vector in words.items():
        embedding[tokenizer.convert_tokens_to_ids(word)] = torch.from_numpy(np.asarray(vector)).float()
    model.get_output_embeddings().weight.zero_()
