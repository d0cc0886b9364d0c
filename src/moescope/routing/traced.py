"""The trace that a study looks at: recorded before, or of a model on its prompts, part by part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from moescope.errors import InputError
from moescope.models import LoadedModel, random_twin
from moescope.models.source import MODEL_FILES
from moescope.routing.capture import trace_prompts
from moescope.routing.chosen import NeuronChoice, chosen_trace
from moescope.routing.dense import dense_trace, is_dense
from moescope.routing.store import trace_of
from moescope.routing.trace import RoutingTrace
from moescope.study.protocol import Context, ModelLike, PromptsLike
from moescope.tasks.prompts import Prompt

DEFAULT_PROMPTS = "routing-480"
_BLOCK = 128
"""prompts that are traced between two points from which an interrupted study goes on"""


def is_trace(model: Any) -> TypeGuard[RoutingTrace | Path]:
    """Whether this is a trace, or a folder that is not a model's."""
    named = isinstance(model, Path) and not model.is_file()
    return isinstance(model, RoutingTrace) or (named and not any((model / name).is_file() for name in MODEL_FILES))


class Read(NamedTuple):
    """What a study of a model or of a recorded trace looks at."""

    trace: RoutingTrace
    prompts: Sequence[Prompt] | None
    """None where a trace alone is given"""
    model: LoadedModel | None
    """that was traced, or whose tokenizer reads the tokens of a recorded trace"""
    twin: RoutingTrace | None
    """of a randomly initialised model, the prompts alone"""


def read_routing(
    context: Context,
    model: ModelLike | RoutingTrace,
    prompts: PromptsLike | None,
    *,
    check: Callable[[Sequence[Prompt]], object],
    new_tokens: int,
    dense_experts: int,
    twin: bool,
    tokenizer: str | None,
    choice: Callable[[LoadedModel], NeuronChoice | None] = lambda model: None,
) -> Read:
    """Load a recorded trace (as a ``Path``, its folder), or trace a model and its twin on the prompts.

    Args:
        prompts: None: of a trace what it says of its sequences, for a model :data:`DEFAULT_PROMPTS`.
        check: refuses prompts before a model runs on them.
        tokenizer: model whose tokenizer reads the tokens of a recorded trace.
        choice: how a dense model chooses neurons, which are then traced; None: it does not.

    Raises:
        InputError: the trace, the prompts or the model cannot be used.
    """
    if is_trace(model):
        trace = trace_of(model)
        context.stages.read(trace)
        labelled = None if prompts is None else context.prompts(prompts)
        return Read(trace, labelled, None if tokenizer is None else context.load(tokenizer), None)
    assert not isinstance(model, RoutingTrace)
    given = context.prompts(prompts or DEFAULT_PROMPTS)
    check(given)
    loaded = context.load(model, head=new_tokens > 0, required=False)
    options: dict[str, Any] = {"dense_experts": dense_experts, "choice": choice(loaded)}
    trace = traced(context, loaded, given, "reading and generating", new_tokens=new_tokens, **options)
    if not twin:
        return Read(trace, given, loaded, None)
    random = random_twin(loaded, context.run.seed)
    other = traced(context, random, given, "a random model's routing", new_tokens=0, **options)
    return Read(trace, given, loaded, other)


def traced(
    context: Context,
    model: LoadedModel,
    prompts: Sequence[Prompt],
    stage: str,
    *,
    new_tokens: int,
    dense_experts: int = 0,
    choice: NeuronChoice | None = None,
    weights: bool = True,
) -> RoutingTrace:
    """The routing of ``model`` on ``prompts`` and on ``new_tokens`` that follow each, as stages of ``context``.

    Args:
        weights: keep the experts' weights too.
        dense_experts: groups of neurons per layer that stand for experts where the model is dense, a quarter of them active.
        choice: of a dense model's neurons, each of which then stands for an expert.

    Raises:
        InputError: the model is dense, and no groups are asked for.
    """
    run = context.run
    shared: dict[str, Any] = {"max_tokens": run.max_tokens, "batch_tokens": run.batch_tokens}
    if not is_dense(model):
        return _in_blocks(context, model, prompts, stage, {"max_new_tokens": new_tokens, "weights": weights, **shared})
    if choice is not None:
        own: dict[str, Any] = {"choice": choice, "progress": context.counter("reading"), **shared}
        return context.stage(stage, lambda: chosen_trace(model, prompts, **own))
    if not dense_experts:
        raise InputError(
            f"model {model.name} is dense: it has no experts to trace; give dense_experts=16 to read groups of its neurons as "
            "experts, or study it with `moescope circuits`"
        )
    shared |= {"seed": run.seed, "progress": context.counter("reading")}
    k = max(1, dense_experts // 4)
    return context.stage(stage, lambda: dense_trace(model, prompts, n_experts=dense_experts, k=k, **shared))


def _in_blocks(
    context: Context, model: LoadedModel, prompts: Sequence[Prompt], stage: str, options: dict[str, Any]
) -> RoutingTrace:
    parts = []
    for start in range(0, len(prompts), _BLOCK):

        def tell(done: int, total: int, start: int = start) -> None:
            context.tell(stage, start + done, len(prompts))

        block = partial(trace_prompts, model, prompts[start : start + _BLOCK], progress=tell, **options)
        parts.append(context.stage(f"{stage}: from prompt {start + 1}", block))
    return RoutingTrace.concat(parts)
