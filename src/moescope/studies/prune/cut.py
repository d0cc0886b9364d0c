"""What a model with fewer experts is, and how one of its layers is run on the weights of the whole model's.

Nothing is known of architectures here: the same class is built once more from the config with another number of experts, and
what differs in shape is what has to be cut. A cut layer is that class's own code (its router, its groups, its normalisation) on
the whole layer's parameters, the router's rows cut; what it chooses goes to the whole layer's experts by their old numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from moescope.errors import InputError
from moescope.files.parse import parse_object
from moescope.models.experts.layers import COUNT_FIELDS, ExpertLayer, find_layers
from moescope.models.experts.rules import ExpertsCall
from moescope.models.layered import Edit, Layered, without_weights

_GROUPS, _CHOSEN = ("n_group", "num_expert_group"), ("topk_group",)


@dataclass(frozen=True, eq=False)
class Banks:
    """The experts of a model, all layers alike."""

    name: str
    layers: tuple[ExpertLayer, ...]
    n_experts: int
    top_k: int
    """experts of a token"""
    groups: int
    """into which the router parts the experts before it chooses; 1: none"""
    chosen_groups: int
    """of them, of which a token's experts are"""
    fields: tuple[str, ...]
    """of config.json, that say how many experts there are"""

    def check(self, kept: int, what: str = "this") -> None:
        """Refuse a number of experts that the router cannot choose among.

        Args:
            what: leaves so many, in words.

        Raises:
            InputError: it is below what a token needs, or not the same in each group.
        """
        said = f"{what} leaves {kept} of {self.n_experts} experts"
        if kept < self.top_k:
            raise InputError(f"{said}, but each token needs {self.top_k}", "ratio")
        if self.groups > 1:
            if kept % self.groups:
                raise InputError(
                    f"{said}, but the router parts them into {self.groups} groups of one size: their number must be a multiple "
                    f"of {self.groups}",
                    "ratio",
                )
            if kept // self.groups < 2 or self.chosen_groups * (kept // self.groups) < self.top_k:
                raise InputError(f"{said}, {kept // self.groups} in a group, which is too few for its router", "ratio")


