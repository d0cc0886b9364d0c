"""MLPs whose neurons a copy of four bits chooses, against plain eight and four bits, torch's int8 and bfloat16, on the clock.

    python benchmarks/planes.py --part layer     # one MLP, 2048 × 5632, cold caches: a minute, 2 GB
    python benchmarks/planes.py --part model     # a Llama of 1.1 B random weights, end to end: three minutes, 12 GB
    python benchmarks/planes.py                  # both
    python benchmarks/planes.py --part table     # what the results say, into benchmarks/README.md

Writes its part of benchmarks/results/planes.json. Contenders take turns with the floor, a loop that reads and does nothing
else on the same threads; a share of the floor is the median over turns of bytes over time over that turn's rate. Every
contender goes through so many copies of its layer that none is in a cache. torch's int8 is the faster of its two: dynamic
quantisation, with one scale a matrix and none for groups, and weights alone (``_weight_int8pack_mm``).
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import replace as altered
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from machine import describe
from moescope.kernels import planes
from moescope.kernels import vectors as v
from moescope.kernels.openmp import Task, array_at, compiled, fork, mark_of, take
from moescope.models.rounding import nested
from moescope.models.sparse import SparseMLP, sparse_mlps
from moescope.runtime.planes import DenseMlp, Linear, Loops
from moescope.study.clock import in_turns

RESULT = Path(__file__).parent / "results" / "planes.json"
README = Path(__file__).parent / "README.md"
MARKS = "<!-- planes.py writes this -->", "<!-- until here -->"
D, NEURONS, LAYERS, HEADS, KV, VOCABULARY = 2048, 5632, 22, 32, 4, 32000
SHARES = (0.25, 0.35, 0.5, 0.75, 1.0)
COPIES = 5  # of a layer: at least 5 × 19 MB
_SHOWN = (1, 4)  # tokens at once of the layer's table; the others are in the result
_MARK = mark_of(__file__)


# --- the floor --------------------------------------------------------------------------------------------------------------


def read_all(at: Any) -> None:
    numbers = array_at(at[0], (2,), np.int64)
    size = numbers[1]
    memory, out = array_at(at[1], (size,), np.uint8), array_at(at[2], (64 * 16,), np.float32)
    chunk = 1 << 18
    while True:
        c = take(numbers)
        if c * chunk >= size:
            return
        a = b = v.no_wholes()
        for i in range(c * chunk, min(size, (c + 1) * chunk) - 255, 256):
            a = v.dot((0, 0, 0), (0,), a, v.load_bytes(memory, i), v.load_bytes(memory, i + 64))
            b = v.dot((0, 0, 0), (0,), b, v.load_bytes(memory, i + 128), v.load_bytes(memory, i + 192))
        v.store_floats(out, c % 64 * 16, v.as_floats(v.sum_of_wholes(a, b)))


class Floor:
    """Bytes per second that all threads read together."""

    def __init__(self, size: int = 40 << 20) -> None:
        self._function = compiled(read_all, _MARK) if v.way() == "vnni" else None
        self._out = torch.empty(1024)
        self._memory = [torch.randint(0, 255, (size,), dtype=torch.uint8) for _ in range(3)]
        self._tasks = [Task((size,), (memory, self._out)) for memory in self._memory]
        self.size = size

    def __call__(self, turn: int) -> None:
        if self._function is None:
            self._memory[turn % 3].view(torch.int64).sum()
        else:
            fork(self._function, self._tasks[turn % 3], torch.get_num_threads())


# --- one layer --------------------------------------------------------------------------------------------------------------


def copied(memory: Tensor | None) -> Tensor:
    assert memory is not None
    return planes._aligned(memory[: len(memory) - planes.LINE])


def copies_of(rows: planes.Rows, count: int) -> list[planes.Rows]:
    first = rows.first
    return [altered(rows, first=None if first is None else copied(first), second=copied(rows.second)) for _ in range(count)]


def copies_of_planes(packed: planes.Planes, count: int) -> list[planes.Planes]:
    return [altered(packed, high=copied(packed.high), low=copied(packed.low)) for _ in range(count)]


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape) + shape[0])) / shape[-1] ** 0.5


def quantised(*matrices: Tensor) -> list[nn.Module]:
    """torch's dynamic quantisation of bias-free matrices."""
    made = []
    for matrix in matrices:
        module = nn.Sequential(nn.Linear(matrix.shape[1], matrix.shape[0], bias=False))
        module[0].weight.data = matrix
        made.append(torch.ao.quantization.quantize_dynamic(module, {nn.Linear}, dtype=torch.qint8))  # type: ignore[attr-defined]
    return made


