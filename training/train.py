"""Train an embedded language model from scratch: seeded, resumable, on a CPU (bf16 autocast) or a GPU.

    python -m training.train dense-tiny      # about 80 minutes on two CPU cores; run again to resume
    python -m training.train moe-tiny        # about 40 minutes on one

Writes a checkpoint series to `.cache/training/NAME/` (also what training-dynamics studies read) and, when done, the final
bf16 safetensors model into `src/moescope/models/zoo/NAME/`. The learning rate is constant, then decays linearly over the
last fifth, so that a run may be resumed with another `--tokens` as long as the decay has not begun.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from training.corpus import CATEGORIES, MIXTURE, split

ZOO = Path(__file__).parents[1] / "src/moescope/models/zoo"
CACHE = Path(__file__).parents[1] / ".cache/training"
SEQUENCE, BATCH, SEED = 256, 32, 20261124
TOKENS = {"dense-tiny": 20e6, "moe-tiny": 6.5e6}
BALANCE = 0.02
PEAK_LR, DECAY_SHARE, WARMUP_STEPS = 3e-3, 0.2, 60


def build_model(name: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A freshly initialised model of the named embedded architecture."""
    common = {
        "vocab_size": len(tokenizer),
        "num_attention_heads": 4,
        "max_position_embeddings": SEQUENCE,
        "tie_word_embeddings": True,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if name == "dense-tiny":
        shape = {"hidden_size": 256, "num_hidden_layers": 6, "num_key_value_heads": 2, "intermediate_size": 640}
        return LlamaForCausalLM(LlamaConfig(**common, **shape))
    if name == "moe-tiny":
        # As OLMoE: softmax over all experts, top-k not renormalised. Its load-balancing loss is ours, see there.
        config = OlmoeConfig(
            **common,
            hidden_size=192,
            num_hidden_layers=5,
            num_key_value_heads=4,
            intermediate_size=96,
            num_experts=16,
            num_experts_per_tok=4,
            norm_topk_prob=False,
            router_aux_loss_coef=0.0,
            output_router_logits=True,
        )
        return OlmoeForCausalLM._from_config(config, experts_implementation="grouped_mm")
    raise SystemExit(f"unknown embedded model {name!r}; known: dense-tiny, moe-tiny")


def balance_loss(router_logits: tuple[torch.Tensor, ...], k: int) -> torch.Tensor:
    """Load-balancing loss of Switch Transformers (Fedus et al. 2021, equation 4), scalar, 1 where every expert is used alike.

    It is taken in each layer and averaged. The loss in transformers pools the layers first, which lets one layer's idle
    expert be made up for by another layer's busy one: with it, 12 of this model's 80 experts ended up idle.
    """
    losses = []
    for logits in router_logits:  # (B·T, E)
        p = logits.float().softmax(-1)
        chosen = torch.zeros_like(p).scatter_(1, p.topk(k, dim=-1).indices, 1.0 / k)
        losses.append(p.shape[1] * (chosen.mean(0) * p.mean(0)).sum())
    return torch.stack(losses).mean()


def token_streams(tokenizer: PreTrainedTokenizerBase, cache: Path) -> dict[str, np.ndarray]:
    """Per category the train documents as one array of ids, `<|bos|> document <|eos|>` after one another, shuffled once."""
    streams = {}
    eos = tokenizer.eos_token_id
    for index, category in enumerate(CATEGORIES):
        path = cache / f"tokens-{category}.npy"
        if not path.exists():
            documents = split(category)[0]
            order = np.random.default_rng([SEED, index]).permutation(len(documents))
            encoded = tokenizer([documents[i] for i in order])["input_ids"]
            np.save(path, np.concatenate([np.asarray([*ids, eos], dtype=np.int32) for ids in encoded]))
        streams[category] = np.load(path)
    return streams


def batch_at(step: int, streams: dict[str, np.ndarray]) -> torch.Tensor:
    """The batch of a step, (BATCH, SEQUENCE) int64: a pure function of the step, so that a resumed run sees the same data."""
    rng = np.random.default_rng([SEED, 1_000_003, step])
    names = rng.choice(CATEGORIES, size=BATCH, p=[MIXTURE[c] for c in CATEGORIES])
    rows = []
    for name in names:
        stream = streams[name]
        start = int(rng.integers(0, len(stream)))
        rows.append(np.take(stream, range(start, start + SEQUENCE), mode="wrap"))
    return torch.from_numpy(np.stack(rows).astype(np.int64))


def learning_rate(step: int, steps: int) -> float:
    decay_from = int(steps * (1 - DECAY_SHARE))
    if step < WARMUP_STEPS:
        return PEAK_LR * (step + 1) / WARMUP_STEPS
    if step < decay_from:
        return PEAK_LR
    return PEAK_LR * max(0.02, (steps - step) / (steps - decay_from))


def optimizers(model: PreTrainedModel) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers; AdamW for embeddings, norms, routers and (at half the rate) expert banks."""
    matrices, banks, rest = [], [], []
    for name, parameter in model.named_parameters():
        inside = ".layers." in name and not name.endswith("mlp.gate.weight")
        (banks if parameter.ndim == 3 else matrices if parameter.ndim == 2 and inside else rest).append(parameter)
    adam = [{"params": rest, "scale": 1.0}] + ([{"params": banks, "scale": 0.5}] if banks else [])
    return [
        torch.optim.Muon(matrices, lr=PEAK_LR, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(adam, lr=PEAK_LR, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def save_checkpoint(path: Path, model: PreTrainedModel, opts: list[torch.optim.Optimizer], step: int) -> None:
    temporary = path.with_suffix(".tmp")
    torch.save({"model": model.state_dict(), "opts": [o.state_dict() for o in opts], "step": step}, temporary)
    temporary.replace(path)


def series_steps(steps: int) -> set[int]:
    """Steps at which a loadable snapshot is kept: powers of two, then every twelfth of the run."""
    return {2**i for i in range(20) if 2**i < steps} | {round(steps * i / 12) for i in range(1, 12)}


def save_snapshot(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    state = {key: value.to(torch.bfloat16) for key, value in model.state_dict().items() if key != "lm_head.weight"}
    before = {key: getattr(model.config, key, None) for key in ("dtype", "output_router_logits")}
    model.config.dtype = torch.bfloat16
    model.config.output_router_logits = False  # wanted for the loss of the training only
    model.save_pretrained(folder, state_dict=state)
    for key, value in before.items():
        setattr(model.config, key, value)
    tokenizer.save_pretrained(folder)


def train(name: str, tokens: float, device: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(ZOO / "dense-tiny")
    cache = CACHE / name
    cache.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    model = build_model(name, tokenizer).to(device)
    model.train()
    opts = optimizers(model)
    steps = int(tokens / (SEQUENCE * BATCH))
    streams = token_streams(tokenizer, cache)
    parameters = sum(p.numel() for p in model.parameters())
    unique = sum(len(s) for s in streams.values())
    print(f"{name}: {parameters / 1e6:.2f} M parameters, {unique / 1e6:.2f} M unique tokens, {steps} steps", flush=True)

    state_path, first = cache / "state.pt", 0
    if state_path.exists():
        state = torch.load(state_path, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(opts, state["opts"], strict=True):
            optimizer.load_state_dict(saved)
        first = state["step"]
        print(f"resumed at step {first}", flush=True)

    forward = torch.compile(model)
    began, keep = time.time(), series_steps(steps)
    for step in range(first, steps):
        if step in keep:
            save_snapshot(cache / f"step-{step:05d}", model, tokenizer)
        for optimizer in opts:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps) * group.get("scale", 1.0)
        ids = batch_at(step, streams).to(device)
        with torch.autocast(device.split(":")[0], dtype=torch.bfloat16):
            output = forward(input_ids=ids, labels=ids)
        loss = output.loss
        if getattr(output, "router_logits", None):
            loss = loss + BALANCE * balance_loss(output.router_logits, model.config.num_experts_per_tok)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in opts:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        value = output.loss.item()
        if not math.isfinite(value):
            raise SystemExit(f"step {step}: the loss is {value}; lower PEAK_LR or resume from an earlier state")
        if step % 20 == 0 or step == steps - 1:
            rate = (step + 1 - first) * SEQUENCE * BATCH / (time.time() - began)
            entry = {"step": step, "loss": round(value, 4), "lr": learning_rate(step, steps), "tokens_per_s": round(rate)}
            print(json.dumps(entry), flush=True)
        if step % 50 == 49 or step == steps - 1:
            save_checkpoint(state_path, model, opts, step + 1)
    save_snapshot(ZOO / name, model, tokenizer)
    print(f"wrote {ZOO / name}; now: python -m training.card {name}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(TOKENS))
    parser.add_argument("--tokens", type=float, help="training tokens (default: as the embedded model's card says)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    train(arguments.name, arguments.tokens or TOKENS[arguments.name], arguments.device)
