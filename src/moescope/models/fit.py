"""In which precision a model is computed, and whether it fits the machine: settled before its weights are read."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, get_args

import torch
import transformers

from moescope.errors import InputError
from moescope.files.memory import available_memory, gib
from moescope.models.weights import Stored, quantization_of
from moescope.types import Precision

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS: dict[torch.dtype, Precision] = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
IN_FULL = 2**30
"""Weights up to which a checkpoint of 16 bits is computed in 32: 4 GiB."""

_BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "int8": 1.1, "int4": 0.65}  # the embedding and the norms keep 16 bits
_MARGIN = 1.05


@dataclass(frozen=True)
class Plan:
    """How weights will be loaded: ``dtype`` of what is no code, the configuration that quantises the rest or None, and the
    bytes that all take, ``name`` in words."""

    name: str
    dtype: torch.dtype
    quantise: Any
    nbytes: int


def check_precision(dtype: str) -> None:
    """Raises InputError where ``dtype`` is unknown, or needs a package that is not installed."""
    if dtype not in get_args(Precision):
        raise InputError(f"dtype {dtype!r} is unknown: choose from {', '.join(get_args(Precision))}")
    if dtype in ("int8", "int4") and find_spec("bitsandbytes") is None:
        raise InputError(f"{dtype} needs the package bitsandbytes, which is not installed: pip install bitsandbytes", "dtype")


def plan_of(dtype: str, held: Stored, config: Any, name: str) -> Plan:
    """``auto`` is the checkpoint's own precision; but 16 bits are computed in 32 where the model has at most
    :data:`IN_FULL` weights. The choice depends on the checkpoint alone, so that every machine computes the same.

    Raises:
        InputError: int8 or int4 of weights that are quantised already.
    """
    quantised = quantization_of(config)
    if dtype in ("int8", "int4"):
        if quantised:
            raise InputError(f"{dtype} does not apply: the weights of {name} are quantised already ({quantised})", "dtype")
        base = DTYPES["fp16" if held.dtype == "fp16" else "bf16"]
        # its matrix product says at every call that it works in fp16 inside
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        quantise: Any = transformers.BitsAndBytesConfig(
            load_in_8bit=dtype == "int8",
            load_in_4bit=dtype == "int4",
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=base,
        )
        return Plan(dtype, base, quantise, int(held.count * _BYTES[dtype]))
    if quantised:
        return Plan(quantised, DTYPES[held.dtype if dtype == "auto" else dtype], None, held.nbytes)
    if dtype == "auto":
        dtype = "fp32" if held.count <= IN_FULL else held.dtype
    return Plan(dtype, DTYPES[dtype], None, int(held.count * _BYTES[dtype]))


def check_room(name: str, plan: Plan, held: Stored, place: torch.device | None) -> None:
    """That the weights fit ``place``; None, where they are to be spread over several, is not judged.

    Raises:
        InputError: they do not; names what they need, what there is, and the precision that would fit.
    """
    if place is None or place.type not in ("cpu", "cuda"):
        return
    free = available_memory() if place.type == "cpu" else torch.cuda.mem_get_info(place)[0]
    if plan.nbytes * _MARGIN <= free:
        return
    where = "memory" if place.type == "cpu" else str(place)
    fits = [] if plan.quantise or plan.name not in DTYPES else [
        dtype for dtype in ("bf16", "int8", "int4") if held.count * _BYTES[dtype] * _MARGIN <= min(free, plan.nbytes)
    ]  # fmt: skip
    smaller = f"give dtype={fits[0]}{' (needs bitsandbytes)' if fits[0].startswith('int') else ''}, " if fits else ""
    spread = "device_map=auto, which leaves what does not fit on the disk" if place.type == "cpu" else "device=cpu"
    raise InputError(
        f"model {name!r} does not fit: its {held.count / 1e9:.2f} billion weights take {gib(plan.nbytes)} in {plan.name}, and "
        f"{where} has {gib(free)} free; {smaller}{spread}, or a smaller model"
    )