def layer(turns: int) -> list[dict[str, Any]]:
    gate, up, down = drawn(NEURONS, D), drawn(NEURONS, D) + 0, drawn(D, NEURONS)
    sparse = copies_of_planes(planes.pack(nested(gate), nested(up), nested(down.T)), COPIES)
    eight, four = (copies_of(planes.pack_gated(*(nested(w, bits) for w in (gate, up, down))), COPIES) for bits in (8, 4))
    half = [[w.bfloat16() for w in (gate, up, down)] for _ in range(2)]
    dynamic = [quantised(gate, up, down) for _ in range(COPIES)]
    scales = [torch.rand(len(w)).bfloat16() for w in (gate, up, down)]
    packed = [[w.mul(1000).clamp(-127, 127).to(torch.int8) for w in (gate, up, down)] for _ in range(COPIES)]
    floor, rows = Floor(), []
    for tokens in (1, 2, 4, 8):
        x = torch.randn(tokens, D, generator=torch.Generator().manual_seed(tokens))
        wide = x.bfloat16()

        def bfloat16(i: int, wide: Tensor = wide) -> None:
            g, u, d = half[i % len(half)]
            F.linear(F.silu(F.linear(wide, g)) * F.linear(wide, u), d)

        def torch_dynamic(i: int, x: Tensor = x) -> None:
            g, u, d = dynamic[i % COPIES]
            d(F.silu(g(x)) * u(x))

        def torch_weights(i: int, wide: Tensor = wide) -> None:
            g, u, d = (
                lambda y, w=w, s=s: torch._weight_int8pack_mm(y, w, s) for w, s in zip(packed[i % COPIES], scales, strict=True)
            )
            d(F.silu(g(wide)) * u(wide))

        calls: dict[str, tuple[Callable[[int], Any], int]] = {
            "floor": (floor, floor.size),
            "bfloat16": (bfloat16, 6 * D * NEURONS),
            "torch int8, dynamic": (torch_dynamic, 3 * D * NEURONS),
            "torch int8, weights": (torch_weights, 3 * D * NEURONS),
        }
        for each in (2, 1):
            for name, made in (("8 bits", eight), ("4 bits", four)):
                calls[f"{name}, {each}"] = (
                    lambda i, made=made, each=each, x=x: planes.dense_mlp(x, made[i % COPIES], "silu", bytes_each=each),
                    made[0].bytes_read(),
                )
            for share in SHARES:
                count = round(share * NEURONS)
                calls[f"chosen {share:.0%}, {each}"] = (
                    lambda i, count=count, each=each, x=x: planes.sparse_mlp(
                        x, sparse[i % COPIES], count, "silu", bytes_each=each
                    ),
                    sparse[0].bytes_read(count),
                )
        times = alternating({name: call for name, (call, _) in calls.items()}, turns)
        rates = [floor.size / t for t in times["floor"]]
        for name, spent in times.items():
            size = calls[name][1]
            rows.append(
                {
                    "tokens": tokens,
                    "contender": name,
                    "milliseconds": 1e3 * median(spent),
                    "gigabytes_per_second": median(size / t for t in spent) / 1e9,
                    # of several tokens' chosen neurons nobody has counted the union
                    "share_of_byte_floor": median(size / t / r for t, r in zip(spent, rates, strict=True))
                    if tokens == 1 or "chosen" not in name or "100%" in name
                    else None,
                    "over_bfloat16": median(a / b for a, b in zip(times["bfloat16"], spent, strict=True)),
                    "over_8_bits": median(a / b for a, b in zip(times["8 bits, 2"], spent, strict=True)),
                    "of_bfloat16_bytes": size / (6 * D * NEURONS),
                }
            )
            print({k: round(n, 3) if isinstance(n, float) else n for k, n in rows[-1].items()}, flush=True)
    return rows


def alternating(calls: dict[str, Callable[[int], Any]], turns: int) -> dict[str, Any]:
    """Seconds of each; a call is given a number that grows, by which it takes another copy of its layer."""
    number = itertools.count()

    def timed(call: Callable[[int], Any]) -> float:
        began = time.perf_counter()
        call(next(number))
        return time.perf_counter() - began

    with torch.no_grad():
        return in_turns({name: partial(timed, call) for name, call in calls.items()}, turns, warm=2)


