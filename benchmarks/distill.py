"""What a training step of a student with very many experts costs, in time and memory, beside the published gather.

    python benchmarks/distill.py            # about three minutes on two cores, 6 GB of memory
    python benchmarks/distill.py --small    # seconds; fewer experts
    python benchmarks/distill.py --million  # only: a million experts behind product keys, on real activations, 12 GB

The published form gathers the chosen rows of both expert matrices, (tokens, k, d) each, scores all experts at once, and
leaves the gradients dense. Both sides start from the same weights and see the same batch; that their losses agree after each
step is checked. Times are medians over interleaved steps; memory is the peak of a process of its own, over what it held
before the student was built. Writes benchmarks/results/distill.json.
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

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from machine import describe
from moescope.files.atomic import write_atomic
from moescope.kernels import Routed, cpu, reference, topk
from moescope.studies.distill.optimizer import RowAdam
from moescope.studies.distill.spec import StudentSpec
from moescope.studies.distill.students import LayerShape, Student
from moescope.study.provenance import peak_bytes

RESULTS = Path(__file__).parent / "results"
SHAPE = LayerShape(512, 512, "gelu", False)  # Pythia-70M
BATCH, ACTIVE, RANK = 1024, 32, 128
LR = 1e-3


class Gather(nn.Module):
    """The published student with the weights of ours."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.k = student.spec.active
        for name, parameter in student.named_parameters():
            self.register_parameter(name.replace(".", "_"), nn.Parameter(parameter.detach().clone()))

    def forward(self, x: Tensor) -> Tensor:
        low = x @ self.router_down.T if hasattr(self, "router_up") else x
        scores = low @ (self.router_up if hasattr(self, "router_up") else self.router_weight).T  # (B, m)
        values, index = torch.topk(scores, self.k, dim=1)
        gates = torch.softmax(values, dim=1)
        w_in, w_out = self.experts_w_in[index], self.experts_w_out[index]  # (B, k, d) each
        hidden = F.gelu(torch.einsum("bd,bkd->bk", x, w_in) + self.experts_bias[index])
        y = torch.einsum("bk,bkd->bd", gates * hidden, w_out)
        shared = F.gelu(F.linear(x, self.shared_w_in, self.shared_bias)) @ self.shared_w_out
        return y + shared + self.bias


def spec(router: str, experts: int) -> StudentSpec:
    return StudentSpec(shared=ACTIVE, experts=experts, active=ACTIVE, router=router, rank=RANK)  # type: ignore[arg-type]


def data() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(BATCH, SHAPE.d_in, generator=draw), torch.randn(BATCH, SHAPE.d_out, generator=draw)


def stepper(name: str, experts: int) -> Callable[[], tuple[float, dict[str, float]]]:
    """One training step of a contender ``ours|gather, ROUTER[, bf16]``: loss, and seconds of its parts."""
    side, router, *rest = name.split(", ")
    student = Student(spec(router, experts), SHAPE)
    x, y = data()
    optimizer: Any
    if side == "gather":
        model = Gather(student)
        del student
        optimizer = torch.optim.Adam(model.parameters(), lr=LR)
        forward: Callable[[], Tensor] = lambda: model(x)  # noqa: E731
        update: Callable[[], None] = optimizer.step
    else:
        student.rough_routing = rest == ["bf16"]
        optimizer = RowAdam(student.parameters(), lazy=rest == ["lazy Adam"])
        forward = lambda: student.run(x).y  # noqa: E731
        update = lambda: optimizer.step(LR)  # noqa: E731

    def step() -> tuple[float, dict[str, float]]:
        start = time.perf_counter()
        loss = (forward() - y).square().mean()
        after_forward = time.perf_counter()
        if side == "gather":
            optimizer.zero_grad()
        loss.backward()
        after_backward = time.perf_counter()
        update()
        end = time.perf_counter()
        parts = {
            "forward": after_forward - start,
            "backward": after_backward - after_forward,
            "optimizer": end - after_backward,
            "step": end - start,
        }
        return float(loss.detach()), parts

    return step


def step_times(experts: int, repeats: int) -> dict[str, Any]:
    groups = [
        ["gather, low-rank", "ours, low-rank", "ours, low-rank, bf16", "ours, low-rank, lazy Adam"],
        ["gather, full", "ours, full", "ours, product-key"],
    ]
    rows: dict[str, Any] = {}
    for names in groups:
        steps = {name: stepper(name, experts) for name in names}
        losses: dict[str, list[float]] = {name: [] for name in names}
        times: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        for repeat in range(repeats + 1):
            for name, step in steps.items():
                loss, parts = step()
                losses[name].append(loss)
                if repeat:  # the first is a warm-up
                    times[name].append(parts)
        base = names[0]
        for name in names:
            rows[name] = {part: median(t[part] for t in times[name]) for part in times[name][0]}
            rows[name]["speedup"] = median(b["step"] / t["step"] for b, t in zip(times[base], times[name], strict=True))
        gap = max(abs(a - b) / a for a, b in zip(losses[base], losses[names[1]], strict=True))
        assert gap < 1e-4, f"losses of {base} and {names[1]} part by {gap}"
        rows[names[1]]["largest loss gap"] = gap
    return rows


