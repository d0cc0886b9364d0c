"""What a server serves: a model, and what studies of it have left behind, each with the verdict that stands beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moescope.errors import InputError
from moescope.files.remote import local
from moescope.models import LoadedModel
from moescope.models.experts.layers import ExpertLayer, find_layers
from moescope.models.load import load_whole
from moescope.models.writing import can_generate
from moescope.report.format import number
from moescope.runtime.exit.classifier import ExitClassifier
from moescope.runtime.exit.store import FILE, load_exit
from moescope.runtime.route.bundle import DISPATCH_FILE, load_dispatcher
from moescope.runtime.route.dispatch import Dispatcher
from moescope.runtime.route.router import TaskRouter
from moescope.runtime.route.store import ROUTER_FILE, load_router
from moescope.server.cards import Cards, cards_of_atlas, cards_of_neurons, cards_of_prompts, example_prompts
from moescope.server.circuits import CircuitTrace, circuit_traces
from moescope.study.names import slug
from moescope.study.result import load as load_result
from moescope.tasks.prompts import Prompt
from moescope.tasks.templates import Template

if TYPE_CHECKING:
    from moescope.study.protocol import ModelLike
    from moescope.study.result import StudyResult

Verdict = dict[str, str]
"""``claim``, ``verdict``, ``outcome`` and ``words`` of a study's claim"""


@dataclass(frozen=True, eq=False)
class Classifier:
    """A saved early-exit classifier with what its study recommends."""

    exit: ExitClassifier
    recommendation: Verdict | None
    """None: no study of this model stands beside it"""

    @property
    def template(self) -> Template | None:
        """Of which fields its texts were made; None: not known."""
        return Template(self.exit.template) if self.exit.template is not None else None

    @property
    def path(self) -> str | None:
        """Where rows of those fields are classified."""
        return f"/v1/classify/{slug(self.exit.task)}" if self.exit.template is not None else None

    def json(self) -> dict[str, Any]:
        made = self.exit
        return {
            "task": made.task,
            "classes": list(made.classes),
            "template": made.template,
            "fields": list(self.template.fields) if self.template else None,
            "path": self.path,
            "head": made.heads.kind,
            "layers": made.model.n_layers,
            "confidence": None if made.threshold == float("inf") else made.threshold,
            "guarantee": made.guarantee.text() if made.guarantee else None,
            "recommendation": self.recommendation,
        }


@dataclass(frozen=True, eq=False)
class Router:
    """A saved task router with what its study says of it."""

    router: TaskRouter
    verdict: Verdict | None
    acts: Dispatcher | None = None
    """what answers a text whose task nobody tells; None: the router only names tasks"""

    def json(self) -> dict[str, Any]:
        made = self.router
        promise = self.acts.guarantee if self.acts is not None else None
        acting = {"acts": self.acts is not None, "guarantee": promise.text() if promise is not None else None}
        named = {"tasks": list(made.tasks), "features": made.source, "layer": made.layer, "unknown": made.rate}
        return named | acting | {"verdict": self.verdict}


@dataclass(frozen=True, eq=False)
class Served:
    """Raises InputError where there is nothing to do: no classifier, no router, and no text can be generated."""

    model: LoadedModel
    classifiers: dict[str, Classifier]
    router: Router | None = None
    circuits: tuple[CircuitTrace, ...] = ()
    cards: Cards = field(default_factory=dict)

    def __post_init__(self) -> None:
        why = self.silent
        if why is None:
            return
        if self.circuits:
            raise InputError(f"{why}, and circuits are traced while text is generated; leave them out", "circuits")
        if not self.classifiers and self.router is None:
            raise InputError(f"{why}; give what it can do: exits=DIR (of moescope exit) or route=DIR (of moescope route)")

    @property
    def silent(self) -> str | None:
        """Why no text can be generated; None where it can."""
        if self.model.is_encoder:
            return f"{self.model.name} is an encoder, which does not generate text"
        if not self.model.has_head or not can_generate(self.model):
            return f"{self.model.name} has no language-model head, so it does not generate text"
        return None

    @property
    def experts(self) -> tuple[ExpertLayer, ...]:
        """The mixture-of-experts layers; empty in a dense model."""
        return find_layers(self.model.body, self.model.name)

    def json(self) -> dict[str, Any]:
        model, experts = self.model, self.experts
        return {
            "model": {
                "name": model.name,
                "revision": model.revision,
                "type": model.config.model_type,
                "layers": model.n_layers,
                "width": model.d_model,
                "dtype": str(model.dtype).removeprefix("torch."),
                "device": str(model.device),
                "silent": self.silent,
                "chat": model.reading.chat,
                "template": bool(getattr(model.tokenizer, "chat_template", None)) and not model.is_encoder,
            },
            "examples": [{"category": p.category, "text": p.text} for p in _examples()],
            "cards": len(self.cards),
            "classifiers": [classifier.json() for classifier in self.classifiers.values()],
            "router": self.router.json() if self.router else None,
            "experts": {"layers": [e.layer for e in experts], "counts": [e.n_experts for e in experts]} if experts else None,
            "circuits": [trace.json() for trace in self.circuits],
        }


