"""Task circuits of dense models: the neurons that carry a task, and whether they would by chance.

The study (:func:`circuits`), its parts as plain functions, and estimators for scikit-learn users.
"""

import sys
from types import ModuleType
from typing import Any

from moescope.select.estimators import CircuitClassifier, DivergenceSelector
from moescope.studies.circuits.causal_run import AblationSettings
from moescope.studies.circuits.dynamics import formation
from moescope.studies.circuits.settings import CircuitSettings
from moescope.studies.circuits.study import circuits

__all__ = ["AblationSettings", "CircuitClassifier", "CircuitSettings", "DivergenceSelector", "circuits", "formation"]


class _Callable(ModuleType):
    """`moescope.circuits(model, tasks)` is what a user types; this folder bears the same name, so it answers the call."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return circuits(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