def kernel_times(experts: int, repeats: int) -> dict[str, float]:
    """Milliseconds of each operation on (BATCH, ACTIVE) pairs, least of the repeats."""
    draw = torch.Generator().manual_seed(0)
    x, weight = torch.randn(BATCH, 512, generator=draw), torch.randn(experts, 512, generator=draw)
    low, up = torch.randn(BATCH, RANK, generator=draw), torch.randn(experts, RANK, generator=draw)
    index = torch.randint(0, experts, (BATCH, ACTIVE), generator=draw)
    scale = torch.randn(BATCH, ACTIVE, generator=draw)
    routed = Routed(index, experts)

    def embedding_bag() -> Tensor:
        return F.embedding_bag(index, weight, per_sample_weights=scale, mode="sum")

    def sampled(chunk: int = 4) -> Tensor:
        """Plain torch without (B, k, d): a few of the k at a time."""
        return torch.cat([torch.einsum("bd,bkd->bk", x, weight[part]) for part in index.split(chunk, dim=1)], dim=1)

    calls: dict[str, Callable[[], Any]] = {
        "gathered dot, numba": lambda: cpu.dot(x, weight, index),
        "gathered dot, torch gather": lambda: reference.gathered_dot(x, weight, index),
        "gathered dot, torch in chunks": sampled,
        "gathered sum, numba": lambda: cpu.weighted_sum(scale, weight, index),
        "gathered sum, torch gather": lambda: reference.gathered_sum(scale, weight, index),
        "gathered sum, torch embedding_bag": embedding_bag,
        "row gradient, numba": lambda: cpu.grouped_sum(scale, x, weight.shape, routed),
        "best k of m, blocks and heaps": lambda: topk.top_rows(low, up, ACTIVE),
        "best k of m, bf16 scores": lambda: topk.top_rows(low, up, ACTIVE, half=True),
        "best k of m, torch matmul and topk": lambda: reference.top_rows(low, up, ACTIVE),
    }
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            best[name] = min(best[name], 1e3 * (time.perf_counter() - start))
    return best


def million(steps: int = 60) -> dict[str, Any]:
    """A student of a million experts of the embedded model's layer 3, trained for a minute or two."""
    from moescope.models import load
    from moescope.studies.distill.data import scaling_of
    from moescope.studies.distill.evaluate import evaluate
    from moescope.studies.distill.layer_data import model_pairs, pieces
    from moescope.studies.distill.teacher import Teacher
    from moescope.studies.distill.training import Job, TrainSettings, train
    from moescope.tasks import plain_text

    teacher = Teacher(load("dense-tiny"), 3)
    pairs = model_pairs(teacher, pieces(plain_text(), 512))
    before = _resident()
    student = Student(spec("product-key", 1_000_000), teacher.shape, scaling_of(pairs))
    job = Job(student, 5e-3)
    untrained = evaluate(student, pairs, "validation").fvu
    start = time.perf_counter()
    train(pairs, {"product-key": job}, TrainSettings(steps=steps, batch=BATCH, every=steps))
    seconds = time.perf_counter() - start
    peak = peak_bytes()
    held = 3 * 4 * sum(p.numel() for p in student.parameters())
    return {
        "experts": 1_000_000,
        "width": teacher.shape.d_in,
        "steps": steps,
        "seconds_a_step": seconds / steps,
        "fvu": {"untrained": untrained, "trained": evaluate(student, pairs, "test").fvu},
        "memory_ratio": (peak - before) / held,
        "peak_bytes": peak,
    }


def memory_child(name: str, experts: int) -> None:
    """Run in a process of its own: peak over what was held before, and what weights and Adam moments take."""
    for tiny in ("ours, low-rank", "gather, low-rank"):
        stepper(tiny, 64)()  # compile and load everything first
    before = _resident()
    step = stepper(name, experts)
    for _ in range(3):
        step()
    peak = peak_bytes()
    router = name.split(", ")[1]
    numbers = sum(p.numel() for p in Student(spec(router, experts), SHAPE).parameters())
    print(json.dumps({"peak_over_start": peak - before, "weights_and_moments": 3 * 4 * numbers}))


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def memory(experts: int, threads: int) -> dict[str, Any]:
    rows = {}
    for name in ("gather, low-rank", "ours, low-rank"):
        command = [sys.executable, __file__, "--memory-child", name, "--experts", str(experts), "--threads", str(threads)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        rows[name] = json.loads(output.strip().splitlines()[-1])
        rows[name]["ratio"] = rows[name]["peak_over_start"] / rows[name]["weights_and_moments"]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="What a training step with very many experts costs.")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--million", action="store_true")
    parser.add_argument("--experts", type=int, default=None)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory-child", default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    experts = arguments.experts or (10_000 if arguments.small else 100_000)
    if arguments.memory_child is not None:
        memory_child(arguments.memory_child, experts)
        return
    if arguments.million:
        result = {"machine": describe("numba"), **million()}
        print(json.dumps(result, indent=1))
        write_atomic(RESULTS / "distill_million.json", [(json.dumps(result, indent=1) + "\n").encode()])
        return
    result = {
        "machine": describe("numba"),
        "experts": experts,
        "active": ACTIVE,
        "batch": BATCH,
        "rank": RANK,
        "width": SHAPE.d_in,
        "memory": memory(experts, arguments.threads),
        "kernels_ms": kernel_times(experts, arguments.repeats),
        "steps": step_times(experts, arguments.repeats),
    }
    print(json.dumps(result, indent=1))
    if not arguments.small:
        write_atomic(RESULTS / "distill.json", [(json.dumps(result, indent=1) + "\n").encode()])


if __name__ == "__main__":
    main()
