"""Tokens per second end to end, beside the ceiling that the bytes of the weights set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

from torch import nn

from moescope.kernels.block_cpu import fuse, unfuse  # which registers the implementation "moescope"
from moescope.study.clock import Workload, decoding, in_turns

WORKLOADS = (
    Workload("batch 1", 1, 16, 24),
    Workload("batch 8", 8, 16, 12),
    Workload("batch 64", 64, 16, 6),
    Workload("prefill", 1, 512, 0),
)


@dataclass(frozen=True)
class Runner:
    """A model under one experts implementation (None: a dense model), its blocks fused or not."""

    name: str
    model: Any
    implementation: str | None = None
    fused: bool = False


def seconds(runner: Runner, workload: Workload) -> float:
    """Of one run: decoding alone, with the prompt read before the clock starts, or reading the prompt alone."""
    with _implementation(runner.model, runner.implementation, runner.fused):
        return float(decoding(runner.model, workload).sum())


def measure(
    runners: Sequence[Runner],
    workloads: Sequence[Workload] = WORKLOADS,
    *,
    repeats: int = 3,
    report: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Rows of the table ``speed`` without its ceilings; the speed-up is that over the first runner.

    Runs are interleaved, and both figures are medians over turns of what stands within a turn.
    """
    rows = []
    for number, workload in enumerate(workloads):
        # the first turn warms up, compiles and measures crossovers
        times = in_turns({runner.name: partial(seconds, runner, workload) for runner in runners}, repeats)
        for name, spent in times.items():
            rows.append(
                {
                    "runner": name,
                    "workload": workload.name,
                    "tokens_per_second": workload.tokens / median(spent),
                    "speedup": median(a / b for a, b in zip(times[runners[0].name], spent, strict=True)),
                }
            )
        if report is not None:
            report(number + 1, len(workloads))
    return rows


@contextmanager
def _implementation(model: Any, name: str | None, fused: bool) -> Iterator[None]:
    if name is None:
        yield
        return
    before = model.config._experts_implementation
    model.set_experts_implementation(name)
    if fused:
        fuse(model)
    try:
        yield
    finally:
        if fused:
            unfuse(model)
        model.set_experts_implementation(before)


def ceilings(dense: Any, converted: Any, workloads: Sequence[Workload] = WORKLOADS) -> dict[str, dict[str, float]]:
    """How many times faster than the dense model the converted one can be, by its weights alone.

    Workload -> ``ceiling``, the ratio of multiply-adds on a token (attention over the context left out), which nothing can
    exceed on the same arithmetic; and ``ceiling_reading``, the ratio of weights read, which binds where reading is what
    takes the time. At batch 1 they are the same. With B tokens that each take k of E experts, E·(1 - (1 - k/E)^B) experts
    are read where routing is even. Embedding rows are looked up, not read whole.
    """
    body = sum(p.numel() for name, p in dense.named_parameters() if ".mlp." not in name)
    body -= dense.get_input_embeddings().weight.numel()
    if dense.config.tie_word_embeddings:
        body += dense.get_output_embeddings().weight.numel()
    mlp = sum(p.numel() for name, p in dense.named_parameters() if ".mlp." in name)
    routed, rest, k, experts = _expert_parts(converted)
    found = {}
    for workload in workloads:
        tokens = workload.batch * (1 if workload.steps else workload.prompt)
        touched = 1 - (1 - k / experts) ** tokens
        found[workload.name] = {
            "ceiling": (body + mlp) / (body + rest + routed * k / experts),
            "ceiling_reading": (body + mlp) / (body + rest + routed * touched),
        }
    return found


def _expert_parts(model: nn.Module) -> tuple[int, int, int, int]:
    """Weights of all routed experts, other weights of the MLPs (router, shared experts), experts per token, experts."""
    routed = sum(p.numel() for name, p in model.named_parameters() if ".mlp.experts." in name)
    rest = sum(p.numel() for name, p in model.named_parameters() if ".mlp." in name) - routed
    config: Any = model.config
    return routed, rest, config.num_experts_per_tok, config.num_local_experts


def active_share(dense: Any, converted: Any) -> float:
    """Weights of the MLPs that work on one token, router included, over those of the dense model."""
    mlp: int = sum(p.numel() for name, p in dense.named_parameters() if ".mlp." in name)
    routed, rest, k, experts = _expert_parts(converted)
    return (rest + routed * k / experts) / mlp
