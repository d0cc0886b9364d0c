"""How time and memory of reading grow: two decades each of texts, layers, width and experts, on random models.

    python benchmarks/scaling.py                  # under five processor minutes

Writes benchmarks/results/scaling.json and docs/plan/scaling.png. Each point is a process of its own that reads the residual
stream after every layer (of experts: the routing) of texts of 32 tokens. Seconds are those of the processor, so that other work
on the machine does not count; memory is what the process grew by. The exponent is the slope between the logarithms in the upper
decade, where what is the same for all sizes weighs less.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import psutil
import torch
from transformers import LlamaConfig, LlamaModel, OlmoeConfig, OlmoeModel

from machine import describe
from moescope.capture import Encoded
from moescope.models import from_model
from moescope.routing import TracedSequence, trace_prompts
from moescope.runtime.exit.features import read_features
from moescope.study.provenance import peak_bytes

RESULT = Path(__file__).parent / "results" / "scaling.json"
FIGURE = Path(__file__).parents[1] / "docs" / "plan" / "scaling.png"
TOKENS, VOCABULARY = 32, 256
START = {"texts": 100, "layers": 4, "width": 64, "experts": 8}
AXES = {
    "texts": (30, 100, 300, 1000, 3000),
    "layers": (1, 3, 10, 30, 100),
    "width": (16, 48, 160, 480, 1600),
    "experts": (2, 8, 20, 64, 200),
}


def work(texts: int, layers: int, width: int, experts: int, sparse: bool) -> tuple[Callable[[], Any], int]:
    """What reads, and the parameters of the model that is read."""
    torch.manual_seed(0)
    common = {"vocab_size": VOCABULARY, "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 4}
    common |= {"num_key_value_heads": 4, "max_position_embeddings": TOKENS}
    if sparse:
        module = OlmoeModel(OlmoeConfig(intermediate_size=width, num_experts=experts, num_experts_per_tok=2, **common))
    else:
        module = LlamaModel(LlamaConfig(intermediate_size=4 * width, **common))
    model = from_model(module, None)
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (texts, TOKENS))
    encoded = Encoded.from_ids(list(ids))
    size = sum(p.numel() for p in module.parameters())
    if sparse:
        names = [TracedSequence(str(i), None, None) for i in range(texts)]
        return lambda: trace_prompts(model, names, encoded=encoded), size
    return lambda: read_features(model, encoded, max_tokens=None, batch_tokens=8192, progress=None), size


def measure(sizes: dict[str, int], sparse: bool, answer: Any) -> None:
    torch.set_num_threads(1)
    before = psutil.Process().memory_info().rss
    run, size = work(**sizes, sparse=sparse)
    start = time.process_time()
    run()
    seconds = time.process_time() - start
    peak = peak_bytes()
    answer.put({"seconds": seconds, "grew_mib": (peak - before) / 2**20, "parameters": size})


def exponent(sizes: list[int], values: list[float]) -> float:
    """Slope between the logarithms, over the upper decade."""
    upper = [i for i, size in enumerate(sizes) if size >= sizes[-1] / 10]
    return float(np.polyfit(np.log([sizes[i] for i in upper]), np.log([max(1e-9, values[i]) for i in upper]), 1)[0])


def draw(axes: dict[str, dict[str, Any]], place: Path) -> None:
    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(axes), figsize=(11, 2.9), layout="constrained")
    for panel, (name, found) in zip(panels, axes.items(), strict=True):
        sizes = found["sizes"]
        for key, label, colour in (("seconds", "processor seconds", "#1f5a94"), ("grew_mib", "MiB", "#b4541a")):
            values = [point[key] for point in found["points"]]
            panel.loglog(sizes, values, "o-", color=colour, label=f"{label}, exponent {found['exponents'][key]:.2f}")
        panel.set_xlabel(name)
        panel.legend(fontsize=6.5, frameon=False)
    place.parent.mkdir(exist_ok=True)
    figure.savefig(place, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--figure", type=Path, default=FIGURE)
    arguments = parser.parse_args()
    processes = multiprocessing.get_context("fork")
    axes: dict[str, dict[str, Any]] = {}
    for axis, sizes in AXES.items():
        points = []
        for size in sizes:
            answer = processes.Queue()
            process = processes.Process(target=measure, args=({**START, axis: size}, axis == "experts", answer))
            process.start()
            points.append(answer.get(timeout=300))
            process.join()
        keys = ("seconds", "grew_mib")
        slopes = {key: exponent(list(sizes), [point[key] for point in points]) for key in keys}
        axes[axis] = {"sizes": list(sizes), "points": points, "exponents": slopes}
        print(axis, axes[axis], flush=True)
    arguments.out.write_text(
        json.dumps({"machine": describe(), "start": START, "axes": axes}, indent=1) + "\n", encoding="utf-8"
    )
    draw(axes, arguments.figure)


if __name__ == "__main__":
    main()
