"""Prune a random mixture of experts of OLMoE's shape: time and peak memory, layer by layer, and a reload in plain transformers.

python benchmarks/prune.py                # two of OLMoE's sixteen layers, 1.05 billion weights: 4 GB of disk
python benchmarks/prune.py --layers 16    # all of it
python benchmarks/prune.py --tiny         # a minute, to see that it runs

The model is made in the folder given by --work, a layer at a time; weights are drawn from a seed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from machine import describe

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "prune.json"
SHAPE: dict[str, Any] = {
    "hidden_size": 2048,
    "intermediate_size": 1024,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "vocab_size": 50304,
    "max_position_embeddings": 4096,
    "norm_topk_prob": False,
}
TINY = SHAPE | {"hidden_size": 256, "intermediate_size": 128, "num_experts": 16, "vocab_size": 8192}

_PRUNE = """
import json, sys, time
import psutil, torch
base = psutil.Process().memory_info().rss
import moescope, moescope.studies.prune.study
from moescope.study.provenance import peak_bytes
folder, out, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
imported = psutil.Process().memory_info().rss
start = time.perf_counter()
run = moescope.Run(out=out, dtype="bf16", batch_tokens=256)
result = moescope.prune(folder, settings=moescope.PruneSettings(**options), run=run)
peak = peak_bytes()
table = result.table("pruning")
print(json.dumps({
    "seconds": time.perf_counter() - start, "torch_bytes": base, "imported_bytes": imported, "peak_bytes": peak,
    "config": result.meta["config"], "bytes": result.meta["bytes"],
    "claims": [[c.statement, c.measured, c.outcome] for c in result.claims],
    "pruning": json.loads(table.to_json(orient="records")),
}))
"""
_RELOAD = """
import json, sys, time
import torch, transformers
start = time.perf_counter()
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
with torch.no_grad():
    logits = model(input_ids=torch.arange(16)[None]).logits
assert "moescope" not in sys.modules
print(json.dumps({"experts": model.config.num_experts, "weights": sum(p.numel() for p in model.parameters()),
                  "finite": bool(logits.isfinite().all()), "seconds": time.perf_counter() - start}))
"""


def make(folder: Path, shape: dict[str, Any], layers: int, seed: int = 0) -> int:
    """A random checkpoint, one file a layer; gives the number of its weights."""
    import torch
    import transformers
    from safetensors.torch import save_file

    import moescope

    folder.mkdir(parents=True, exist_ok=True)
    config = transformers.OlmoeConfig(**shape, num_hidden_layers=layers, tie_word_embeddings=False, dtype="bfloat16")
    config.architectures = ["OlmoeForCausalLM"]
    config.save_pretrained(folder)
    moescope.load_model("moe-tiny").tokenizer.save_pretrained(folder)
    draw = torch.Generator().manual_seed(seed)
    width, inner, vocabulary = shape["hidden_size"], shape["intermediate_size"], shape["vocab_size"]

    def matrix(rows: int, columns: int) -> Any:
        return (torch.randn(rows, columns, generator=draw) * columns**-0.5).bfloat16()

    ones = torch.ones(width, dtype=torch.bfloat16)
    weight_map, total = {}, 0

    def save(name: str, tensors: dict[str, Any]) -> None:
        nonlocal total
        save_file(tensors, folder / name, {"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, name))
        total += sum(t.numel() for t in tensors.values())

    outside = {"model.embed_tokens.weight": matrix(vocabulary, width), "lm_head.weight": matrix(vocabulary, width)}
    save("outside.safetensors", outside | {"model.norm.weight": ones.clone()})
    del outside
    for layer in range(layers):
        at = f"model.layers.{layer}."
        tensors = {f"{at}{name}_layernorm.weight": ones.clone() for name in ("input", "post_attention")}
        tensors |= {f"{at}self_attn.{n}_proj.weight": matrix(width, width) for n in "qkvo"}
        tensors |= {f"{at}self_attn.{n}_norm.weight": ones.clone() for n in "qk"}
        tensors[f"{at}mlp.gate.weight"] = 4 * matrix(shape["num_experts"], width)
        for expert in range(shape["num_experts"]):
            for name, rows, columns in (("gate", inner, width), ("up", inner, width), ("down", width, inner)):
                tensors[f"{at}mlp.experts.{expert}.{name}_proj.weight"] = matrix(rows, columns)
        save(f"layer-{layer:02d}.safetensors", tensors)
    index = {"metadata": {"total_size": 2 * total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def run(script: str, *arguments: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--text-tokens", type=int, default=128)
    parser.add_argument("--work", type=Path, default=Path("/tmp/moescope-prune"))
    parser.add_argument("--random", type=int, default=4, help="random masks; below 39 nothing could be shown at 0.05")
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    shape = TINY if given.tiny else SHAPE
    source, out = given.work / "moe", given.work / "pruned"
    began = time.perf_counter()
    weights = make(source, shape, given.layers)
    made = time.perf_counter() - began
    per_expert = 3 * shape["hidden_size"] * shape["intermediate_size"]
    outside = shape["num_experts"] * shape["hidden_size"] + 4 * shape["hidden_size"] ** 2
    layer = 2 * (shape["num_experts"] * per_expert + outside)
    options = {"ratio": 0.25, "ratios": [], "text_tokens": given.text_tokens, "length": 32}
    options |= {"n_random": given.random, "alpha": 0.05 if given.random >= 39 else 0.45}
    pruned = run(_PRUNE, str(source), str(out), json.dumps(options))
    reloaded = run(_RELOAD, str(out))
    over = pruned["peak_bytes"] - pruned["torch_bytes"]
    result = {
        "machine": describe(),
        "shape": shape,
        "layers": given.layers,
        "weights": weights,
        "seconds_to_make": made,
        "options": options,
        "layer_bytes": layer,
        "peak_over_torch_bytes": over,
        "peak_in_layers": over / layer,
        "pruned": pruned,
        "reloaded": reloaded,
    }
    print(json.dumps({k: v for k, v in result.items() if k not in ("machine", "pruned")}, indent=1))
    if not given.tiny:
        RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
