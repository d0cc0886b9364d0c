"""Measure a trained embedded model and write its card.

    python -m training.card dense-tiny

Held-out loss per category in nats per token and bits per byte, beside a unigram and an interpolated bigram model of the
same tokenizer fitted on the same training tokens; for a mixture of experts also how evenly its experts are used.
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


def ngram_models(tokenizer, cache) -> tuple[np.ndarray, csr_array]:
    """Unigram probabilities (V,) and bigram counts (V, V) of the training stream, weighted as the mixture samples it."""
    size = len(tokenizer)
    unigram, bigram = np.zeros(size), csr_array((size, size))
    for category in CATEGORIES:
        ids = np.load(cache / f"tokens-{category}.npy")
        weight = MIXTURE[category] / len(ids) * 1e7
        unigram += weight * np.bincount(ids, minlength=size)
        bigram = bigram + csr_array((np.full(len(ids) - 1, weight), (ids[:-1], ids[1:])), shape=(size, size))
    return (unigram + 0.1) / (unigram + 0.1).sum(), bigram.tocsr()


def held_out(tokenizer, category: str) -> list[np.ndarray]:
    """Held-out documents as windows of at most SEQUENCE tokens, each beginning with <|bos|>."""
    windows = []
    for ids in tokenizer(split(category)[1])["input_ids"]:
        for start in range(1, len(ids), SEQUENCE - 1):
            windows.append(np.asarray([ids[0], *ids[start : start + SEQUENCE - 1]]))
    return [w for w in windows if len(w) > 8][:400]


@torch.no_grad()
def losses(model, tokenizer, unigram, bigram, category: str) -> tuple[float, float, float, float, int]:
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


@torch.no_grad()
def expert_shares(model, tokenizer) -> np.ndarray:
    """Share of the routed slots that each expert takes on held-out text, (layers, experts), from the routers' own choice."""
    gates = [module for name, module in model.named_modules() if name.endswith("mlp.gate")]
    counts = np.zeros((len(gates), model.config.num_experts))
    hooks = [
        gate.register_forward_hook(
            lambda _, __, output, row=row: np.add.at(counts[row], output[2].flatten().numpy(), 1)  # (logits, weights, ids)
        )
        for row, gate in enumerate(gates)
    ]
    for category in CATEGORIES:
        for window in held_out(tokenizer, category)[:40]:
            model.model(input_ids=torch.from_numpy(window)[None])
    for hook in hooks:
        hook.remove()
    return counts / counts.sum(1, keepdims=True)


def expert_section(model, tokenizer) -> str:
    """How evenly the experts are used, as a section of the card; empty for a dense model."""
    if not hasattr(model.config, "num_experts"):
        return ""
    shares = expert_shares(model, tokenizer)
    n = shares.shape[1]
    entropy = -(shares * np.log(np.maximum(shares, 1e-12))).sum(1) / np.log(n)
    rows = "\n".join(
        f"| {layer} | {share.min():.1%} | {share.max():.1%} | {(share < 0.1 / n).sum()} | {even:.3f} |"
        for layer, (share, even) in enumerate(zip(shares, entropy, strict=True))
    )
    return f"""
## How its experts are used

Shares of the routed slots on held-out text, 40 windows a category; even use would be {1 / n:.1%} each. An expert counts as idle
below a tenth of that. Evenness is the entropy of the shares over its maximum.

| layer | least used | most used | idle | evenness |
|---|---|---|---|---|
{rows}
"""


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
    mlp = f"MLP {c.intermediate_size}"
    command = f"python -m training.train {name} && python -m training.card {name}"
    if name == "dense-tiny":
        command = f"python -m training.tokenizer src/moescope/models/zoo/{name} && {command}"
    if hasattr(c, "num_experts"):
        mlp = f"{c.num_experts} experts of width {c.intermediate_size}, {c.num_experts_per_tok} a token"
    article = "An" if c.model_type[0] in "aeiou" else "A"
    body = (
        f"{article} {c.model_type} language model of {parameters / 1e6:.2f} M parameters ({c.num_hidden_layers} layers, "
        f"d {c.hidden_size}, {mlp},\n{c.num_attention_heads} heads, {c.num_key_value_heads} key-value heads, tied embeddings, "
        f"context {c.max_position_embeddings}), bf16, with a byte-level\nBPE tokenizer of {len(tokenizer):,} tokens."
    )
    trained_on = (
        f"{trained * SEQUENCE * BATCH / 1e6:.1f} M tokens ({trained} steps of {BATCH} × {SEQUENCE}), seed {SEED}, on a CPU\n"
        f"  in bf16 autocast; finished {datetime.date.today().isoformat()}."
    )
    (folder / "CARD.md").write_text(
        f"""# {name}

{body}
It exists so that every command runs at once and offline. It writes recognisable text; it knows next to nothing.

- **Trained** from scratch on {trained_on}
- **Command**: `{command}`
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
{expert_section(model, tokenizer)}
## What it writes (temperature 0.7, top-k 40, first sample)

{chr(10).join(samples)}
"""
    )
    print((folder / "CARD.md").read_text())


if __name__ == "__main__":
    main(sys.argv[1])
