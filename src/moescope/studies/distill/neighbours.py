"""What known directions a student's experts are near: the layer's own neurons, task circuits, a dictionary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from scipy.stats import hypergeom
from torch import Tensor

from moescope.errors import InputError
from moescope.studies.distill.students import Neurons, Student
from moescope.studies.distill.teacher import MlpNeurons
from moescope.types import Circuit, Neuron, Site

_DECODERS = ("W_dec", "decoder.weight")  # SAELens and Sparsify; plain torch, which stores it transposed


def similarity(bank: Neurons, neurons: MlpNeurons, units: Tensor) -> tuple[Tensor, Tensor]:
    """How alike ``units`` of an expert bank and every teacher neuron read and write: two float32 (units, F), in -1..1.

    Cosines of the activated directions, and of the output directions. Where both are gated, the second is multiplied by the
    cosine of the linear factors, since the sign of both can be turned without changing the neuron; where only the teacher
    is gated its sign is therefore open, and the absolute value is taken. Centring and scaling change no direction.
    """
    read = _cosine(bank.w_in.detach()[units], neurons.w_in)
    write = _cosine(bank.w_out.detach()[units], neurons.w_out)
    if neurons.w_lin is None:
        return read, write
    return read, write.abs() if bank.w_lin is None else write * _cosine(bank.w_lin.detach()[units], neurons.w_lin)


def nearest_neurons(
    student: Student, neurons: MlpNeurons, experts: Sequence[int], layer: int, circuits: Mapping[str, Circuit] | None = None
) -> pd.DataFrame:
    """The teacher neuron that each expert is most like, by the mean of :func:`similarity`'s two parts.

    Args:
        experts: one row each; of an expert of several neurons the one that is most like any teacher neuron counts.
        layer: of the teacher; circuit neurons at ``mlp_act`` of it, at ``resid`` of it (coordinates that it writes) and of
            the layer below (coordinates that it reads) are compared.
        circuits: by task.

    Returns:
        The columns ``expert``, ``neuron…``, ``writes_as…`` and, with circuits, ``circuit_…`` (None and NaN where no circuit has
        a neuron there) of the table ``experts``.
    """
    bank = _bank(student)
    width = student.spec.width
    units = torch.as_tensor(list(experts), dtype=torch.long)[:, None] * width + torch.arange(width)
    rows: list[dict[str, Any]] = []
    for expert, own in zip(experts, units, strict=True):
        read, write = similarity(bank, neurons, own)
        both = (read + write) / 2
        unit, neuron = divmod(int(both.argmax()), both.shape[1])
        alone = _cosine(bank.w_out.detach()[own], neurons.w_out).amax(0)
        row: dict[str, Any] = {
            "expert": int(expert),
            "neuron": neuron,
            "neuron_read": float(read[unit, neuron]),
            "neuron_write": float(write[unit, neuron]),
            "neuron_similarity": float(both[unit, neuron]),
            "writes_as": int(alone.argmax()),
            "writes_as_cosine": float(alone.max()),
        }
        if circuits:
            found = [
                (_circuit_similarity(bank, own, both.amax(0), n, layer), str(n), task)
                for task, circuit in circuits.items()
                for n in circuit.neurons
            ]
            best = max((f for f in found if not np.isnan(f[0])), default=(float("nan"), None, None))
            row |= {"circuit_neuron": best[1], "circuit_task": best[2], "circuit_similarity": best[0]}
        rows.append(row)
    return pd.DataFrame(rows)


def pairing_null(
    student: Student, neurons: MlpNeurons, experts: Sequence[int], *, draws: int = 999, seed: int = 0
) -> tuple[float, np.ndarray]:
    """Mean similarity of the experts to their nearest neurons, and the same (draws,) with write directions dealt out anew
    among these experts. The null keeps every direction and breaks only what makes an expert a unit."""
    bank = _bank(student)
    width = student.spec.width
    units = (torch.as_tensor(list(experts), dtype=torch.long)[:, None] * width + torch.arange(width)).flatten()
    read, write = similarity(bank, neurons, units)
    rng = np.random.default_rng(seed)

    def mean(order: Tensor) -> float:
        return float(((read + write[order]) / 2).amax(1).mean())

    others = np.array([mean(torch.from_numpy(rng.permutation(len(units)))) for _ in range(draws)])
    return mean(torch.arange(len(units))), others


def circuit_overlap(nearest: pd.DataFrame, circuits: Mapping[str, Circuit], layer: int, width: int) -> pd.DataFrame:
    """Table ``expert_circuits``, of the circuits' neurons at ``mlp_act`` of this layer.

    The two-sided hypergeometric ``p`` takes neurons for exchangeable; it is NaN where the circuit has no neuron here.
    """
    ours = set(nearest["neuron"])
    rows = []
    for task, circuit in circuits.items():
        here = {n.index for n in circuit.neurons if n.site == Site("mlp_act", layer)}
        shared, chance = len(ours & here), hypergeom(width, len(here), len(ours))
        rows.append(
            {
                "task": task,
                "circuit_neurons": len(here),
                "expert_neurons": len(ours),
                "overlap": shared,
                "expected": float(chance.mean()),
                "least": int(chance.ppf(0.025)),
                "most": int(chance.ppf(0.975)),
                "p": float(min(1.0, 2 * min(chance.sf(shared - 1), chance.cdf(shared)))) if here else float("nan"),
            }
        )
    return pd.DataFrame(rows)


def load_dictionary(path: str | Path, width: int) -> Tensor:
    """Decoder directions, float32 (n, width), of a sparse autoencoder in safetensors: ``W_dec`` (n, width), or
    ``decoder.weight`` (width, n).

    Raises:
        InputError: the file cannot be read, has neither tensor, or its directions have another width.
    """
    try:
        with safe_open(str(path), "pt") as file:
            have = list(file.keys())
            name = next((n for n in _DECODERS if n in have), None)
            if name is None:
                raise InputError(
                    f"{path} has no W_dec or decoder.weight; it has: {', '.join(have[:5]) or 'nothing'}", "dictionary"
                )
            found: Tensor = file.get_tensor(name).float()
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read ({error}); give a safetensors file", "dictionary") from error
    if name == "decoder.weight":
        found = found.T
    if found.dim() != 2 or found.shape[1] != width or not bool(torch.isfinite(found).all()):
        raise InputError(
            f"{name} of {path} has shape {tuple(found.shape)}; finite ones of the layer's output width {width} are needed",
            "dictionary",
        )
    return found.contiguous()


def nearest_directions(student: Student, directions: Tensor, experts: Sequence[int], *, seed: int = 0) -> pd.DataFrame:
    """The dictionary direction nearest to what each expert writes: ``expert`` and ``direction…`` of the table ``experts``.

    The random direction is isotropic, one drawn for each expert.
    """
    bank = _bank(student)
    width = student.spec.width
    draw = torch.Generator().manual_seed(seed)
    rows = []
    for expert in experts:
        cosine = _cosine(bank.w_out.detach()[int(expert) * width : (int(expert) + 1) * width], directions).amax(0)
        chance = _cosine(torch.randn(width, directions.shape[1], generator=draw), directions)
        rows.append(
            {
                "expert": int(expert),
                "direction": int(cosine.argmax()),
                "direction_cosine": float(cosine.max()),
                "direction_chance": float(chance.max()),
            }
        )
    return pd.DataFrame(rows)


def _circuit_similarity(bank: Neurons, units: Tensor, to_neurons: Tensor, neuron: Neuron, layer: int) -> float:
    """NaN where the circuit's neuron is not at this layer. A residual coordinate is compared by absolute cosine."""
    if neuron.site == Site("mlp_act", layer):
        return float(to_neurons[neuron.index])
    for site, weight in ((Site("resid", layer), bank.w_out), (Site("resid", layer - 1), bank.w_in)):
        if neuron.site == site and neuron.index < weight.shape[1]:
            return float(F.normalize(weight.detach()[units], dim=1)[:, neuron.index].abs().max())
    return float("nan")


def _bank(student: Student) -> Neurons:
    if student.experts is None:
        raise InputError("a dense student has no experts to compare")
    return student.experts


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return F.normalize(a.float().cpu(), dim=1) @ F.normalize(b.float().cpu(), dim=1).T