def gather(
    model: ModelLike,
    *,
    exits: Sequence[str | Path] = (),
    route: str | Path | None = None,
    circuits: str | Path | None = None,
    atlas: str | Path | None = None,
    cards: bool = False,
    chat: bool | None = None,
    **load_options: Any,
) -> Served:
    """Load a model, with its head where it has one, and what belongs to it.

    Args:
        model: Hub id, local folder, embedded name, or a model in memory.
        exits: folders of moescope exit: its result, or one classifier in it.
        route: a folder of moescope route: its result, or the router in it; one that acts also classifies.
        circuits: a result of moescope circuits.
        atlas: a result of moescope atlas, whose cards are shown of the experts.
        cards: read shipped prompts once for a card of every circuit neuron and, without an atlas, of every expert.
        chat: put a text that is to be continued into the chat template; None: where the tokenizer has one. Classifiers and
            the router read texts as they were fitted.
        load_options: as :func:`moescope.models.load` takes them.

    Raises:
        InputError: a folder is something else, damaged, or belongs to another model; two classifiers of one task.
    """
    # before the model is loaded, which may take minutes
    places = [place for folder in exits for place in _classifier_folders(local(folder))]
    routing = _router_folder(local(route)) if route is not None else None
    study = load_result(circuits) if circuits is not None else None
    of_experts = load_result(atlas) if atlas is not None else None
    loaded = (model if isinstance(model, LoadedModel) else load_whole(model, **load_options)).read_as(chat=chat)
    if loaded.reads_images:
        raise InputError(f"{loaded.name} reads images, which serve does not; `moescope circuits` does", "model")
    classifiers: dict[str, Classifier] = {}
    for place in places:
        made = load_exit(place, loaded)
        if slug(made.task) in map(slug, classifiers):  # by which its path is named
            raise InputError(f"{place} is the second classifier of task {made.task!r}; give one of each", "exits")
        promised = made.guarantee.text() if made.guarantee else None
        result = _study(place.parent.parent, "exit", loaded)
        if result is not None and result.meta.get("guarantees", {}).get(made.task) != promised:
            result = None  # a later study has replaced the one that this classifier is of
        classifiers[made.task] = Classifier(made, _verdict(result, f"{made.task}: recommendation"))
    router = None
    if routing is not None:
        study_of = _study(routing.parent, "route", loaded)
        if (routing / DISPATCH_FILE).is_file():
            acts = load_dispatcher(routing, loaded)
            router = Router(acts.router, _verdict(study_of, "routed by the first layers, the mixed stream loses"), acts)
        else:
            router = Router(load_router(routing, loaded), _verdict(study_of, "the task is named from"))
    traces = circuit_traces(loaded, study, str(circuits)) if study is not None else ()
    known = cards_of_atlas(loaded, of_experts, str(atlas)) if of_experts is not None else {}
    served = Served(loaded, classifiers, router, traces, known)
    if cards and not served.silent:
        known |= cards_of_neurons(loaded, traces)
        if served.experts and of_experts is None:
            known |= cards_of_prompts(loaded)
    return served


@cache
def _examples() -> list[Prompt]:
    """Two prompts of each category."""
    found: dict[str | None, list[Prompt]] = {}
    for prompt in example_prompts():
        found.setdefault(prompt.category, []).append(prompt)
    return [prompt for prompts in found.values() for prompt in prompts[:2]]


def _classifier_folders(folder: Path) -> list[Path]:
    """The classifiers of a study's result, of its folder ``exit``, or the one whose folder this is."""
    for pattern in (FILE, f"exit/*/{FILE}", f"*/{FILE}"):
        found = sorted(path.parent for path in folder.glob(pattern))
        if found:
            return found
    holds = f"{folder} {_absent(folder)} saved classifier ({FILE})"
    raise InputError(f"{holds}; moescope exit makes one in OUT/exit/TASK", "exits")


def _router_folder(folder: Path) -> Path:
    for place in (folder, folder / "route"):
        if (place / ROUTER_FILE).is_file():
            return place
    holds = f"{folder} {_absent(folder)} saved router ({ROUTER_FILE})"
    raise InputError(f"{holds}; moescope route makes one in OUT/route", "route")


def _absent(folder: Path) -> str:
    return "holds no" if folder.is_dir() else "does not exist, so it holds no"


def _study(folder: Path, kind: str, model: LoadedModel) -> StudyResult | None:
    """The result beside which a classifier or router was saved, where it is still there and of this model."""
    if not (folder / "results.json").is_file():
        return None
    result = load_result(folder)
    return result if result.kind == kind and result.meta.get("fingerprint") == model.fingerprint else None


def _verdict(result: StudyResult | None, beginning: str) -> Verdict | None:
    for claim in result.claims if result is not None else ():
        if claim.statement.startswith(beginning):
            beside = "" if claim.control is None else f", {claim.control.name} {number(claim.control.value)}"
            said = claim.measured if isinstance(claim.measured, str) else f"{claim.statement}: {claim.measured:.1%}{beside}"
            return {"claim": said, "verdict": claim.verdict, "outcome": claim.outcome, "words": claim.words}
    return None
