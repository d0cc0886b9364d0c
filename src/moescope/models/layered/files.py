"""Which tensors of a checkpoint's files each parameter of a model is made of, and how it is filled from them alone.

What is called how in the files, and how it becomes the model's parameters, is transformers' own table of conversions: experts
that lie one by one in the files are one tensor in the model. That table is asked for the names, and the experts' parameters are
filled expert by expert, so that nothing is held twice.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    build_glob_alternation,
    dot_natural_key,
    rename_source_key,
)


@dataclass(frozen=True)
class Piece:
    """One tensor in the files."""

    key: str
    file: Path
    shape: tuple[int, ...]


@dataclass(eq=False)
class Group:
    """What one parameter is made of."""

    target: str
    """the parameter's name in the model; the first, where there are several"""
    converter: Any
    """transformers' WeightConverter; None where the one piece is the parameter"""
    pieces: dict[str, list[Piece]] = field(default_factory=dict)
    """by the converter's pattern; experts in the order of their numbers"""

    @property
    def by_expert(self) -> bool:
        """Whether every piece is of one expert."""
        return self.converter is not None and type(self.converter.operations[0]) is MergeModulelist

    @property
    def in_place(self) -> bool:
        """Whether pieces can be copied to their places in the parameter one by one."""
        kinds = [(type(op), op.dim) for op in self.converter.operations] if self.by_expert else []
        return self.converter is None or kinds in ([(MergeModulelist, 0)], [(MergeModulelist, 0), (Concatenate, 1)])


class WeightFiles:
    """The weights of ``module``, whose parameters are on the meta device, in safetensors files."""

    def __init__(self, files: Iterable[Path], module: Any, device: torch.device) -> None:
        self._module, self._device = module, device
        self._known: dict[str, Tensor] = module.state_dict()
        plan = module._get_dtype_plan(module.dtype)  # of what stays in 32 bits
        self._full = build_glob_alternation(list(plan))[0] if plan else None
        mapping = get_model_conversion_mapping(module)
        renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
        self.groups: dict[str, Group] = {}
        """by the parameter's name"""
        self.homeless: list[Piece] = []
        """tensors that the model has no place for"""
        for piece in _pieces(files):
            at: Any = (module.base_model_prefix, self._known)
            name, pattern = rename_source_key(piece.key, renamings, converters, *at)
            if name not in self._known and piece.key in self._known:
                name, pattern = piece.key, None
            if name not in self._known:
                self.homeless.append(piece)
                continue
            group = self.groups.setdefault(name, Group(name, by_pattern.get(pattern or "")))
            group.pieces.setdefault(pattern or "", []).append(piece)

    def missing(self) -> list[str]:
        """Parameters that no file holds, the tied ones left out."""
        tied = set(getattr(self._module, "all_tied_weights_keys", None) or ())
        made = {name for group in self.groups.values() for name in self._targets(group)}
        return [name for name in self._known if name not in made and name not in tied]

    def fill(self, wanted: Iterable[Group]) -> list[str]:
        """Put what these groups make into the module, and say its names."""
        done = []
        with ExitStack() as stack:
            opened: dict[Path, Any] = {}
            for group in wanted:
                for pieces in group.pieces.values():
                    for piece in pieces:
                        if piece.file not in opened:  # read, not mapped: pages that were read would stay in memory
                            handle = safe_open(piece.file, framework="pt", device="cpu", backend="pread")
                            opened[piece.file] = stack.enter_context(handle)
                for name, value in self._made(group, opened).items():
                    self.put(name, value)
                    done.append(name)
        return done

    def empty(self, names: Iterable[str]) -> None:
        """Let go of what :meth:`fill` put there."""
        for name in names:
            self.put(name, self._known[name])

    def put(self, name: str, value: Tensor) -> None:
        """``value`` as the parameter, or buffer, of that name."""
        path, _, leaf = name.rpartition(".")
        owner = self._module.get_submodule(path)
        if leaf in owner._parameters:
            owner._parameters[leaf] = nn.Parameter(value, requires_grad=False)
        else:
            owner._buffers[leaf] = value

    def _dtype(self, name: str) -> torch.dtype:
        return torch.float32 if self._full is not None and self._full.search(name) else self._known[name].dtype

    def _made(self, group: Group, opened: dict[Path, Any]) -> dict[str, Tensor]:
        dtype = self._dtype(group.target)
        if not group.in_place:
            converter = copy.deepcopy(group.converter)
            for pattern, pieces in group.pieces.items():
                for piece in pieces:
                    value = opened[piece.file].get_tensor(piece.key).to(self._device, dtype)
                    converter.add_tensor(group.target, piece.key, pattern, value)
            made = converter.convert(group.target, model=self._module, config=self._module.config)
            return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}
        whole = torch.empty(self._known[group.target].shape, dtype=dtype, device=self._device)
        if group.converter is None:
            (piece,) = group.pieces[""]
            _copy(whole, opened[piece.file], piece)
            return {group.target: whole}
        start = 0
        for pattern in group.converter.source_patterns:
            width = 0
            for number, piece in enumerate(group.pieces.get(pattern, ())):
                width = piece.shape[0]
                _copy(whole[number, start : start + width], opened[piece.file], piece)
            start += width
        return {group.target: whole}

    def _targets(self, group: Group) -> list[str]:
        if group.converter is None or len(group.converter.target_patterns) == 1:
            return [group.target]
        first, *others = group.converter.target_patterns
        return [group.target, *(group.target.replace(first, other) for other in others)]


def _pieces(files: Iterable[Path]) -> list[Piece]:
    found = []
    for file in files:
        with safe_open(file, framework="pt", device="cpu", backend="pread") as handle:
            for key in handle.keys():  # noqa: SIM118
                found.append(Piece(key, file, tuple(handle.get_slice(key).get_shape())))
    return sorted(found, key=lambda piece: dot_natural_key(piece.key))


_AT_ONCE = 1 << 24
"""numbers of a tensor that are read at once"""


def _copy(out: Tensor, handle: Any, piece: Piece) -> None:
    """What is stored into ``out``, a slice at a time: one of another precision would stand beside it as a whole."""
    if tuple(out.shape) != piece.shape:
        raise ValueError(f"{piece.key} is {piece.shape}, where {tuple(out.shape)} is wanted")
    if not piece.shape or out.numel() <= _AT_ONCE:
        out.copy_(handle.get_tensor(piece.key))
        return
    part = handle.get_slice(piece.key)
    step = max(1, _AT_ONCE // (out.numel() // piece.shape[0]))
    for start in range(0, piece.shape[0], step):
        end = min(start + step, piece.shape[0])
        out[start:end].copy_(part[start:end])


def expert_number(key: str) -> tuple[str, int, str]:
    """The key of an expert's own tensor, taken apart around the expert's number.

    Raises:
        ValueError: it has none.
    """
    found = re.search(r"^(.*\bexperts\.)(\d+)(\..*)$", key)
    if found is None:
        raise ValueError(f"{key} names no expert")
    return found[1], int(found[2]), found[3]
