"""Does cutting an MLP into experts make a model faster? Kernels with cold caches, a 1.1 B model, and the embedded one.

    python benchmarks/convert.py --part kernel            # one layer of experts, a minute, 3 GB; on a GPU where there is one
    python benchmarks/convert.py --part model             # Llama shape, 1.1 B, random weights, float32: five minutes, 9 GB
    python benchmarks/convert.py --part model --active 6  # a part of it, beside what the results hold of the others
    python benchmarks/convert.py --part model --dtype bf16
    python benchmarks/convert.py --part embedded          # quality and speed of the embedded model: two minutes

Writes its part of benchmarks/results/convert.json. Contenders are interleaved, each turn beginning with another one, and a
speed-up is the median of those within a turn. The experts implementations that transformers brings run on weights as
transformers stores them; moescope's has a copy of the down projections of its own, stored by neuron.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import transformers
from torch.nn import functional as F
from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeExperts

from machine import describe
from moescope.kernels.experts import pack, path
from moescope.studies.convert.settings import Counts
from moescope.studies.convert.speed import Runner, Workload, active_share, ceilings, measure
from moescope.studies.convert.study import convert
from moescope.studies.convert.target import Target, set_active, target_config

RESULT = Path(__file__).parent / "results" / "convert.json"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
OTHERS = ("eager", "grouped_mm", "batched_mm")
D, WIDTH, EXPERTS = 2048, 8192, 64
LAYERS = 16  # of the model
BUCKETS = (2, 8, 64, 256)  # tokens at once, of which the results name the path taken
COLD = 8  # layers of experts that the kernel's calls go through in turn: 1.6 GB in float32


def filled(shape: torch.Size | tuple[int, ...], dtype: torch.dtype, scale: float = 0.02, device: str = "cpu") -> torch.Tensor:
    """Random numbers that repeat after 4 M: drawing billions would take longer than the benchmark."""
    block = scale * torch.randn(2**22, generator=torch.Generator().manual_seed(0)).to(device)
    flat = torch.empty(torch.Size(shape).numel(), dtype=dtype, device=device)
    for start in range(0, len(flat), len(block)):
        part = flat[start : start + len(block)]
        part.copy_(block[: len(part)])
    return flat.view(shape)


def reading_rate(device: str) -> float:
    """Bytes per second: the best of torch's sum and matrix-vector product over 1 GiB, five times each."""
    big = filled((2**16, 2**12), torch.float32, device=device)
    x = torch.ones(2**12, device=device)
    best = 0.0
    for call in (lambda: big.sum(), lambda: big @ x):
        for _ in range(5):
            began = now(device)
            call()
            best = max(best, 4 * big.numel() / (now(device) - began))
    return best


