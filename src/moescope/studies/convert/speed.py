"""Tokens per second end to end, beside the ceiling that the bytes of the weights set."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import nn

from moescope.kernels.block_cpu import fuse, unfuse  # which registers the implementation "moescope"
from moescope.models.past import past_argument, past_of


@dataclass(frozen=True)
class Workload:
    """``batch`` sequences that each read ``prompt`` tokens and, unless this is 0, write ``steps`` tokens one by one."""

    name: str
    batch: int
    prompt: int
    steps: int

    @property
    def tokens(self) -> int:
        """What a rate is of: tokens written, or tokens read where none is written."""
        return self.batch * (self.steps or self.prompt)


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


@torch.no_grad()
def seconds(runner: Runner, workload: Workload) -> float:
    """Of one run: decoding alone, with the prompt read before the clock starts, or reading the prompt alone."""
    model = runner.model
    vocabulary = model.config.vocab_size
    ids = torch.randint(0, vocabulary, (workload.batch, workload.prompt), generator=torch.Generator().manual_seed(0))
    with _implementation(model, runner.implementation, runner.fused):
        if workload.steps == 0:
            began = time.perf_counter()
            model(input_ids=ids, use_cache=True, logits_to_keep=1)
            return time.perf_counter() - began
        out = model(input_ids=ids, use_cache=True, logits_to_keep=1)
        began = time.perf_counter()
        for _ in range(workload.steps):
            token = out.logits[:, -1:].argmax(-1)
            out = model(input_ids=token, **past_argument(model, past_of(out)), use_cache=True, logits_to_keep=1)
        return time.perf_counter() - began


def measure(
    runners: Sequence[Runner],
    workloads: Sequence[Workload] = WORKLOADS,
    *,
    repeats: int = 3,
    report: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Rows of the table ``speed`` without its ceilings; the speed-up is that over the first runner.

    Runs are interleaved (every runner once, then again, each turn beginning with another), and both figures are medians
    over turns of what stands within a turn, so that a machine that slows down for a while slows all of them alike.
    """
    rows = []
    for number, workload in enumerate(workloads):
        times: list[list[float]] = [[] for _ in runners]
        for turn in range(-1, repeats):  # the first turn warms up, compiles and measures crossovers
            for place in range(len(runners)):
                which = (place + turn) % len(runners)
                spent = seconds(runners[which], workload)
                if turn >= 0:
                    times[which].append(spent)
        for runner, spent_of in zip(runners, times, strict=True):
            rows.append(
                {
                    "runner": runner.name,
                    "workload": workload.name,
                    "tokens_per_second": workload.tokens / median(spent_of),
                    "speedup": median(a / b for a, b in zip(times[0], spent_of, strict=True)),
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