def banks_of(layered: Layered) -> Banks:
    """The experts of a model that can be written with fewer of them.

    Raises:
        InputError: the model is dense, its layers have different numbers of experts, or its type chooses them in a way that
            cannot be cut.
    """
    model = layered.model
    layers = find_layers(model.body, model.name)
    if not layers:
        raise InputError(f"model {model.name} is dense: it has no experts to leave out")
    kind = model.config.model_type
    odd = next((layer for layer in layers if type(layer.rule) is not ExpertsCall or layer.router is None), None)
    if odd is not None:
        raise InputError(f"model type {kind!r} cannot be pruned: {odd} is not called as a bank of experts beside a router")
    counts = sorted({layer.n_experts for layer in layers})
    if len(counts) > 1:
        raise InputError(f"{model.name} has layers of {counts[0]} and of {counts[-1]} experts: its config could not say fewer")
    raw = parse_object((layered.folder / "config.json").read_bytes())
    values = {**model.config.to_dict(), **raw}
    said = [tuple(name for name in COUNT_FIELDS if place.get(name) == counts[0]) for place in (raw, values)]
    fields = said[0] or said[1]
    if not fields:
        raise InputError(f"model type {kind!r} cannot be pruned: its config says nowhere that it has {counts[0]} experts")
    chosen = [int(values[n]) for n in ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k") if values.get(n)]
    if not chosen:
        raise InputError(f"model type {kind!r} cannot be pruned: its config does not say how many experts a token has")
    groups = next((int(values[n]) for n in _GROUPS if values.get(n)), 1)
    limit = next((int(values[n]) for n in _CHOSEN if values.get(n)), groups)
    return Banks(model.name, layers, counts[0], chosen[0], groups, limit, fields)


class Cut:
    """A model whose layers keep ``kept`` experts each: its config, its shapes, and how one of its layers is run.

    Raises:
        InputError: no model of the type can be built with so many, or something other than rows would have to be cut.
    """

    def __init__(self, layered: Layered, banks: Banks, kept: int) -> None:
        banks.check(kept)
        self.layered, self.banks, self.kept = layered, banks, kept
        config = copy.deepcopy(layered.model.config)
        for name in banks.fields:
            setattr(config, name, kept)
        self._module = without_weights(config, layered.model.dtype, layered.model.device)
        module: Any = layered.model.module
        body = {id(m): f"{name}." if name else "" for name, m in module.named_modules()}[id(layered.model.body)]
        self.experts = {layer.layer: f"{body}{layer.path}" for layer in banks.layers}
        """layer -> name of its bank of experts in the model"""
        self.rows = self._differing(module.state_dict(), self._module.state_dict())
        """parameters outside the banks of which every row is one expert's"""

    def _differing(self, whole: Mapping[str, Tensor], cut: Mapping[str, Tensor]) -> frozenset[str]:
        found = set()
        kind = self.layered.model.config.model_type
        banks = tuple(f"{path}." for path in self.experts.values())
        blocks = tuple(f"{path.rpartition('.')[0]}." for path in self.experts.values())
        for name, tensor in whole.items():
            other = cut.get(name)
            if not tensor.is_floating_point() and name.startswith(blocks):
                raise InputError(f"model type {kind!r} cannot be pruned: {name} is a table of its experts' numbers")
            if other is not None and other.shape == tensor.shape:
                continue
            rows = (self.banks.n_experts, *tensor.shape[1:]), (self.kept, *tensor.shape[1:])
            if other is None or (tuple(tensor.shape), tuple(other.shape)) != rows:
                raise InputError(f"model type {kind!r} cannot be pruned: {name} is not cut by leaving out rows")
            if not name.startswith(banks):
                found.add(name)
        return frozenset(found)

    def layer_of(self, name: str) -> int | None:
        """Which layer a parameter, or a bank, is of; None: of none."""
        found = (n for n, path in enumerate(self.layered.paths) if name.startswith(f"{path}."))
        return next(found, None)

    def edit(self, keep: Mapping[int, np.ndarray]) -> Edit:
        """The model with the experts ``keep`` (layer -> bool (E,)) alone."""

        @contextmanager
        def run(number: int, layer: Any) -> Iterator[Any]:
            if number not in keep:
                yield layer
                return
            path = self.layered.paths[number]
            rows = torch.from_numpy(np.flatnonzero(keep[number])).to(self.layered.model.device)
            twin = self._module.get_submodule(path)
            bank_name = self.experts[number].removeprefix(f"{path}.")
            bank = layer.get_submodule(bank_name)
            parent, _, leaf = bank_name.rpartition(".")
            holder = twin.get_submodule(parent)
            before = holder._modules[leaf]
            held = _swap(twin, {
                name: value[rows] if f"{path}.{name}" in self.rows else value
                for name, value in layer.state_dict(keep_vars=True).items()
                if not name.startswith(f"{bank_name}.")
            })  # fmt: skip
            holder._modules[leaf] = bank
            handle = bank.register_forward_pre_hook(_renumber(rows), with_kwargs=True)
            try:
                yield twin
            finally:
                handle.remove()
                holder._modules[leaf] = before
                _swap(twin, held)

        return run


def _renumber(rows: Tensor) -> Any:
    """Experts as the cut router numbers them -> as the whole bank does."""

    def hook(_: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        hidden, ids, weights = (*args, *options.values())
        return (hidden, rows[ids.long()].to(ids.dtype), weights), {}

    return hook


def _swap(module: nn.Module, values: Mapping[str, Any]) -> dict[str, Any]:
    """Put ``values`` in the places of a module's parameters and buffers; gives what stood there."""
    before = {}
    for name, value in values.items():
        path, _, leaf = name.rpartition(".")
        owner = module.get_submodule(path)
        place = owner._parameters if leaf in owner._parameters else owner._buffers
        before[name] = place[leaf]
        wrapped = value if isinstance(value, nn.Parameter) or place is owner._buffers else nn.Parameter(value, False)
        place[leaf] = wrapped
    return before
