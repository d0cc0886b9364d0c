"""moescope finds, tests and uses the experts hidden in transformer language models.

>>> import moescope
>>> result = moescope.circuits("dense-tiny", ["certainty=halueval", "sentiment=uci-sentiment"])  # doctest: +SKIP
>>> result.save("out")  # doctest: +SKIP

A verb is a plain function ``verb(model, inputs, settings, *, run)`` that returns a :class:`StudyResult`; ``dir(moescope)``
lists them all.
"""

from __future__ import annotations

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moescope.capture.answers import answered
    from moescope.capture.record import record
    from moescope.errors import InputError
    from moescope.models import load as load_model
    from moescope.routing.training import RoutingCallback
    from moescope.select.estimators import CircuitClassifier, DivergenceSelector
    from moescope.studies.agreement.settings import AgreementSettings
    from moescope.studies.agreement.study import agreement
    from moescope.studies.atlas.settings import AtlasSettings
    from moescope.studies.atlas.study import atlas
    from moescope.studies.choice.settings import ChoiceSettings
    from moescope.studies.choice.study import choice
    from moescope.studies.circuits.formation import dynamics
    from moescope.studies.circuits.scaling import scaling
    from moescope.studies.circuits.settings import CircuitSettings, ScalingSettings, SearchSettings
    from moescope.studies.circuits.study import circuits
    from moescope.studies.convert.settings import ConvertSettings
    from moescope.studies.convert.study import convert
    from moescope.studies.distill.settings import DistillSettings
    from moescope.studies.distill.study import distill
    from moescope.studies.exit.settings import ExitSettings
    from moescope.studies.exit.study import exit
    from moescope.studies.prune.settings import PruneSettings
    from moescope.studies.prune.study import prune
    from moescope.studies.residency.settings import ResidencySettings
    from moescope.studies.residency.study import residency
    from moescope.studies.robustness.settings import RobustnessSettings
    from moescope.studies.robustness.study import robustness
    from moescope.studies.route.settings import RouteSettings
    from moescope.studies.route.study import route
    from moescope.studies.signatures.settings import SignatureSettings
    from moescope.studies.signatures.study import signatures
    from moescope.studies.sparsify.settings import SparsifySettings
    from moescope.studies.sparsify.study import sparsify
    from moescope.studies.steer.settings import SteerSettings
    from moescope.studies.steer.study import steer
    from moescope.studies.targets.settings import TargetSettings
    from moescope.studies.targets.study import targets
    from moescope.studies.trace.record import trace
    from moescope.studies.trace.settings import TraceSettings
    from moescope.studies.transfer.settings import TransferSettings
    from moescope.studies.transfer.study import transfer
    from moescope.study.result import StudyResult, load
    from moescope.study.run import Run
    from moescope.tasks import list_tasks, load_prompts, load_task
    from moescope.types import Claim, Task
    from moescope.zoo import list_models

__version__ = metadata.version("moescope")

# Name -> where it stands. Names are imported when first used: `moescope --help` must not wait for torch.
_WHERE = {
    "AgreementSettings": "moescope.studies.agreement.settings",
    "AtlasSettings": "moescope.studies.atlas.settings",
    "ChoiceSettings": "moescope.studies.choice.settings",
    "CircuitClassifier": "moescope.select.estimators",
    "CircuitSettings": "moescope.studies.circuits.settings",
    "Claim": "moescope.types",
    "ConvertSettings": "moescope.studies.convert.settings",
    "DistillSettings": "moescope.studies.distill.settings",
    "DivergenceSelector": "moescope.select.estimators",
    "ExitSettings": "moescope.studies.exit.settings",
    "InputError": "moescope.errors",
    "PruneSettings": "moescope.studies.prune.settings",
    "ResidencySettings": "moescope.studies.residency.settings",
    "RobustnessSettings": "moescope.studies.robustness.settings",
    "RouteSettings": "moescope.studies.route.settings",
    "RoutingCallback": "moescope.routing.training",
    "Run": "moescope.study.run",
    "SignatureSettings": "moescope.studies.signatures.settings",
    "SparsifySettings": "moescope.studies.sparsify.settings",
    "SteerSettings": "moescope.studies.steer.settings",
    "ScalingSettings": "moescope.studies.circuits.settings",
    "SearchSettings": "moescope.studies.circuits.settings",
    "StudyResult": "moescope.study.result",
    "TargetSettings": "moescope.studies.targets.settings",
    "Task": "moescope.types",
    "TraceSettings": "moescope.studies.trace.settings",
    "TransferSettings": "moescope.studies.transfer.settings",
    "agreement": "moescope.studies.agreement.study",
    "answered": "moescope.capture.answers",
    "atlas": "moescope.studies.atlas.study",
    "choice": "moescope.studies.choice.study",
    "circuits": "moescope.studies.circuits.study",
    "convert": "moescope.studies.convert.study",
    "distill": "moescope.studies.distill.study",
    "exit": "moescope.studies.exit.study",
    "dynamics": "moescope.studies.circuits.formation",
    "list_models": "moescope.zoo",
    "list_tasks": "moescope.tasks",
    "load": "moescope.study.result",
    "load_model": "moescope.models:load",
    "load_prompts": "moescope.tasks",
    "load_task": "moescope.tasks",
    "prune": "moescope.studies.prune.study",
    "record": "moescope.capture.record",
    "residency": "moescope.studies.residency.study",
    "robustness": "moescope.studies.robustness.study",
    "route": "moescope.studies.route.study",
    "scaling": "moescope.studies.circuits.scaling",
    "signatures": "moescope.studies.signatures.study",
    "sparsify": "moescope.studies.sparsify.study",
    "steer": "moescope.studies.steer.study",
    "targets": "moescope.studies.targets.study",
    "trace": "moescope.studies.trace.record",
    "transfer": "moescope.studies.transfer.study",
}
__all__ = [
    "AgreementSettings",
    "AtlasSettings",
    "ChoiceSettings",
    "CircuitClassifier",
    "CircuitSettings",
    "Claim",
    "ConvertSettings",
    "DistillSettings",
    "DivergenceSelector",
    "ExitSettings",
    "InputError",
    "PruneSettings",
    "ResidencySettings",
    "RobustnessSettings",
    "RouteSettings",
    "RoutingCallback",
    "Run",
    "ScalingSettings",
    "SearchSettings",
    "SignatureSettings",
    "SparsifySettings",
    "SteerSettings",
    "StudyResult",
    "TargetSettings",
    "Task",
    "TraceSettings",
    "TransferSettings",
    "agreement",
    "answered",
    "atlas",
    "choice",
    "circuits",
    "convert",
    "distill",
    "dynamics",
    "exit",
    "list_models",
    "list_tasks",
    "load",
    "load_model",
    "load_prompts",
    "load_task",
    "prune",
    "record",
    "residency",
    "robustness",
    "route",
    "scaling",
    "signatures",
    "sparsify",
    "steer",
    "targets",
    "trace",
    "transfer",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'moescope' has no attribute {name!r}")
    module, _, attribute = _WHERE[name].partition(":")
    value = getattr(import_module(module), attribute or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*_WHERE, "__version__"])
