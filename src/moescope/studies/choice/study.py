"""What a choice of neurons means: a model and labelled tasks in, what is chosen together and what is the tasks' own out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from moescope.capture import activations
from moescope.errors import InputError
from moescope.models import LoadedModel
from moescope.routing.chosen import NeuronChoice, choice_of, chosen_trace
from moescope.routing.dense import is_dense
from moescope.routing.trace import RoutingTrace
from moescope.studies.choice.claims import circuit_claims, together_claims
from moescope.studies.choice.halvings import HALVINGS
from moescope.studies.choice.overlap import Chosen, Overlap, circuit_table, overlap_of
from moescope.studies.choice.settings import ChoiceSettings
from moescope.studies.choice.together import together_table
from moescope.study.protocol import Context, ModelLike, TasksLike
from moescope.study.repeat import verb
from moescope.study.result import StudyResult
from moescope.study.rows import FoldRows
from moescope.study.run import Run
from moescope.tasks import Prompt, split_half
from moescope.types import Task

_SETTINGS, _RUN = ChoiceSettings(), Run()


@verb
def choice(model: ModelLike, tasks: TasksLike, settings: ChoiceSettings = _SETTINGS, *, run: Run = _RUN) -> StudyResult:
    """Which of a dense model's neurons are chosen together, and are those in whose choice a task's classes differ its circuit?

    The choice is that of :func:`moescope.sparsify`: few bits of gate and up say what each neuron would write on a token, and
    those that would write most work. Whether it names the task, :func:`moescope.signatures` tells.

    Args:
        model: one that `moescope sparsify` wrote, or a dense one with ``neuron_share``.
        tasks: at least one, of classes; what is chosen together is seen on all their texts.

    Returns:
        A result of kind ``"choice"``: tables ``together``, ``circuits`` and ``shared``.

    Raises:
        InputError: the model chooses no neurons, or its MLPs are not gated; a task cannot be halved; or ``k`` is too large.

    >>> import moescope
    >>> settings = moescope.ChoiceSettings(neuron_share=0.25)
    >>> result = moescope.choice("dense-tiny", "sentiment=uci-sentiment", settings)  # doctest: +SKIP
    >>> result.table("circuits")[["task", "shared", "layers", "often"]]  # doctest: +SKIP
    """
    context = Context("choice", settings, run, of=ChoiceSettings)
    given = context.tasks(tasks)
    halves = {task.name: _halved(context, task) for task in given}
    loaded = context.load(model)
    how = _how(loaded, settings)
    if settings.neuron_share is not None:
        context.note(f"Note: {loaded.name} is dense: the neurons that few bits would choose are looked at while all run.")
    traces, found = [], []
    shared: list[dict[str, object]] = []
    for task in given:
        trace, read = _read(context, loaded, task, how, halves[task.name])
        traces.append(trace)
        own, rows = context.stage(f"{task.name}: circuit and choice", partial(overlap_of, read, settings, run.seed))
        found.append(own)
        shared += rows
        _control(context, own)
    seconds = [np.concatenate(parts) for parts in zip(*(halves[task.name] for task in given), strict=True)]
    whole = RoutingTrace.concat(traces)
    seeing = partial(together_table, whole, seconds, settings, context)
    table, evidence = context.stage("what is chosen together", seeing)
    circuits = circuit_table(found)
    columns = ("task", "layer", "neuron", "most", "rate_most", "rate_least")
    return context.result(
        model=loaded,
        title=f"What the choice of {loaded.name}'s neurons means",
        claims=[*together_claims(evidence, settings), *circuit_claims(found, circuits, settings)],
        tables={"together": table, "circuits": circuits, "shared": pd.DataFrame(shared, columns=columns)},
        tasks=given,
        neurons=list(how.neurons),
        bits=[how.choose, how.bits],
    )


def _how(model: LoadedModel, settings: ChoiceSettings) -> NeuronChoice:
    """How neurons are chosen.

    Raises:
        InputError: they are not.
    """
    how = choice_of(model, settings.neuron_share)
    if how is None:
        if not is_dense(model):
            raise InputError(f"{model.name} routes to experts; what they are chosen for, `moescope signatures` tells", "model")
        raise InputError(f"{model.name} chooses no neurons; give 0.25, say, or a model of `moescope sparsify`", "neuron_share")
    widths = [model.width(site) for site in model.sites("mlp_act")]
    if settings.k > min(widths) // 2:
        raise InputError(f"must be at most {min(widths) // 2}, half of a layer's neurons, got {settings.k}", "k")
    return how


def _halved(context: Context, task: Task) -> list[np.ndarray]:
    """Of each halving bool (N,): the second half of a task's texts, groups whole."""
    groups, found = np.array([e.group for e in task.examples]), []
    for turn in range(HALVINGS):
        second = split_half([e.label for e in task.examples], groups, context.run.seed + turn)
        name = f"{task.name}: circuit on one half, choice on the other, halving {turn + 1}"
        context.rows(FoldRows(name, groups, second.astype(np.int64)))
        found.append(second)
    return found


def _read(
    context: Context, model: LoadedModel, task: Task, how: NeuronChoice, seconds: Sequence[np.ndarray]
) -> tuple[RoutingTrace, Chosen]:
    """The neurons that are chosen on a task's texts, and the texts' activations."""
    run, texts = context.run, [e.text for e in task.examples]
    prompts = [Prompt(f"{task.name}-{i}", e.text, task.classes[e.label]) for i, e in enumerate(task.examples)]
    limits: dict[str, Any] = {"batch_tokens": run.batch_tokens, "max_tokens": run.max_tokens}
    name = f"{task.name}: reading"
    tracing = partial(chosen_trace, model, prompts, how, progress=context.counter(name), **limits)
    trace = context.stage(f"{name} the choice", tracing)
    reading = partial(activations, model, texts, "mlp_act", position="mean", progress=context.counter(name), **limits)
    values = context.stage(f"{name} activations", reading)
    rates = (trace.counts() / trace.lengths[:, None, None]).astype(np.float32)
    read = Chosen(
        task.name,
        task.classes,
        np.array([e.label for e in task.examples]),
        np.array([e.group for e in task.examples]),
        seconds,
        rates.reshape(len(rates), -1),
        np.asarray(values).reshape(len(values), -1),
        np.repeat(trace.layers, trace.n_experts),
    )
    return trace, read


def _control(context: Context, own: Overlap) -> None:
    for name, beside in (("random neurons", own.layers), ("labels permuted", own.permuted)):
        others = float((beside.draws != beside.measured[0]).mean())
        evidence = f"{others:.0%} of the draws share another number"
        context.control(f"{own.task}: {name}", differs=others > 0 or not beside.value, evidence=evidence)