# --- a model ----------------------------------------------------------------------------------------------------------------


def empty_model(dtype: torch.dtype) -> Any:
    config = transformers.LlamaConfig(
        hidden_size=D, intermediate_size=NEURONS, num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=KV,
        vocab_size=VOCABULARY, max_position_embeddings=2048,
    )  # fmt: skip
    with torch.device("meta"):
        made: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    made.model.rotary_emb = type(made.model.rotary_emb)(config=config)
    return made.eval().requires_grad_(False)


def filled(
    made: Any, linear: Callable[[str, int, int], nn.Module], mlp: Callable[[], nn.Module] | None, dtype: torch.dtype
) -> Any:
    """With modules of these kinds; what is no matrix is drawn."""
    made.model.embed_tokens.weight = nn.Parameter(drawn(VOCABULARY, D).to(dtype), requires_grad=False)
    for owner in list(made.modules()):
        for name, module in list(owner.named_children()):
            if mlp is not None and name == "mlp":
                setattr(owner, name, mlp())
            elif type(module) is nn.Linear and not (mlp is not None and name in ("gate_proj", "up_proj", "down_proj")):
                setattr(owner, name, linear(name, module.out_features, module.in_features))
            elif "norm" in name:
                module.weight = nn.Parameter(torch.ones(D, dtype=dtype), requires_grad=False)
    return made


