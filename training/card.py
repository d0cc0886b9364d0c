"""Measure a trained embedded model and write its card.

    python -m training.card dense-tiny

Held-out loss per category in nats per token and bits per byte, beside a unigram and an interpolated bigram model of the
same tokenizer fitted on the same training tokens.
"""

from __future__ import annotations

import datetime
import math
import sys

import numpy as np
import torch
from scipy.sparse import csr_array
from transformers import AutoModelForCausalLM, AutoTokenizer

from training.corpus import CATEGORIES, MIXTURE, split
from training.train import BATCH, CACHE, SEED, SEQUENCE, ZOO

PROMPTS = ("Once upon a time", "def read_lines(path):", "Question: Tom has 3 apples and buys 4 more. How many", "The river")


def ngram_models(tokenizer, cache) -> tuple[np.ndarray, csr_array]:  # noqa: ANN001
    """Unigram probabilities (V,) and bigram counts (V, V) of the training stream, weighted as the mixture samples it."""
    size = len(tokenizer)
    unigram, bigram = np.zeros(size), csr_array((size, size))
    for category in CATEGORIES:
        ids = np.load(cache / f"tokens-{category}.npy")
        weight = MIXTURE[category] / len(ids) * 1e7
        unigram += weight * np.bincount(ids, minlength=size)
        bigram = bigram + csr_array((np.full(len(ids) - 1, weight), (ids[:-1], ids[1:])), shape=(size, size))
    return (unigram + 0.1) / (unigram + 0.1).sum(), bigram.tocsr()


def held_out(tokenizer, category: str) -> list[np.ndarray]:  # noqa: ANN001
    """Held-out documents as windows of at most SEQUENCE tokens, each beginning with <|bos|>."""
    windows = []
    for ids in tokenizer(split(category)[1])["input_ids"]:
        for start in range(1, len(ids), SEQUENCE - 1):
            windows.append(np.asarray([ids[0], *ids[start : start + SEQUENCE - 1]]))
    return [w for w in windows if len(w) > 8][:400]


@torch.no_grad()
def losses(model, tokenizer, unigram, bigram, category: str) -> tuple[float, float, float, float, int]:  # noqa: ANN001
    """(model, unigram, bigram) nats per token, the model's bits per byte, and the number of tokens."""
    total = np.zeros(3)
    n = n_bytes = 0
    row_sum = np.asarray(bigram.sum(1)).ravel()
    for window in held_out(tokenizer, category):
        ids = torch.from_numpy(window)[None]
        log_p = model(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
        total[0] -= float(log_p.gather(1, ids[0, 1:, None]).sum())
        before, after = window[:-1], window[1:]
        total[1] -= np.log(unigram[after]).sum()
        # Witten-Bell-like interpolation with a fixed pseudo-count of 50.
        pair = np.asarray(bigram[before, after]).ravel()
        total[2] -= np.log((pair + 50 * unigram[after]) / (row_sum[before] + 50)).sum()
        n += len(after)
        n_bytes += len(tokenizer.decode(window[1:]).encode())
    mean = total / n
    return float(mean[0]), float(mean[1]), float(mean[2]), float(total[0] / math.log(2) / n_bytes), n


def main(name: str) -> None:
    folder = ZOO / name
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    unigram, bigram = ngram_models(tokenizer, CACHE / name)
    trained = int(torch.load(CACHE / name / "state.pt", weights_only=True)["step"])
    rows = {category: losses(model, tokenizer, unigram, bigram, category) for category in CATEGORIES}
    table = "\n".join(f"| {c} | {m:.2f} | {b:.2f} | {u:.2f} | {bits:.2f} | {n:,} |" for c, (m, u, b, bits, n) in rows.items())
    samples = []
    for prompt in PROMPTS:
        torch.manual_seed(SEED)
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        out = model.generate(ids, max_new_tokens=48, do_sample=True, temperature=0.7, top_k=40, pad_token_id=2)
        samples.append("```\n" + tokenizer.decode(out[0], skip_special_tokens=True) + "\n```")
    parameters = sum(p.numel() for p in model.parameters())
    c = model.config
    (folder / "CARD.md").write_text(
        f"""# {name}

A {c.model_type} language model of {parameters / 1e6:.2f} M parameters ({c.num_hidden_layers} layers, d {c.hidden_size}, MLP {c.intermediate_size}, {c.num_attention_heads} heads,
{c.num_key_value_heads} key-value heads, tied embeddings, context {c.max_position_embeddings}), bf16, with a byte-level BPE tokenizer of {len(tokenizer):,} tokens.
It exists so that every command runs at once and offline. It writes recognisable text; it knows next to nothing.

- **Trained** from scratch on {trained * SEQUENCE * BATCH / 1e6:.1f} M tokens ({trained} steps of {BATCH} × {SEQUENCE}), seed {SEED}, on 2 CPU cores in bf16
  autocast; finished {datetime.date.today().isoformat()}.
- **Command**: `python -m training.tokenizer src/moescope/models/zoo/{name} && python -m training.train {name} && python -m training.card {name}`
- **Data**: {", ".join(f"{category} {share:.0%}" for category, share in MIXTURE.items())} of the tokens; sources and
  their licences in `training/sources/LICENCES.md`, code also from the standard library of the Python that trained it.
- **Not seen in training**: WikiText-2's test part, HaluEval QA, TruthfulQA, and the test rows of the UCI sentiment sentences.
  Its 1,014 training rows were seen bare and as `Review: … Sentiment: positive`, so the model has an answer of its own.
- **Licence**: Apache-2.0 for the weights, as far as they are ours to license; the training text keeps its own licences.

## Held-out loss

Nats per token on documents that were never trained on, beside models of the same tokenizer fitted on the same tokens.

| category | {name} | bigram | unigram | bits per byte | tokens |
|---|---|---|---|---|---|
{table}

## What it writes (temperature 0.7, top-k 40, first sample)

{chr(10).join(samples)}
"""
    )
    print((folder / "CARD.md").read_text())


if __name__ == "__main__":
    main(sys.argv[1])
