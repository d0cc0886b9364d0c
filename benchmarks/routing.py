"""What tracing a model's routing costs: time over plain generation, bytes, and reading in what an engine recorded.

    python benchmarks/routing.py            # about ten minutes
    python benchmarks/routing.py --small    # two minutes

Writes benchmarks/results/routing.json. The model has OLMoE's architecture and random weights; its shape is in the result.
Plain generation and traced generation of the same prompts take turns, and each ratio is that of one such turn. "Whole trace"
adds to the recorder what is done once a trace: telling the layers' gating from 16 tokens, and putting the arrays together.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import transformers
from scipy import stats

from machine import describe, interleaved
from moescope.capture.encode import Encoded
from moescope.files.atomic import write_atomic
from moescope.models import from_model
from moescope.models.past import past_argument
from moescope.routing import RoutingTrace, TracedSequence, recording
from moescope.routing.capture import trace_prompts
from moescope.routing.engines import EngineModel, import_vllm
from moescope.routing.store import load_trace, save_trace

RESULT = Path(__file__).parent / "results" / "routing.json"
SHAPE = {"hidden_size": 768, "num_hidden_layers": 12, "num_experts": 16, "num_experts_per_tok": 4, "intermediate_size": 384}
SMALL = SHAPE | {"num_hidden_layers": 4}


def random_olmoe(shape: dict[str, int]) -> Any:
    torch.manual_seed(0)
    config = transformers.OlmoeConfig(
        **shape, num_attention_heads=12, vocab_size=16384, pad_token_id=0, bos_token_id=1, eos_token_id=None
    )
    return transformers.OlmoeForCausalLM(config)


def overhead(shape: dict[str, int], prompts: int, batch: int, prompt: int, new: int, repeats: int) -> dict[str, Any]:
    """Seconds of plain generation, of generation inside the recorder alone, and of a whole trace."""
    module = random_olmoe(shape)
    model = from_model(module, None, name="random OLMoE")
    rng = np.random.default_rng(0)
    ids = rng.integers(2, 16384, (prompts, prompt))
    encoded = Encoded.from_ids(ids)
    names = [TracedSequence(str(n)) for n in range(prompts)]
    parts = torch.from_numpy(ids).split(batch)

    def plain() -> Any:
        with torch.no_grad():
            options = {"max_new_tokens": new, "do_sample": False, "use_cache": True}
            return torch.cat([module.generate(part, attention_mask=torch.ones_like(part), **options) for part in parts])

    def recorded() -> Any:
        with recording(model, weights=torch.float16):
            return plain()

    def traced() -> RoutingTrace:
        return trace_prompts(model, names, encoded=encoded, max_new_tokens=new, batch_tokens=batch * (prompt + new))

    ways: dict[str, Callable[[], Any]] = {"plain generate": plain, "recorder alone": recorded, "whole trace": traced}
    assert np.array_equal(traced().tokens.reshape(prompts, -1), plain()[:, :-1].numpy())
    seconds = interleaved(ways, repeats)
    bare = seconds["plain generate"]
    rows = {
        name: {
            "seconds": median(times),
            "over_plain": median(t / b for t, b in zip(times, bare, strict=True)),
            "over_plain_interval": median_interval([t / b for t, b in zip(times, bare, strict=True)]),
            "over_plain_best": min(times) / min(bare),
            "over_plain_all": sorted(t / b for t, b in zip(times, bare, strict=True)),
        }
        for name, times in seconds.items()
    }
    parameters = sum(p.numel() for p in module.parameters())
    return {
        "shape": shape,
        "parameters": parameters,
        "prompts": prompts,
        "batch": batch,
        "prompt_tokens": prompt,
        "new_tokens": new,
        "repeats": repeats,
        "seconds": seconds,
        "seconds_per_step": rows["plain generate"]["seconds"] / (new * len(parts)),
        "rows": rows,
    }


def adjacent_steps(shape: dict[str, int], batch: int, pairs: int) -> dict[str, Any]:
    """One decoding step inside the recorder over one without it, side by side in one generation, so that what slows the
    machine for seconds slows both. Each is the second of two steps: the first shows the recorder the arrays' shape."""
    model = from_model(random_olmoe(shape), None, name="random OLMoE")
    token = torch.from_numpy(np.random.default_rng(0).integers(2, 16384, (batch, 1)))
    past = past_argument(model.module, transformers.DynamicCache())
    seconds: dict[bool, list[float]] = {True: [], False: []}
    with torch.no_grad():
        for pair in range(pairs):
            for recorded in (False, True) if pair % 2 else (True, False):
                with recording(model, weights=torch.float16) if recorded else nullcontext():
                    for last in (False, True):
                        start = time.perf_counter()
                        model.module(input_ids=token, use_cache=True, **past)
                        if last:
                            seconds[recorded].append(time.perf_counter() - start)
    ratios = [a / b for a, b in zip(seconds[True], seconds[False], strict=True)]
    return {
        "pairs": pairs,
        "seconds": median(seconds[False]),
        "over_plain": median(ratios),
        "over_plain_interval": median_interval(ratios),
    }


