"""What a request does to experts and neurons while its text is written."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, get_args

import numpy as np

from moescope.intervene import Expert, ExpertEdits, intervene, steer_experts
from moescope.intervene.experts import edits_by_layer
from moescope.intervene.intervene import group_by_site
from moescope.server.limits import Refused
from moescope.types import Neuron, Site, SiteKind

if TYPE_CHECKING:
    from moescope.models import LoadedModel
    from moescope.server.circuits import CircuitTrace
    from moescope.server.wire import EditBody

_EXPERT = re.compile(r"([0-9]{1,6}):([0-9]{1,6})")
_NEURON = re.compile(rf"({'|'.join(get_args(SiteKind))}):([0-9]{{1,6}})/([0-9]{{1,9}})")
_TAKES = {"boost": "what is added to the router's logit", "scale": "a factor"}
_OF_NEURON = ("ablate", "scale")


@dataclass(frozen=True, eq=False)
class Edits:
    """Applied around each forward pass, so that nothing of them is there while the model does other work."""

    experts: ExpertEdits = field(default_factory=ExpertEdits)
    ablated: dict[Neuron, float] = field(default_factory=dict)
    """neuron -> what it is set to"""
    scaled: dict[Neuron, float] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.experts or self.ablated or self.scaled)

    @contextmanager
    def applied(self, model: LoadedModel) -> Iterator[None]:
        """To every token of every pass inside the block."""
        with ExitStack() as stack:
            if self.experts:
                stack.enter_context(steer_experts(model, self.experts))
            for neurons, mode in ((self.ablated, "patch"), (self.scaled, "scale")):
                if neurons:
                    values = np.array(list(neurons.values()))
                    stack.enter_context(intervene(model, list(neurons), mode, values=values))  # type: ignore[arg-type]
            yield


def edits_of(model: LoadedModel, asked: Sequence[EditBody], circuits: Sequence[CircuitTrace]) -> Edits:
    """The edits of a request, checked against the model.

    ``ablate`` takes an expert's output away and leaves the others' weights, and sets a neuron to its mean over the texts of its
    study, where that is known, else to 0.

    Raises:
        Refused: a name that is none, an edit that does not fit, or two of one kind for one expert or neuron.
        InputError: an expert or neuron that the model does not have, or that is banned and edited otherwise.
    """
    means = {
        n: float(m) for trace in circuits if trace.mean is not None for n, m in zip(trace.neurons, trace.mean, strict=True)
    }
    experts: dict[str, dict[Expert, float]] = {"ban": {}, "force": {}, "boost": {}, "scale": {}}
    ablated: dict[Neuron, float] = {}
    scaled: dict[Neuron, float] = {}
    for number, edit in enumerate(asked):
        where = f"edits, number {number}"
        if (edit.by is None) == (edit.do in _TAKES):
            needs = f"takes by, {_TAKES[edit.do]}" if edit.do in _TAKES else "takes no by; leave it out"
            raise Refused(f"{where}: {edit.do} {needs}")
        by = 0.0 if edit.by is None else edit.by
        twice = Refused(f"{where}: {edit.at} is edited twice in one way; say it once")
        if found := _EXPERT.fullmatch(edit.at):
            expert = Expert(int(found[1]), int(found[2]))
            kind = "scale" if edit.do == "ablate" else edit.do
            if expert in experts[kind]:
                raise twice
            experts[kind][expert] = by
        elif found := _NEURON.fullmatch(edit.at):
            neuron = Neuron(Site(found[1], int(found[2])), int(found[3]))
            if edit.do not in _OF_NEURON:
                raise Refused(f"{where}: {edit.do} is for experts; a neuron can be ablated or scaled")
            if neuron in ablated or neuron in scaled:
                raise twice
            if edit.do == "ablate":
                ablated[neuron] = means.get(neuron, 0.0)
            else:
                scaled[neuron] = by
        else:
            raise Refused(f"{where}: {edit.at[:40]!r} names neither an expert (2:5) nor a neuron (mlp_act:3/17)")
    made = Edits(
        ExpertEdits(frozenset(experts["ban"]), frozenset(experts["force"]), experts["boost"], experts["scale"]), ablated, scaled
    )
    if made.experts:
        edits_by_layer(model, made.experts)
    if ablated or scaled:
        group_by_site(model, [*ablated, *scaled])
    return made
