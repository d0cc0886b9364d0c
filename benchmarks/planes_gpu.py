"""MLPs whose neurons a copy of four bits chooses, on a GPU: each kernel's time, and a layer's, beside plain eight bits.

    python benchmarks/planes_gpu.py                # needs CUDA and Triton; a minute on an H200
    python benchmarks/planes_gpu.py --part table   # what the result says, into benchmarks/README.md; no GPU needed

Writes benchmarks/results/planes_gpu.json. A call is replayed from a CUDA graph over so many copies of its weights that none is
in the L2 cache, so that no launch waits for Python; the median of seven. The floor is what a sum over 1 GiB reads. Weights are
drawn: the clock does not depend on what they are. One token, its numbers rounded to 16 bits, half of the neurons chosen.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

RESULT = Path(__file__).parent / "results" / "planes_gpu.json"
README = Path(__file__).parent / "README.md"
MARKS = "<!-- planes_gpu.py writes this -->", "<!-- until here -->"
SHAPES = ((2048, 5632), (4096, 11008), (4096, 14336), (8192, 28672))
CHAINS = {
    "8 bits": ("round", "gate and up, 8 bits", "round", "down, 8 bits"),
    "half chosen": ("round", "score, 4 bits", "choose", "gate and up of the chosen", "down of the chosen", "add"),
}
COLD = 400 << 20  # bytes that a graph reads in all, several times the L2 cache


def seconds(call: Callable[[int], Any], count: int) -> float:
    """Of one call of ``count`` in a graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call(0)
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(count):
            call(i)
    times = []
    for _ in range(9):
        began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        began.record()
        graph.replay()
        ended.record()
        torch.cuda.synchronize()
        times.append(began.elapsed_time(ended) / 1e3 / count)
    return median(times[2:])


def drawn(rows: int, columns: int) -> Any:
    from moescope.models.rounding import GROUP, Nested

    codes = torch.randint(0, 256, (rows, columns), dtype=torch.uint8, device="cuda")
    scale = torch.rand(rows, columns // GROUP, device="cuda").add(0.5).div(64 * columns**0.5)  # inputs keep their size
    return Nested(codes, scale.half(), 8)


def parts(x: torch.Tensor, sparse: Any, eight: Any, count: int) -> dict[str, tuple[Callable[[int], Any], int]]:
    """Each kernel and the bytes that it reads of weights; its inputs are there."""
    from moescope.kernels import triton_planes as planes

    (n, d), dtype = sparse[0].down.shape, torch.float32
    gate, up, down = ([planes.Rows((one.codes[i],), (one.scales[i],), 8) for one in eight] for i in range(3))
    counts = torch.tensor([count], dtype=torch.int32, device=x.device)
    numbers = planes._rounded(x, 2)
    first, second, scores = planes._scored(numbers, sparse[0], 0)
    order = planes._chosen(scores, counts, count)
    hidden = planes._hidden(numbers, sparse[0], first, second, order, counts, 0)
    of_down = planes._rounded(torch.randn(1, n, device=x.device), 2)
    sums = planes._written(sparse[0], order, counts, hidden)
    turn = len(sparse)
    return {
        "round": (lambda i: planes._rounded(x, 2), 0),
        "gate and up, 8 bits": (
            lambda i: planes._multiplied(numbers, gate[i % turn], dtype, up[i % turn]),
            gate[0].bytes_read() + up[0].bytes_read(),
        ),
        "down, 8 bits": (lambda i: planes._multiplied(of_down, down[i % turn], dtype), down[0].bytes_read()),
        "score, 4 bits": (lambda i: planes._scored(numbers, sparse[i % turn], 0), sparse[0].bytes_read(0)),
        "choose": (lambda i: planes._chosen(scores, counts, count), 0),
        "gate and up of the chosen": (
            lambda i: planes._hidden(numbers, sparse[i % turn], first, second, order, counts, 0),
            count * (d + d // 8),
        ),
        "down of the chosen": (lambda i: planes._written(sparse[i % turn], order, counts, hidden), count * (d + d // 16)),
        "add": (lambda i: planes._added(sums, dtype), 0),
    }


def measure() -> dict[str, Any]:
    from moescope.kernels import triton_planes as planes

    memory = torch.randn(1 << 28, device="cuda")
    floor = memory.nbytes / seconds(lambda i: memory.sum(), 4)
    rows = []
    for d, n in SHAPES:
        copies = -(-COLD // (3 * d * n))
        sparse = [planes.pack(*(drawn(n, d) for _ in range(3))) for _ in range(copies)]
        eight = [planes.pack_gated(*(drawn(*of) for of in ((n, d), (n, d), (d, n)))) for _ in range(copies)]
        calls = parts(torch.randn(1, d, device="cuda"), sparse, eight, n // 2)
        for name, (call, nbytes) in calls.items():
            spent = seconds(call, 4 * copies)
            row = {"width": d, "neurons": n, "kernel": name, "microseconds": 1e6 * spent, "bytes": nbytes}
            rows.append(row | {"share_of_byte_floor": nbytes / spent / floor})
            print(rows[-1], flush=True)
    import triton

    machine = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "triton": triton.__version__}
    return {"machine": machine, "floor_bytes_per_second": floor, "rows": rows}


def table(result: dict[str, Any]) -> str:
    machine, rows = result["machine"], result["rows"]
    shapes = sorted({(row["width"], row["neurons"]) for row in rows})
    found = {(row["kernel"], row["width"], row["neurons"]): row for row in rows}
    kernels = list(dict.fromkeys(name for names in CHAINS.values() for name in names))
    lines = [
        f"{machine['gpu']}, torch {machine['torch']}, Triton {machine['triton']}; a sum over 1 GiB reads "
        f"{result['floor_bytes_per_second'] / 1e12:.2f} TB/s. Microseconds, and the share of that rate:",
        "",
        "| | " + " | ".join(f"{d} × {n}" for d, n in shapes) + " |",
        "|---" * (len(shapes) + 1) + "|",
    ]
    for kernel in kernels:
        lines.append(f"| {kernel} | " + " | ".join(_cell(found.get((kernel, *shape))) for shape in shapes) + " |")
    for name, parts_of in CHAINS.items():
        cells = []
        for shape in shapes:
            each = [found.get((kernel, *shape)) for kernel in parts_of]
            cells.append("–" if None in each else f"{sum(row['microseconds'] for row in each if row):.0f}")
        lines.append(f"| **{name}, sum** | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "–"
    share = f" ({row['share_of_byte_floor']:.0%})" if row["bytes"] else ""
    return f"{row['microseconds']:.1f}{share}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("measure", "table"), default="measure")
    if parser.parse_args().part == "table":
        before, rest = README.read_text().split(MARKS[0])
        made = table(json.loads(RESULT.read_text()))
        README.write_text(f"{before}{MARKS[0]}\n\n{made}\n{MARKS[1]}{rest.split(MARKS[1], 1)[1]}")
        return
    if not torch.cuda.is_available():
        sys.exit("needs a CUDA GPU, and Triton: pip install 'moescope[gpu]'")
    RESULT.write_text(json.dumps(measure(), indent=1) + "\n")


if __name__ == "__main__":
    main()
