"""From a dense language model to a standard mixture-of-experts checkpoint, with a verdict on whether it pays."""

from __future__ import annotations

from moescope.convert.settings import ConvertSettings
from moescope.convert.study import convert

__all__ = ["ConvertSettings", "convert"]
