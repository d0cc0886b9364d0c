"""Whether a conversion is the dense model: every expert active, and gates of one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from moescope.errors import InputError
from moescope.intervene.held_out import Windows
from moescope.models import LoadedModel
from moescope.studies.convert.settings import Counts
from moescope.studies.convert.target import set_active


@dataclass(frozen=True)
class Equality:
    """How far a conversion with every expert active is from the dense model: norms of the logits' difference over theirs."""

    split: float
    """with gates of exactly one: rounding alone, if it is the same model"""
    gates: float
    """with the router's own gates, which are one to some 1e-5 on text like that of the calibration"""


def checked_equality(dense: LoadedModel, converted: Any, counts: Counts, windows: Windows) -> Equality:
    """The :class:`Equality` of a conversion that is the dense model but for rounding and gates that are nearly one.

    Raises:
        InputError: it is another model: with level gates, beyond eight units of rounding in half precision (a right conversion
            was seen to take one to three) or 3e-5 in float32 (seen: 2e-6 at 30 layers); or its gates move the logits by more
            than 1e-3 beyond that.
    """
    found = Equality(
        relative_difference(dense.module, converted, counts, windows, level=True),
        relative_difference(dense.module, converted, counts, windows),
    )
    most = max(3e-5, 8 * torch.finfo(dense.dtype).eps)
    for value, limit, why in (
        (found.split, most, "with every expert active and gates of one"),
        (found.gates, most + 1e-3, "with every expert active"),
    ):
        if not value <= limit:
            raise InputError(
                f"{dense.name} converted is not {dense.name}: {why} the logits differ by {value:.3g} of their norm, where "
                f"rounding explains {limit:.3g} at most; nothing was written (try dtype=fp32)"
            )
    return found


def relative_difference(dense: Any, converted: Any, counts: Counts, windows: Windows, *, level: bool = False) -> float:
    """Norm of the logits' difference over that of the dense model's logits: every expert active, 1,024 held-out tokens.

    Args:
        level: with a router that scores all experts alike, so that every gate is one.
    """
    ids = next(windows.batches(1024))
    reference = dense(input_ids=ids.to(dense.device), use_cache=False).logits.float().cpu()
    set_active(converted, counts.experts)
    try:
        with level_gates(converted) if level else nullcontext():
            found = converted(input_ids=ids, use_cache=False).logits.float()
    finally:
        set_active(converted, counts.active)
    # logits that are all nought differ by nought
    return float((found - reference).norm() / reference.norm().clamp_min(torch.finfo(torch.float32).tiny))


@contextmanager
def level_gates(model: Any) -> Iterator[None]:
    """For a time, routers of a converted model that score all experts alike: every gate is one where all are active."""
    gates = [m.gate.weight for m in model.modules() if hasattr(m, "experts") and hasattr(m, "gate")]
    kept = [gate.detach().clone() for gate in gates]
    try:
        for gate in gates:
            gate.data.zero_()
        yield
    finally:
        for gate, weight in zip(gates, kept, strict=True):
            gate.data.copy_(weight)
