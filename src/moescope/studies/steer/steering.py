"""The edits that some settings ask for: by hand, or by what a trace of prompts says of a category."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from moescope.intervene.experts import Expert, ExpertEdits
from moescope.routing import trace_prompts
from moescope.studies.steer.choose import check_known, route_like, top_experts
from moescope.studies.steer.neurons_effect import load_circuit
from moescope.studies.steer.settings import AblateMode, SteerSettings
from moescope.tasks import Prompt
from moescope.types import Neuron

if TYPE_CHECKING:
    from moescope.models import LoadedModel
    from moescope.study.run import Run

_TEXT = "the text"  # the category of the prompt that like_text makes


@dataclasses.dataclass(frozen=True)
class Ablation:
    """Neurons that are set to their mean, or to zero, at every token."""

    neurons: tuple[Neuron, ...]
    mode: AblateMode = "mean"


@dataclasses.dataclass(frozen=True)
class Steering:
    """One thing to do: a name for it, what is done, and the category that it is meant to hurt or to help."""

    name: str
    edits: ExpertEdits | Ablation
    target: str | None = None
    aim: Literal["harm", "help"] = "harm"
    others: Mapping[str, ExpertEdits] = dataclasses.field(default_factory=dict)
    """the same edits made from the prompts of other categories, where the target is one never seen"""


def by_hand(settings: SteerSettings) -> list[Steering]:
    """Experts and neurons that are named.

    Raises:
        InputError: an expert both banned and something else, or a file without a circuit.
    """
    found = []
    edits = ExpertEdits(
        frozenset(Expert(*e) for e in settings.experts("ban")),
        frozenset(Expert(*e) for e in settings.experts("force")),
        {Expert(*e): value for e, value in settings.values("boost").items()},
        {Expert(*e): value for e, value in settings.values("scale").items()},
    )
    if edits:
        found.append(Steering(str(edits), edits, settings.target))
    if settings.ablate is not None:
        circuit = load_circuit(settings.ablate)
        found.append(Steering(f"ablate {circuit.task}", Ablation(circuit.neurons, settings.mode), settings.target))
    return found


def categories(settings: SteerSettings, prompts: Sequence[Prompt]) -> list[str]:
    """Those that the edits are about.

    Raises:
        InputError: one that the prompts do not have.
    """
    known = list(dict.fromkeys(p.category for p in prompts if p.category is not None))
    asked = [name for name, _ in settings.amounts("ban_top", 2)]
    named = [name for name in asked if name != "each"]
    named += [name for name, _ in (*settings.amounts("like", 1.0), *settings.unseen_prompts)]
    for name in named:
        check_known(name, known)
    return list(dict.fromkeys([*named, *(known if "each" in asked else [])]))


def by_category(model: LoadedModel, prompts: Sequence[Prompt], settings: SteerSettings, run: Run) -> list[Steering]:
    """Experts that a trace of the prompts names."""
    names = list(dict.fromkeys(p.category for p in prompts if p.category is not None))
    if settings.like_text is not None:
        prompts = [*prompts, dataclasses.replace(prompts[0], id=_TEXT, text=settings.like_text, category=_TEXT)]
    trace = trace_prompts(model, prompts, weights=False, tokens=False, max_tokens=run.max_tokens, batch_tokens=run.batch_tokens)
    found = []
    for category, count in settings.amounts("ban_top", 2):
        for name in names if category == "each" else [category]:
            experts = top_experts(trace, name, int(count))
            found.append(Steering(f"ban the top experts of {name}", ExpertEdits(ban=frozenset(experts)), name))
    for category, strength in settings.amounts("like", 1.0):
        found.append(Steering(f"route like {category}", route_like(trace, category, strength), category, "help"))
    if settings.like_text is not None:
        found.append(Steering("route like the text", route_like(trace, _TEXT)))
    return found
