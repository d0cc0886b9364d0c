"""Every MLP of a model split and routed, layer by layer, with the controls made from the same calibration pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from moescope.cluster import LOCAL
from moescope.errors import InputError
from moescope.intervene.held_out import Windows
from moescope.models import LoadedModel
from moescope.models.copies import copy_of
from moescope.models.spread import Recipe
from moescope.studies.convert.calibration import activation_of, activations, expert_masses, mlp_inputs
from moescope.studies.convert.router import LinearRouter, fit_router
from moescope.studies.convert.settings import ConvertSettings, Counts, Method
from moescope.studies.convert.split import Coactivation, Split, split_neurons
from moescope.studies.convert.target import Target, layer_tensors
from moescope.types import Circuit

Layers = list[tuple[Split, LinearRouter]]


@dataclass(eq=False)
class Converted:
    """Splits and routers of all layers: the chosen ones, the random control's, and each neuron's importance."""

    chosen: Layers = field(default_factory=list)
    random: Layers = field(default_factory=list)
    importance: list[Tensor] = field(default_factory=list)
    """per layer (I,): mean squared contribution, by which static pruning keeps neurons"""
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def table(self) -> pd.DataFrame:
        """Table ``layers``."""
        return pd.DataFrame(self.rows)


Each = Callable[[Sequence[str], Callable[[list[int]], Iterator[tuple[int, Converted]]]], list[Converted]]


def convert_layers(
    model: LoadedModel,
    target: Target,
    counts: Counts,
    windows: Windows,
    settings: ConvertSettings,
    seed: int,
    circuits: Sequence[Circuit] = (),
    report: Callable[[int, int], None] | None = None,
    each: Each | None = None,
) -> Converted:
    """Read the calibration text and split every layer; both shared out where the model is spread over processes. Circuits are
    the lists of neurons that must stay together.

    Args:
        each: keeps parts, as :meth:`moescope.study.protocol.Context.each` does.
    """
    seats = circuit_neurons(circuits, model) if settings.method == "circuits" else {}
    engine = LOCAL if model.spread is None else model.spread.engine
    how: dict[str, Any] = {"target": target, "counts": counts, "settings": settings, "seed": seed, "seats": seats}
    here = partial(_split, model, **how)
    elsewhere = here if model.spread is None else partial(_elsewhere, model.spread.recipe, model.fingerprint, **how)

    def split(left: list[int]) -> Iterator[tuple[int, Converted]]:
        done = model.n_layers - len(left)
        for layers in mlp_inputs(model, windows, left):
            for number, part in engine.map(elsewhere, layers, [1.0] * len(layers), here=here):
                yield layers[number][0], part
                done += 1
                if report is not None:
                    report(done, model.n_layers)

    found = Converted()
    names = [f"splitting layer {layer}" for layer in range(model.n_layers)]
    parts = dict(split(list(range(len(names))))) if each is None else dict(enumerate(each(names, split)))
    for layer in range(model.n_layers):
        for whole, part in zip(vars(found).values(), vars(parts[layer]).values(), strict=True):
            whole += part
    return found


def _elsewhere(recipe: Recipe, fingerprint: str, layers: Iterable[tuple[int, Tensor]], **how: Any) -> Iterator[Converted]:
    return _split(copy_of(recipe, fingerprint), layers, **how)


def _split(model: LoadedModel, layers: Iterable[tuple[int, Tensor]], **how: Any) -> Iterator[Converted]:
    """Of each layer and its MLP's inputs (tokens, d) the part that is its own."""
    return (_layer(model, layer, x, **how) for layer, x in layers)


def _layer(
    model: LoadedModel,
    layer: int,
    x: Tensor,
    *,
    target: Target,
    counts: Counts,
    settings: ConvertSettings,
    seed: int,
    seats: dict[int, list[list[int]]],
) -> Converted:
    found = Converted()
    module: Any = model.module
    mlp = module.model.layers[layer].mlp
    gate, up, down = (t.float().cpu() for t in layer_tensors(target, mlp))
    activate = activation_of(mlp, target.activation)
    seen = Coactivation(down, counts.active / counts.experts, seed + layer)
    for h in activations(x, gate, up, activate):
        seen.add(h)
    found.importance.append(seen.importance)
    methods: list[tuple[Method, Layers]] = [(settings.method, found.chosen)]
    if settings.controls and settings.method != "random":
        methods.append(("random", found.random))
    for method, kept in methods:
        split = split_neurons(
            seen,
            experts=counts.experts,
            shared=counts.shared,
            method=method,
            circuits=seats.get(layer, ()),
            seed=seed + layer,
        )
        members = torch.from_numpy(split.routed)
        mass = torch.cat([expert_masses(h, down, members) for h in activations(x, gate, up, activate)])
        router = fit_router(
            x,
            mass,
            counts.active - counts.shared,
            settings.router,
            gate=gate,
            members=members,
            biased=target.has_shared,
            seed=seed + layer,
        )
        kept.append((split, router))
        found.rows.append(
            {
                "layer": layer,
                "method": method,
                "captured": router.captured,
                "oracle": router.oracle,
                "chance": router.chance,
            }
        )
    return found


def circuit_neurons(circuits: Sequence[Circuit], model: LoadedModel) -> dict[int, list[list[int]]]:
    """Layer -> for each circuit its neurons there, best first.

    Raises:
        InputError: no circuit was given, one does not lie in MLP activations, or names a neuron that the model lacks.
    """
    if not circuits:
        raise InputError("method=circuits needs them: a result of the circuits study at site mlp_act", "circuits")
    found: dict[int, list[list[int]]] = {}
    for circuit in circuits:
        layers: dict[int, list[int]] = {}
        for neuron in circuit.neurons:
            if neuron.site.kind != "mlp_act":
                raise InputError(
                    f"circuit {circuit.task!r} lies in {neuron.site.kind}, which no MLP neuron is: find it at site mlp_act"
                )
            if neuron.index >= model.width(neuron.site):
                raise InputError(f"circuit {circuit.task!r}: neuron {neuron} is not in model {model.name}")
            layers.setdefault(neuron.site.layer, []).append(neuron.index)
        for layer, neurons in layers.items():
            found.setdefault(layer, []).append(neurons)
    return found


def kept_neurons(importance: Sequence[Tensor], share: float) -> list[Tensor]:
    """Per layer (I,) bool: the ``share`` of the neurons that contribute most on average, the same for every token."""
    masks = []
    for values in importance:
        mask = torch.zeros(len(values), dtype=torch.bool)
        mask[values.topk(max(1, round(share * len(values)))).indices] = True
        masks.append(mask)
    return masks
