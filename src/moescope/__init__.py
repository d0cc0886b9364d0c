"""moescope finds, tests and uses the experts hidden in transformer language models.

>>> import moescope
>>> result = moescope.circuits("dense-tiny", ["certainty=halueval", "sentiment=uci-sentiment"])  # doctest: +SKIP
>>> result.save("out")  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moescope.errors import InputError
    from moescope.models import load as load_model
    from moescope.studies.circuits import CircuitClassifier, CircuitSettings, DivergenceSelector, circuits, formation
    from moescope.studies.convert import ConvertSettings, convert
    from moescope.studies.distill import distill
    from moescope.studies.signatures.study import signatures
    from moescope.study.result import StudyResult, load
    from moescope.tasks import load_prompts, load_task

__version__ = metadata.version("moescope")

# Names are imported when first used: `moescope --help` must not wait for torch.
_WHERE = {
    "CircuitClassifier": "moescope.studies.circuits",
    "CircuitSettings": "moescope.studies.circuits",
    "ConvertSettings": "moescope.studies.convert",
    "DivergenceSelector": "moescope.studies.circuits",
    "InputError": "moescope.errors",
    "StudyResult": "moescope.study.result",
    "circuits": "moescope.studies.circuits",
    "convert": "moescope.studies.convert",
    "distill": "moescope.studies.distill",
    "formation": "moescope.studies.circuits",
    "load": "moescope.study.result",
    "load_model": "moescope.models",
    "load_prompts": "moescope.tasks",
    "load_task": "moescope.tasks",
    "signatures": "moescope.studies.signatures.study",
}
__all__ = [
    "CircuitClassifier",
    "CircuitSettings",
    "ConvertSettings",
    "DivergenceSelector",
    "InputError",
    "StudyResult",
    "circuits",
    "convert",
    "distill",
    "formation",
    "load",
    "load_model",
    "load_prompts",
    "load_task",
    "signatures",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'moescope' has no attribute {name!r}")
    module = import_module(_WHERE[name])
    if name in ("circuits", "convert", "distill"):
        return module  # it can be called: see there
    return getattr(module, "load" if name == "load_model" else name)
