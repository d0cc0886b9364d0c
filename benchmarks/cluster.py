"""Weak scaling of a study that mostly reads: one process of one thread, then two with twice the texts, by torchrun and by Ray.

    python benchmarks/cluster.py               # smollm2, about five minutes on two quiet cores
    python benchmarks/cluster.py --rows 40     # fewer texts for each process
    python benchmarks/cluster.py --model dense-tiny --rows 200

Writes benchmarks/results/cluster.json and the table of docs/cluster.md (with --out only that file), and prints the table. Two
figures for each way: forward tokens a second of one reading of the texts alone (every layer's residual stream), with the model
in place; and of a whole `circuits` study, loading, ranking and nulls included. The ratio is of their speed to that of
one process: 2 is perfect. "two apart" are two such processes at once that know nothing of each other: what the machine itself
gives, whose cores may share a cache, memory and a frequency. All ways run one after the other in one call.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

import moescope
from machine import describe
from moescope.capture import activations, encode
from moescope.cluster import engine_of, ranks
from moescope.files.atomic import write_atomic
from moescope.models import load
from moescope.models.spread import Spread

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "cluster.md"
WAYS = {"one process": 1, "two apart": 2, "torchrun": 2, "ray": 2}
TASK = "certainty=halueval?template=Knowledge: {knowledge} Question: {question} Answer: {answer}"
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
_CHECKED = 8  # texts that are read a second time, in one process


def measure(way: str, name: str, rows: int) -> dict[str, Any]:
    """One way's figures; in the first rank, where there are ranks."""
    torch.set_num_threads(1)
    engine = "ray" if way == "ray" else "local"
    if way == "ray":
        import ray

        ray.init(num_cpus=WAYS[way], include_dashboard=False, object_store_memory=512 << 20, log_to_driver=False)
    model = load(name, device="cpu")
    encoded = encode(model, [example.text for example in moescope.load_task(TASK, limit=rows).examples])
    model.spread = Spread.of(engine_of(engine), name, {"device": "cpu"})
    activations(model, encoded.rows(0, min(16, len(encoded))), "resid", batch_tokens=1)  # every process has the model then
    began = time.perf_counter()
    found = activations(model, encoded, "resid")
    read = time.perf_counter() - began
    model.spread = None
    apart = float(np.abs(found[:_CHECKED] - activations(model, encoded.rows(0, _CHECKED), "resid")).max())
    del model
    settings = moescope.CircuitSettings(site="resid", n_permutations=100, n_label_permutations=0)
    began = time.perf_counter()
    result = moescope.circuits(name, [TASK], settings, run=moescope.Run(limit=rows, device="cpu", engine=engine))
    study = time.perf_counter() - began
    tokens = int(encoded.lengths.sum())
    counts = result.meta["forward_tokens"]
    return {
        "processes": WAYS[way],
        "texts": len(encoded),
        "tokens": tokens,
        "read_seconds": read,
        "study_tokens": sum(count for purpose, count in counts.items() if purpose != "bare"),
        "study_seconds": study,
        "engine": result.meta["engine"],
        "difference": apart,
        "largest": float(np.abs(found[:_CHECKED]).max()),
    }


def started(way: str, name: str, rows: int) -> dict[str, Any]:
    """:func:`measure` in processes of its own."""
    if way == "two apart":
        with ThreadPoolExecutor(2) as pool:
            each = list(pool.map(lambda _: started("one process", name, rows), range(2)))
        added = {key: sum(one[key] for one in each) for key in ("processes", "texts", *_TOKENS.values())}
        return {**each[0], **added, **{key: max(one[key] for one in each) for key in ("read_seconds", "study_seconds")}}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if way == "torchrun" else []
        of = [__file__, "--way", way, "--model", name, "--rows", str(rows * WAYS[way]), "--out", str(out)]
        calm = {**dict.fromkeys(_THREADS, "1"), "HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0"}
        subprocess.run([sys.executable, *launch, *of], check=True, env={**os.environ, **calm})
        found: dict[str, Any] = json.loads(out.read_text())
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rows", type=int, default=120, help="texts for each process")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS / "cluster.json")
    given = parser.parse_args()
    if given.way:
        with ranks():
            given.out.write_text(json.dumps(measure(given.way, given.model, given.rows)))
        return
    ways = {way: started(way, given.model, given.rows) for way in WAYS}
    one = ways["one process"]
    lines = ["| | texts | tokens/s, reading | ratio | tokens/s, whole study | ratio |", "|---|---|---|---|---|---|"]
    for way, found in ways.items():
        speeds = {part: found[tokens] / found[f"{part}_seconds"] for part, tokens in _TOKENS.items()}
        found["ratio"] = {part: speed / (one[_TOKENS[part]] / one[f"{part}_seconds"]) for part, speed in speeds.items()}
        cells = [f"{speeds[part]:.0f} | {found['ratio'][part]:.2f}" for part in _TOKENS]
        lines.append(f"| {way} | {found['texts']} | {' | '.join(cells)} |")
    print("\n".join(lines))
    head = {"model": given.model, "machine": describe("ray"), "rows_a_process": given.rows}
    write_atomic(given.out, [json.dumps({**head, "ways": ways}, indent=1).encode()])
    if given.out == RESULTS / "cluster.json":
        before, _, rest = PAGE.read_text().partition(_MARK)
        said = f"{given.model}, {given.rows} texts for each process; {head['machine']['processor']}:"
        write_atomic(PAGE, ["\n".join([before + _MARK, said, "", *lines, _END]).encode(), rest.partition(_END)[2].encode()])


_MARK, _END = "<!-- written by python benchmarks/cluster.py -->", "<!-- end -->"
_TOKENS = {"read": "tokens", "study": "study_tokens"}

if __name__ == "__main__":
    main()
