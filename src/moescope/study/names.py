"""Names of models and tasks as people and as file systems read them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moescope.study.result import StudyResult


def model_name(result: StudyResult) -> str:
    """The model's name from ``meta``, where it is text or a mapping with ``name``."""
    model = result.meta.get("model")
    if isinstance(model, dict):
        model = model.get("name")
    return str(model) if model else "model"


def slug(text: str) -> str:
    """``text`` as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_").lower() or "task"
