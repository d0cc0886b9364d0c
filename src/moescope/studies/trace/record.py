"""The verb that records a routing trace."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from moescope.files.folder import output
from moescope.routing.capture import trace_prompts
from moescope.routing.generate import Decoding
from moescope.routing.place import check_trace_target
from moescope.routing.store import load_trace, trace_to_store
from moescope.routing.trace import RoutingTrace
from moescope.studies.trace.settings import TraceSettings
from moescope.study.protocol import Context, ModelLike, PromptsLike
from moescope.study.repeat import verb
from moescope.study.run import Run, check_given

_SETTINGS, _RUN = TraceSettings(), Run()


@verb
def trace(
    model: ModelLike, prompts: PromptsLike = "routing-480", settings: TraceSettings = _SETTINGS, *, run: Run = _RUN
) -> RoutingTrace:
    """Record which experts of a mixture of experts each token of some prompts, and of what follows them, is sent to.

    With ``run.out`` the trace is also written there, a shard at a time: an interrupted recording goes on when it is asked for
    again. ``run.overwrite`` replaces a trace that stands there, once the new one is whole.

    Args:
        model: a mixture of experts, with its head where it is loaded already and tokens are to be generated.
        prompts: labelled or bare prompts, the name of a shipped set, or a file.

    Returns:
        The trace: for each of T tokens and L layers the ids of the K experts chosen, and what ``settings`` keep beside.

    Raises:
        InputError: the model is dense or has no head to generate with; a prompt is empty; ``run.out`` holds something else,
            a trace that may not be replaced, or an unfinished one of another model, other prompts or other settings.

    >>> import moescope
    >>> trace = moescope.trace("moe-tiny", "routing-80", moescope.TraceSettings(new_tokens=4))  # doctest: +SKIP
    >>> moescope.signatures(trace)  # doctest: +SKIP
    """
    check_given(settings, TraceSettings, run)
    if run.out is None:
        return _traced(model, prompts, settings, run)
    folder = check_trace_target(run.out, overwrite=run.overwrite)
    with output(folder):
        return _traced(model, prompts, settings, replace(run, out=folder))


def _traced(model: ModelLike, prompts: PromptsLike, settings: TraceSettings, run: Run) -> RoutingTrace:
    # what goes to the folder is a trace, not a result
    context = Context("trace", settings, replace(run, out=None), of=TraceSettings, spread=True)
    read = context.prompts(prompts)
    loaded = context.load(model, head=settings.new_tokens > 0, required=False)
    options: dict[str, Any] = {
        "max_new_tokens": settings.new_tokens,
        "decoding": Decoding(sample=settings.sample, beams=settings.beams, seed=run.seed),
        "weights": settings.weights,
        "scores": settings.scores,
        "tokens": settings.token_ids,
        "max_tokens": run.max_tokens,
        "batch_tokens": run.batch_tokens,
        "progress": context.counter("prompts traced"),
    }
    if run.out is None:
        return trace_prompts(loaded, read, **options)
    trace_to_store(loaded, read, run.out, overwrite=run.overwrite, **options)
    return load_trace(run.out)