def now(device: str) -> float:
    """Seconds, when all that was asked of the device is done."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


# --- one layer ------------------------------------------------------------------------------------------------------------


def experts_module(dtype: torch.dtype, device: str) -> Any:
    config: Any = transformers.Glm4MoeConfig(hidden_size=D, moe_intermediate_size=WIDTH // EXPERTS, n_routed_experts=EXPERTS)
    config._experts_implementation = "eager"
    with torch.device("meta"):
        made = Glm4MoeExperts(config)
    made.gate_up_proj = torch.nn.Parameter(filled(made.gate_up_proj.shape, dtype, device=device), requires_grad=False)
    made.down_proj = torch.nn.Parameter(filled(made.down_proj.shape, dtype, device=device), requires_grad=False)
    return made


def kernel(rate: float, device: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for name, dtype in DTYPES.items():
        packed, plain = ([experts_module(dtype, device) for _ in range(COLD // 2)] for _ in range(2))
        for module in packed if device == "cpu" else ():  # on a GPU its kernel takes them as they are
            pack(module)
        dense = [[filled(s, dtype, device=device) for s in ((WIDTH, D), (WIDTH, D), (D, WIDTH))] for _ in range(COLD // 2)]
        for tokens, active in ((1, EXPERTS), (1, 16), (1, 6), (8, 16), (64, 16), (512, 16)):
            rows += kernel_case(name, dtype, tokens, active, packed, plain, dense, rate, device)
            print(
                *(
                    f"{r['contender']} {r['speedup']:.2f}x"
                    for r in rows
                    if (r["dtype"], r["tokens"], r["active"]) == (name, tokens, active)
                )
            )
    return rows


def kernel_case(
    name: str,
    dtype: torch.dtype,
    tokens: int,
    active: int,
    packed: list[Any],
    plain: list[Any],
    dense: list[Any],
    rate: float,
    device: str,
) -> list[dict[str, Any]]:
    draw = torch.Generator().manual_seed(tokens)
    x = torch.randn(tokens, D, generator=draw).to(device, dtype)
    scale = torch.ones(tokens, active, dtype=dtype, device=device)
    routes = [torch.rand(tokens, EXPERTS, generator=draw).topk(active).indices.to(device) for _ in range(8)]

    def run_dense(i: int) -> None:
        gate, up, down = dense[i % len(dense)]
        F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)

    def run_experts(modules: list[Any], implementation: str) -> Callable[[int], None]:
        def call(i: int) -> None:
            module = modules[i % len(modules)]
            module.config._experts_implementation = implementation
            module(x, routes[i % len(routes)], scale)

        return call

    calls = {"dense": run_dense, "moescope": run_experts(packed, "moescope")}
    # batched_mm copies k experts' weights for every token: 52 GB for 512 tokens in float32
    calls |= {other: run_experts(plain, other) for other in OTHERS if other != "batched_mm" or tokens <= 8}
    turns = 12 if tokens < 64 else 4
    times: dict[str, list[float]] = {key: [] for key in calls}
    with torch.no_grad():
        for turn in range(-2, turns):
            keys = list(calls)
            for key in keys[turn % len(keys) :] + keys[: turn % len(keys)]:
                began = now(device)
                calls[key](turn)
                if turn >= 0:
                    times[key].append(now(device) - began)
    touched = float(np.mean([len(torch.unique(r)) for r in routes]))
    size = dtype.itemsize * 3 * D * WIDTH
    return [
        {
            "dtype": name,
            "tokens": tokens,
            "active": active,
            "contender": key,
            "milliseconds": 1e3 * median(spent),
            "speedup": median(a / b for a, b in zip(times["dense"], spent, strict=True)),
            # the time in which its weights could be read, over the time it took
            "share_of_byte_floor": size * (1 if key == "dense" else touched / EXPERTS) / rate / median(spent),
        }
        for key, spent in times.items()
    ]


# --- a model --------------------------------------------------------------------------------------------------------------


def models(dtype: torch.dtype) -> tuple[Any, Any, Any]:
    """A dense Llama of 1.1 B weights and the same cut into experts, twice: as stored, and with its own down projections."""
    config = transformers.LlamaConfig(
        hidden_size=D, intermediate_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=32, num_key_value_heads=8,
        vocab_size=32000, max_position_embeddings=2048,
    )  # fmt: skip
    dense = _materialised(config, dtype, {})
    target = Target("llama", "glm4_moe", "silu", False, 2048, ())
    body = {name: p for name, p in dense.named_parameters() if ".mlp." not in name}
    moe_config = target_config(target, config, Counts(EXPERTS, 16, 2))
    plain = _materialised(moe_config, dtype, body)
    rest = {name: p for name, p in plain.named_parameters() if not name.endswith("experts.down_proj")}
    return dense, plain, _materialised(moe_config, dtype, rest)


def _materialised(config: Any, dtype: torch.dtype, given: dict[str, Any]) -> Any:
    with torch.device("meta"):
        made: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    weights = {name: given.get(name) for name, _ in made.named_parameters()}
    weights |= {name: filled(p.shape, dtype) for name, p in made.named_parameters() if weights[name] is None}
    weights |= {name: torch.zeros(b.shape) for name, b in made.named_buffers() if name.endswith("correction_bias")}
    made.load_state_dict(weights, assign=True, strict=False)
    made.model.rotary_emb = type(made.model.rotary_emb)(config=made.config)
    return made.eval().requires_grad_(False)


def model(
    dtype: str, actives: list[int], single: bool, rows: list[dict[str, Any]], save: Callable[[dict[str, Any]], None]
) -> None:
    dense, plain, own = models(DTYPES[dtype])
    counts = {key: sum(p.numel() for p in m.parameters()) for key, m in (("dense", dense), ("converted", own))}
    for active in actives:
        for made in (plain, own):
            set_active(made, active)
        runners = [
            Runner("dense", dense),
            Runner("moescope", own, "moescope"),
            Runner("moescope, fused", own, "moescope", True),
        ]
        runners += [Runner(other, plain, other) for other in OTHERS]
        cases = [([Workload("batch 1", 1, 4, 6)], runners if active < EXPERTS else runners[:3], 4)]
        if active < EXPERTS and not single:
            kept = [r for r in runners if r.name in ("dense", "moescope", "moescope, fused", "grouped_mm")]
            cases.append(
                ([Workload("batch 8", 8, 2, 3), Workload("batch 64", 64, 2, 2), Workload("prefill", 1, 256, 0)], kept, 2)
            )
        for workloads, chosen, repeats in cases:
            again = {(active, workload.name) for workload in workloads}
            rows = [row for row in rows if (row["active"], row["workload"]) not in again]
            limits = ceilings(dense, own, workloads)
            for row in measure(chosen, workloads, repeats=repeats):
                limit = limits[row["workload"]]
                rows.append({"active": active, "share": active_share(dense, own), **row, **limit})
                rows[-1]["of_ceiling"] = row["speedup"] / limit["ceiling"]
                print({key: round(v, 3) if isinstance(v, float) else v for key, v in rows[-1].items()}, flush=True)
            # after every case: what has been measured stays if the next one is cut short
            save(
                {
                    "weights": counts,
                    "rows": rows,
                    "paths": {b: path(own.model.layers[0].mlp.experts, b, own.config.num_experts_per_tok) for b in BUCKETS},
                }
            )


def embedded() -> dict[str, Any]:
    result = convert("dense-tiny")
    print(result.table()[["statement", "measured", "control_value", "words"]].to_string())
    tables = {name: result.table(name).to_dict("records") for name in ("frontier", "speed")}
    return {"recommendation": result.claims[0].words, "minutes_to_convert": result.meta["minutes_to_convert"], **tables}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("kernel", "model", "embedded"), required=True)
    parser.add_argument("--active", type=int, nargs="+", default=[EXPERTS, 16, 6], help="of the model's 64 experts")
    parser.add_argument("--single", action="store_true", help="the model at batch 1 only")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32", help="of the model")
    arguments = parser.parse_args()
    results = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    # the model's part is about the CPU kernel
    device = "cuda" if arguments.part == "kernel" and torch.cuda.is_available() else "cpu"
    rate = reading_rate(device)
    print(f"reads {rate / 1e9:.1f} GB/s")
    part: dict[str, Any] = {"machine": describe("numba"), "gigabytes_per_second": rate / 1e9}
    if arguments.part == "kernel":
        part |= {"gpu": torch.cuda.get_device_name()} if device == "cuda" else {}
        results["kernel" if device == "cpu" else "kernel_gpu"] = part | {"rows": kernel(rate, device)}
    elif arguments.part == "model":
        key = f"model_{arguments.dtype}"
        before = results.get(key, {}).get("rows", [])
        model(arguments.dtype, arguments.active, arguments.single, before, lambda found: write(results | {key: part | found}))
        return
    else:
        results["embedded"] = part | embedded()
    write(results)


def write(results: dict[str, Any]) -> None:
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