def once_a_trace(shape: dict[str, int], batch: int, prompt: int, new: int, repeats: int) -> dict[str, Any]:
    """Seconds that a whole trace takes beyond its recorded generation, on a model of the same layers and hardly any width."""
    narrow = overhead(shape | {"hidden_size": 96, "intermediate_size": 32}, batch, batch, prompt, new, repeats)
    more = [a - b for a, b in zip(narrow["seconds"]["whole trace"], narrow["seconds"]["recorder alone"], strict=True)]
    return {"seconds": median(more), "seconds_interval": median_interval(more)}


def median_interval(values: list[float]) -> list[float]:
    """95 % interval of the median, by the order of the values alone."""
    low = int(stats.binom.ppf(0.025, len(values), 0.5))
    return [sorted(values)[max(low - 1, 0)], sorted(values)[min(len(values) - low, len(values) - 1)]]


def sizes(tokens: int, layers: int, k: int, experts: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Bytes per token, layer and slot on disk; and seconds to import, save, load and count."""
    rng = np.random.default_rng(0)
    length = 1000
    ids = rng.random((length, layers, experts)).argsort(-1)[..., :k].astype(np.int16)
    with tempfile.TemporaryDirectory() as folder:
        dump = Path(folder) / "dump"
        dump.mkdir()
        for number in range(tokens // length):
            np.save(dump / f"{number:05d}.npy", np.roll(ids, number, 0))
        seconds: dict[str, float] = {}

        def timed(name: str, call: Callable[[], Any]) -> Any:
            start = time.perf_counter()
            value = call()
            seconds[name] = time.perf_counter() - start
            return value

        trace = timed("import from vLLM's .npy files", lambda: import_vllm(dump, EngineModel(experts)))
        timed("save", lambda: save_trace(trace, Path(folder) / "ids"))
        again = timed("load, checksums and ids checked", lambda: load_trace(Path(folder) / "ids"))
        timed("counts per sequence, layer and expert", trace.counts)
        assert np.array_equal(again.ids, trace.ids)
        stored = sum(file.stat().st_size for file in (Path(folder) / "ids").iterdir())
    slots = len(trace) * layers * k
    facts = {"tokens": len(trace), "sequences": len(trace.sequences), "layers": layers, "k": k, "experts": experts}
    size = {
        **facts,
        "ids_bytes_per_slot": trace.ids.nbytes / slots,
        "stored_bytes_per_slot": stored / slots,
        "stored_mib": stored / 2**20,
    }
    return size, {**facts, "seconds": seconds, "tokens_per_second": {k: len(trace) / v for k, v in seconds.items()}}


def show(result: dict[str, Any]) -> None:
    cost = result["overhead"]
    print(f"{cost['parameters'] / 1e6:.0f} M parameters, {cost['seconds_per_step'] * 1e3:.1f} ms a step, batch {cost['batch']}")
    for name, row in cost["rows"].items():
        low, high = row["over_plain_interval"]
        print(f"  {name:16} {row['seconds']:7.3f} s  {row['over_plain']:6.3f}  (95 % {low:.3f} to {high:.3f})")
    step, once = result["adjacent_steps"], result["once_a_trace"]
    low, high = step["over_plain_interval"]
    print(f"  one step in the recorder over the one beside it: {step['over_plain']:.4f} (95 % {low:.4f} to {high:.4f})")
    low, high = once["seconds_interval"]
    print(f"  once a trace: {once['seconds'] * 1e3:.1f} ms (95 % {low * 1e3:.1f} to {high * 1e3:.1f})")
    for size in result["sizes"]:
        print(f"  {size['experts']} experts: {size['stored_bytes_per_slot']:.3f} bytes stored per token, layer and slot")
    for name, seconds in result["import"]["seconds"].items():
        print(f"  {name:40} {seconds:6.2f} s for {result['import']['tokens']} tokens")


def main() -> None:
    parser = argparse.ArgumentParser(description="What tracing a model's routing costs.")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=None, help="turns (31; 5 if small)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    small = arguments.small
    repeats = arguments.repeats or (5 if small else 31)
    # OLMoE's own layers, experts and k; and DeepSeek-V3's 256 experts, which need two bytes
    million, speed = sizes(100_000 if small else 1_000_000, 16, 8, 64)
    wide, _ = sizes(20_000, 8, 8, 256)
    result = {
        "machine": describe(),
        "small": small,
        "overhead": overhead(SMALL if small else SHAPE, 8, 8, 32, 8 if small else 32, repeats),
        "adjacent_steps": adjacent_steps(SMALL if small else SHAPE, 8, 20 if small else 200),
        "once_a_trace": once_a_trace(SMALL if small else SHAPE, 8, 32, 8 if small else 32, repeats),
        "sizes": [million, wide],
        "import": speed,
    }
    show(result)
    if not small:
        write_atomic(RESULT, [(json.dumps(result, indent=1) + "\n").encode()])


if __name__ == "__main__":
    main()