def models(kinds: list[str]) -> dict[str, tuple[Any, int]]:
    """Each with the bytes that a token reads of it. Weights are drawn once for each shape and copied."""
    weights: dict[tuple[int, int], Tensor] = {}

    def matrix(out: int, inputs: int) -> Tensor:
        return weights.setdefault((out, inputs), drawn(out, inputs))

    rows: dict[tuple[int, int], planes.Rows] = {}

    def in_eight(name: str, out: int, inputs: int) -> nn.Module:
        if (out, inputs) not in rows:
            rows[out, inputs] = planes.pack_rows(nested(matrix(out, inputs)))
        return Linear(copies_of(rows[out, inputs], 1)[0])

    def plain(name: str, out: int, inputs: int) -> nn.Module:
        module = nn.Linear(inputs, out, bias=False, device="meta")
        module.weight = nn.Parameter(matrix(out, inputs).bfloat16(), requires_grad=False)
        return module

    def dynamic(name: str, out: int, inputs: int) -> nn.Module:
        return quantised(matrix(out, inputs))[0]

    body = LAYERS * D * (2 * D + 2 * D * KV // HEADS) + VOCABULARY * D
    mlp = LAYERS * 3 * D * NEURONS
    gate, up, down = matrix(NEURONS, D), matrix(NEURONS, D), matrix(D, NEURONS)
    made: dict[str, tuple[Any, int]] = {}
    if "bfloat16" in kinds:
        made["bfloat16"] = filled(empty_model(torch.bfloat16), plain, None, torch.bfloat16), 2 * (body + mlp)
    if "torch int8" in kinds:
        made["torch int8"] = filled(empty_model(torch.float32), dynamic, None, torch.float32), body + mlp
    eight = planes.pack_gated(nested(gate), nested(up), nested(down))
    own_body = body * 17 // 16
    if "8 bits" in kinds:
        model = filled(empty_model(torch.float32), in_eight, lambda: DenseMlp(copies_of(eight, 1)[0], "silu"), torch.float32)
        made["8 bits"] = model, own_body + LAYERS * eight.bytes_read()
    packed = planes.pack(nested(gate), nested(up), nested(down.T))
    # One model for all shares, on the attention and head of the other.
    share = made["8 bits"][0] if "8 bits" in made else None
    if share is not None:
        sparse = empty_model(torch.float32)
        sparse.model.embed_tokens, sparse.model.norm, sparse.lm_head = share.model.embed_tokens, share.model.norm, share.lm_head
        for mine, other in zip(sparse.model.layers, share.model.layers, strict=True):
            mine.self_attn, mine.input_layernorm = other.self_attn, other.input_layernorm
            mine.post_attention_layernorm = other.post_attention_layernorm
            with torch.device("meta"):  # the codes are laid out already
                mine.mlp = SparseMLP(D, NEURONS, NEURONS // 2, 8, 4, nn.SiLU())
            mine.mlp.execute = Loops(copies_of_planes(packed, 1)[0], "silu", switch=True)
        for fraction in SHARES:
            size = own_body + LAYERS * packed.bytes_read(round(fraction * NEURONS))
            made[f"chosen {fraction:.0%}"] = sparse, size
    return made


def set_share(name: str, model: Any) -> None:
    if name.startswith("chosen"):
        for module in sparse_mlps(model):
            module.neurons = round(int(name.split()[1].rstrip("%")) / 100 * NEURONS)


@torch.no_grad()
def model(turns: int, steps: int) -> list[dict[str, Any]]:
    made = models(["bfloat16", "torch int8", "8 bits"])
    floor, rows = Floor(), []
    for batch in (1, 2, 4, 8):
        names = [n for n in made if batch == 1 or n in ("bfloat16", "torch int8", "8 bits", "chosen 50%", "chosen 25%")]
        seconds: dict[str, list[float]] = {name: [] for name in names}
        rates: list[float] = []
        caches: dict[str, Any] = {}
        ids = torch.randint(0, VOCABULARY, (batch, 8), generator=torch.Generator().manual_seed(batch))
        for turn in range(-1, turns):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                decoder = made[name][0]
                set_share(name, decoder)
                cache = decoder(ids, use_cache=True).past_key_values if turn < 0 else caches[name]
                caches[name] = cache
                for _ in range(steps if turn >= 0 else 1):
                    began = time.perf_counter()
                    decoder(ids[:, :1], past_key_values=cache, use_cache=True)
                    if turn >= 0:
                        seconds[name].append(time.perf_counter() - began)
                began = time.perf_counter()
                floor(turn)
                rates.append(floor.size / (time.perf_counter() - began))
        rate = median(rates)
        for name in names:
            spent, size = seconds[name], made[name][1]
            set_share(name, made[name][0])
            chosen: Any = sparse_mlps(made[name][0])
            rows.append(
                {
                    "batch": batch,
                    "contender": name,
                    "tokens_per_second": batch / median(spent),
                    "gigabytes_read": size / 1e9,
                    "over_bfloat16": median(a / b for a, b in zip(seconds["bfloat16"], spent, strict=True)),
                    "over_8_bits": median(a / b for a, b in zip(seconds["8 bits"], spent, strict=True)),
                    "ceiling_over_8_bits": made["8 bits"][1] / size if batch == 1 else None,
                    "share_of_byte_floor": size / median(spent) / rate if batch == 1 else None,
                    "neurons": chosen[0].execute.count(batch, chosen[0].neurons) if chosen else None,
                }
            )
            print({k: round(n, 3) if isinstance(n, float) else n for k, n in rows[-1].items()}, flush=True)
    return rows


def table(results: dict[str, Any]) -> str:
    lines = []
    for part, title, unit in (("layer", "One layer", "milliseconds"), ("model", "A model", "tokens_per_second")):
        if part not in results:
            continue
        machine, rows = results[part]["machine"], results[part]["rows"]
        batch = "tokens" if part == "layer" else "batch"
        lines += [
            f"**{title}**: {machine['processor']}, {machine['threads']} of {machine['cores']} cores, {machine['date']}, "
            f"load average before {machine['load_average'][0]}.",
            "",
            f"| {batch} | contender | {unit.replace('_', ' ')} | over bfloat16 | over our 8 bits | share of byte floor |",
            "|---|---|---|---|---|---|",
        ]
        for row in rows:
            if part == "layer" and row["tokens"] not in _SHOWN:
                continue
            share = "–" if row["share_of_byte_floor"] is None else f"{row['share_of_byte_floor']:.0%}"
            over = f"{row['over_bfloat16']:.2f} | {row['over_8_bits']:.2f}"
            lines.append(f"| {row[batch]} | {row['contender']} | {row[unit]:.2f} | {over} | {share} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("layer", "model", "both", "table"), default="both")
    parser.add_argument("--turns", type=int, default=30, help="of the layer's contenders; the model has a tenth")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    results = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    if arguments.part == "table":
        before, rest = README.read_text().split(MARKS[0])
        README.write_text(f"{before}{MARKS[0]}\n\n{table(results)}\n{MARKS[1]}{rest.split(MARKS[1], 1)[1]}")
        return
    for part in ("layer", "model") if arguments.part == "both" else (arguments.part,):
        machine = describe("numba")
        rows = layer(arguments.turns) if part == "layer" else model(max(1, arguments.turns // 10), 4)
        results[part] = {"machine": machine, "way": v.way(), "rows": rows}
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
