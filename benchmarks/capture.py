"""What reading activations costs: time over a bare forward pass, batching, and memory.

    python benchmarks/capture.py                   # all parts, about eight minutes on two cores
    python benchmarks/capture.py --part overhead   # one part; the others stay in the results file as they were
    python benchmarks/capture.py --part real       # on SmolLM2-135M, left out where its package is not there
    python benchmarks/capture.py --small           # about a minute, smaller model

Writes benchmarks/results/capture.json and capture_memory.png/.svg, and prints a table. Times are medians over repeats that
are interleaved (every contender once, then again), and each ratio is the median of the ratios within a repeat, so that a
machine that slows down for a while slows all of them. Peers that are not installed are reported as such.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch

from capture_contenders import SITE_KIND, Calls, contenders, random_gpt2, wrap
from machine import describe, interleaved
from moescope.capture import Encoded, batches, moments
from moescope.capture.activations import vector_reducer
from moescope.capture.encode import encode, pad
from moescope.capture.session import capture
from moescope.errors import InputError
from moescope.files.atomic import write_atomic
from moescope.models import load
from moescope.study.provenance import peak_bytes
from moescope.tasks import load_task

RESULTS = Path(__file__).parent / "results"
REAL = "smollm2"  # what `--part real` measures on: pretrained weights out of a package
MEMORY_SHAPE = (4, 256, 4)  # layers, width, heads: small, since 20,000 texts have to pass through it


# --- time over a bare body -----------------------------------------------------------------------------------------------


def overhead(small: bool, repeats: int) -> dict[str, Any]:
    shape = (4, 256, 4) if small else (12, 768, 12)
    ids = torch.randint(1, 50257, (8, 64 if small else 256), generator=torch.Generator().manual_seed(0))
    named = dict(zip(("layers", "width", "heads"), shape, strict=True))
    return {"shape": named} | compared(*contenders(random_gpt2(*shape), ids), repeats) | {"batch": list(ids.shape)}


def real(small: bool, repeats: int, cpu_time: bool) -> dict[str, Any]:
    """The same on pretrained weights and real text: eight rows of HaluEval answers, of 64 tokens each."""
    try:
        model = load(REAL, head=True)
    except InputError as error:  # says which package brings it
        return {"model": REAL, "skipped": str(error)}
    texts = [example.text for example in load_task("certainty=halueval").examples]
    encoded = encode(model, ["\n".join(texts[i : i + 8]) for i in range(0, 32 if small else 64, 8)])
    length = min(64, int(encoded.lengths.min()))
    ids = torch.from_numpy(np.stack([encoded[i][:length] for i in range(len(encoded))]).astype(np.int64))
    config = model.config
    named = {"layers": model.n_layers, "width": model.d_model, "heads": config.num_attention_heads}
    about = {"model": REAL, "dtype": str(model.dtype), "quantised copy": model.quantisation, "shape": named}
    about["clock"] = "CPU seconds of the process" if cpu_time else "wall clock"
    clock = time.process_time if cpu_time else time.perf_counter
    return about | compared(*contenders(model.module, ids, model), repeats, clock) | {"batch": list(ids.shape)}


def compared(
    calls: Calls, missing: dict[str, str], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, Any]:
    """Every contender in turn, ``repeats`` times, each beside the bare body of its own turn."""
    with torch.no_grad():
        for call in calls.values():
            call()  # warm up
        seconds = interleaved(calls, repeats, clock)
    bare = seconds["bare body"]
    table = {
        name: {
            "seconds": median(times),
            "over_bare": median(t / b for t, b in zip(times, bare, strict=True)),
            # the least disturbed run of each: steadier than the median on a machine that others use too
            "over_bare_best": min(times) / min(bare),
        }
        for name, times in seconds.items()
    }
    return {"repeats": repeats, "rows": table, "missing": missing}


# --- batching ------------------------------------------------------------------------------------------------------------


def batching(small: bool, repeats: int) -> dict[str, Any]:
    """Final-token activations of texts of mixed length, by three ways of batching with the same token budget."""
    model = wrap(random_gpt2(*((2, 128, 4) if small else (12, 768, 12))))
    rng = np.random.default_rng(1)
    count, longest = (128, 128) if small else (192, 256)
    lengths = np.clip(rng.lognormal(3.4, 0.8, count), 4, longest).astype(int)  # median 30 tokens, a long tail
    encoded = Encoded.from_ids([rng.integers(1, 50257, n) for n in lengths])
    budget = 2048
    fixed = [np.arange(i, min(i + budget // longest, count)) for i in range(0, count, budget // longest)]
    ways = {
        "padded to the longest text of all": (fixed, int(lengths.max())),
        "padded to the longest of the batch, in order": (fixed, None),
        "length buckets (moescope)": (batches(lengths, budget), None),
    }
    sites = model.sites(SITE_KIND)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    padded = {
        name: int(sum(len(rows) * (width or lengths[rows].max()) for rows in groups)) for name, (groups, width) in ways.items()
    }
    for _ in range(repeats):
        for name, (groups, width) in ways.items():
            start = time.perf_counter()
            with capture(model, sites) as session:
                for rows in groups:
                    batch = pad(encoded, rows)
                    if width is not None:
                        short = width - batch.ids.shape[1]
                        pads = [torch.nn.functional.pad(t, (0, short)) for t in (batch.ids, batch.mask, batch.special)]
                        batch = batch._replace(ids=pads[0], mask=pads[1], special=pads[2])
                    session.run(batch.ids, batch.mask, reduce=vector_reducer(batch, "final", None))
            seconds[name].append(time.perf_counter() - start)
    ours = seconds["length buckets (moescope)"]
    rows = {
        name: {
            "seconds": median(times),
            "padded_tokens": padded[name],
            "over_buckets": median(t / o for t, o in zip(times, ours, strict=True)),
        }
        for name, times in seconds.items()
    }
    return {"texts": count, "tokens": int(lengths.sum()), "batch_tokens": budget, "rows": rows}


# --- memory --------------------------------------------------------------------------------------------------------------


def memory_child(count: int) -> None:
    """Run in a process of its own: all-token moments over ``count`` texts; prints its peak memory in bytes."""
    model = wrap(random_gpt2(*MEMORY_SHAPE, vocabulary=4096))
    rng = np.random.default_rng(2)
    lengths = rng.integers(8, 49, count)
    lengths[0] = 48  # the same largest batch at every count
    encoded = Encoded.from_ids([rng.integers(1, 4096, n) for n in lengths])
    labels, folds = rng.integers(0, 2, count), rng.integers(0, 5, count)
    moments(model, encoded, model.sites(SITE_KIND), labels, folds, position="all", batch_tokens=4096)
    print(json.dumps({"texts": count, "tokens": int(lengths.sum()), "peak": peak_bytes()}))


def memory(small: bool, threads: int) -> dict[str, Any]:
    counts = [250, 500, 1000] if small else [1000, 5000, 10000, 20000]
    rows = []
    for count in counts:
        command = [sys.executable, __file__, "--memory-child", str(count), "--threads", str(threads)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        rows.append(json.loads(output.strip().splitlines()[-1]))
    layers, width, _ = MEMORY_SHAPE
    for row in rows:
        row["kept_would_take"] = row["tokens"] * layers * width * 4
    return {
        "layers": layers,
        "width": width,
        "rows": rows,
        "growth": rows[-1]["peak"] / rows[0]["peak"] - 1,
    }


def plot_memory(result: dict[str, Any], stem: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    texts = [row["texts"] for row in result["rows"]]
    figure, axes = plt.subplots(figsize=(5.0, 3.2), layout="constrained")
    axes.plot(texts, [row["peak"] / 2**20 for row in result["rows"]], "o-", label="moments of every token (measured peak)")
    axes.plot(
        texts,
        [(result["rows"][0]["peak"] + row["kept_would_take"]) / 2**20 for row in result["rows"]],
        "--",
        color="grey",
        label="keeping the activations (computed)",
    )
    axes.set(xlabel="texts", ylabel="peak memory (MiB)", ylim=(0, None))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    for suffix in ("png", "svg"):
        figure.savefig(RESULTS / f"{stem}_memory.{suffix}", dpi=150)
    plt.close(figure)


# --- all of it -----------------------------------------------------------------------------------------------------------


def show(result: dict[str, Any]) -> None:
    for part in ("overhead", "real"):
        if not (over := result.get(part)):
            continue
        if "skipped" in over:
            print(f"\n{over['model']} is left out: {over['skipped']}")
            continue
        print(f"\nTime over a bare body, {over.get('model', 'random GPT-2')}, {over['shape']}, batch {over['batch']}")
        for name, row in over["rows"].items():
            print(f"  {name:62s} {row['seconds']:8.3f} s   {row['over_bare']:5.3f}   (best runs {row['over_bare_best']:5.3f})")
        for name, reason in over["missing"].items():
            print(f"  {name:62s} {reason}")
    if batching := result.get("batching"):
        print(f"\nBatching, {batching['texts']} texts, {batching['tokens']} tokens")
        for name, row in batching["rows"].items():
            print(f"  {name:62s} {row['seconds']:8.3f} s   {row['over_buckets']:5.2f}   {row['padded_tokens']} padded tokens")
    if memory := result.get("memory"):
        print("\nPeak memory of every-token moments")
        for row in memory["rows"]:
            print(f"  {row['texts']:6d} texts {row['tokens']:9d} tokens {row['peak'] / 2**20:8.0f} MiB")
        print(f"  growth {memory['growth']:+.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description="What reading activations costs.")
    parser.add_argument("--part", choices=["overhead", "real", "batching", "memory"], default=None, help="one part only")
    parser.add_argument("--small", action="store_true", help="smaller model, fewer texts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=None, help="interleaved repeats (9; 5 if small)")
    parser.add_argument(
        "--cpu-time", action="store_true", help="of the real part, with --threads 1: where others use the machine"
    )
    parser.add_argument("--memory-child", type=int, default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_child is not None:
        memory_child(arguments.memory_child)
        return
    repeats = arguments.repeats or (5 if arguments.small else 9)
    parts = {
        "overhead": lambda: overhead(arguments.small, repeats),
        "real": lambda: real(arguments.small, repeats, arguments.cpu_time),
        "batching": lambda: batching(arguments.small, max(1, repeats // 3)),
        "memory": lambda: memory(arguments.small, arguments.threads),
    }
    # a trial run is kept apart: its numbers are of another model
    file = RESULTS / ("capture_small.json" if arguments.small else "capture.json")
    result = json.loads(file.read_text()) if file.exists() else {}
    for name, measure in parts.items():
        if arguments.part in (None, name):
            machine = describe("nnsight", "transformer-lens")  # first: the load is to be that of others
            result[name] = measure() | {"machine": machine}
    RESULTS.mkdir(parents=True, exist_ok=True)
    if "memory" in result:
        plot_memory(result["memory"], file.stem)
    write_atomic(file, [(json.dumps(result, indent=1) + "\n").encode()])
    show(result)


if __name__ == "__main__":
    main()
