"""A tiny llama in which, in one of two ways, each task has its own late circuit: gated by the task, or merely beside it."""

from __future__ import annotations

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from moescope.models import LoadedModel, from_model
from moescope.types import Example, Task
from tests.planted_llama import PLAIN, WORDS, word_tokenizer

TASKS, LATE, K = 3, 2, 3
"""Tasks; the layer in which their circuits are; neurons of a circuit: numbers 3t to 3t + 2 for task t."""
_TASK, _LABEL = 0, 8
"""First coordinate of those in which a word has its task (one each), and of those in which it has its class."""


def word_of(task: int, label: int, which: int) -> str:
    """Six words of each class of each task."""
    return f"w{12 * task + 6 * label + which}"


def gated_llama(*, gated: bool, seed: int = 0) -> LoadedModel:
    """Words have their task in one coordinate and their class in another; layers do next to nothing to either.

    ``gated``: the class is in one coordinate for all tasks (1.5 or 0.5), and each circuit multiplies it with its own task's
    coordinate: without that a circuit is silent. Else every task has a coordinate of its own for the class (1 or -1), and its
    circuit reads that and no task: it is active where its task is, but nothing that names the task switches it on.
    """
    torch.manual_seed(seed)
    tokenizer = word_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=24,
        num_hidden_layers=4,
        num_key_value_heads=2,
        **PLAIN,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        words = model.model.embed_tokens.weight
        words.normal_()
        words[:, _TASK : _TASK + TASKS] = 0
        words[:, _LABEL : _LABEL + TASKS] = 0
        for task in range(TASKS):
            for label in range(2):
                for which in range(6):
                    row = words[tokenizer.convert_tokens_to_ids(word_of(task, label, which))]
                    row[_TASK + task] = 2
                    row[_LABEL + (0 if gated else task)] = (1.5 - label) if gated else 1 - 2 * label
        mlp = model.model.layers[LATE].mlp
        for task in range(TASKS):
            rows = slice(K * task, K * (task + 1))
            label = _LABEL + (0 if gated else task)
            mlp.gate_proj.weight[rows] = 0
            mlp.up_proj.weight[rows] = 0
            mlp.gate_proj.weight[rows, _TASK + task if gated else label] = 4
            mlp.up_proj.weight[rows, label] = torch.tensor([1.0, 1.5, 2.0])
    return from_model(model, tokenizer, name=f"{'gated' if gated else 'ungated'}-llama")


def worded(task: int, rows: int = 150, *, foreign: np.ndarray | None = None) -> Task:
    """Texts of a task's own words and of the four that are no task's; the last word has the class. Rows ``foreign`` have the
    words of the next task."""
    rng, examples = np.random.default_rng(task), []
    for row in range(rows):
        of = task if foreign is None or not foreign[row] else (task + 1) % TASKS
        own = [word_of(of, int(rng.integers(2)), int(rng.integers(6))) for _ in range(rng.integers(8, 12))]
        none = [f"w{int(rng.integers(12 * TASKS, WORDS))}" for _ in range(3)]
        unlike = [f"u{task}x{row}x{i}" for i in range(8)]  # unknown to the model, so that no text is nearly another
        last = word_of(of, row % 2, int(rng.integers(6)))
        examples.append(Example(" ".join([*unlike, *rng.permutation([*own, *none]).tolist(), last]), row % 2, str(row)))
    return Task(f"t{task}", tuple(examples), ("low", "high"), "made here")
