"""From a dense language model to a standard mixture-of-experts checkpoint, with a verdict on whether it pays."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from moescope.studies.convert.settings import ConvertSettings
from moescope.studies.convert.study import convert

__all__ = ["ConvertSettings", "convert"]


class _Callable(ModuleType):
    """`moescope.convert(model, folder)` is what a user types; this folder bears the same name, so it answers the call."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return convert(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
