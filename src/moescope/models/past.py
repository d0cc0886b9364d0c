"""The key-value cache of a forward pass, by whichever name the model has for it.

transformers calls it ``cache`` from 5.24 on and ``past_key_values`` before; a model that brings its own code may say either.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

_NAMES = ("cache", "past_key_values")


def past_of(given: Mapping[str, Any]) -> Any | None:
    """The cache among a forward pass's keyword arguments, or in its output; None where there is none."""
    return next((given[name] for name in _NAMES if given.get(name) is not None), None)


def past_argument(module: nn.Module, cache: Any) -> dict[str, Any]:
    """``cache`` as the keyword argument by which ``module`` takes it: ``module(**past_argument(module, cache), …)``."""
    accepted = inspect.signature(module.forward).parameters
    return {next((name for name in _NAMES if name in accepted), _NAMES[-1]): cache}
