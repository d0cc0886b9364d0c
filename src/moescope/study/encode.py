"""Results to plain JSON values and back. Strict JSON: what is not finite is stored as null."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from moescope.study.settings import read_record
from moescope.types import Circuit, Claim, Control, Neuron, Published, Site, is_kind


def plain(value: Any) -> Any:
    """``value`` made of dict, list, str, int, float, bool and None only; NaN and infinities become None."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, set | frozenset):
        return [plain(v) for v in sorted(value, key=str)]
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, Site | Neuron | Path):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return str(value)


def tidy_claim(claim: Claim) -> Claim:
    """``claim`` with plain values: what a claim is after being stored and read."""
    return claim_from_json(claim_json(claim))


def claim_json(claim: Claim) -> dict[str, Any]:
    return cast(dict[str, Any], plain(claim))


def claim_from_json(data: Mapping[str, Any]) -> Claim:
    """The claim that :func:`claim_json` wrote. A null ``measured`` or bound is NaN, since those are numbers.

    Raises:
        KeyError, TypeError, ValueError: ``data`` is not a claim.
    """
    bounds = data.get("interval")
    if bounds is not None:
        low, high = (_real(b) for b in bounds)
        bounds = None if math.isnan(low) and math.isnan(high) else (low, high)
    measured, published, control = data["measured"], data.get("published"), data.get("control")
    return Claim(
        statement=str(data["statement"]),
        measured=_number(measured),
        id=str(data.get("id", "")),
        published=None if published is None else read_record(Published, published),
        interval=bounds,
        control=None if control is None else Control(str(control["name"]), _number(control["value"])),
        p=None if data.get("p") is None else _real(data["p"]),
        p_adjusted=None if data.get("p_adjusted") is None else _real(data["p_adjusted"]),
        family=str(data.get("family", "")),
        outcome=data["outcome"],
        explanation=data.get("explanation"),
        words=str(data.get("words", "")),
        details=dict(data.get("details") or {}),
    )


def _number(value: object) -> float | str:
    return value if isinstance(value, str) else _real(value, keep=True)


def _real(value: object, *, keep: bool = False) -> float:
    """A number, NaN where it is null; ``keep`` leaves whole ones whole."""
    if value is None:
        return math.nan
    if isinstance(value, bool) and keep:
        return value
    if not isinstance(value, int | float) or (isinstance(value, int) and abs(value) > 10**300):
        raise ValueError(f"{str(value)[:40]!r} is no number")
    return value if keep else float(value)


def _index(value: object) -> int:
    if type(value) is not int or not 0 <= value < 10**9:
        raise ValueError(f"{str(value)[:40]!r} is no number of a layer or neuron")
    return value


def circuit_json(circuit: Circuit) -> dict[str, Any]:
    return {
        "task": circuit.task,
        "sigma": circuit.sigma,
        "neurons": [{"site": n.site.kind, "layer": int(n.site.layer), "neuron": int(n.index)} for n in circuit.neurons],
        "divergence": plain(list(circuit.divergence)),
    }


def circuit_from_json(data: Mapping[str, Any]) -> Circuit:
    """The circuit that :func:`circuit_json` wrote.

    Raises:
        KeyError, TypeError, ValueError: ``data`` is not a circuit.
    """
    neurons = []
    for n in data["neurons"]:
        if not is_kind(n["site"]):
            raise ValueError(f"unknown site {n['site']!r}")
        neurons.append(Neuron(Site(n["site"], _index(n["layer"])), _index(n["neuron"])))
    divergence = tuple(_real(d) for d in data["divergence"])
    return Circuit(str(data["task"]), tuple(neurons), divergence, str(data.get("sigma", "pooled")))
