"""A checkpoint with fewer experts: the source's own tensors, those of the experts that are left out dropped."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moescope.errors import InputError
from moescope.files.parse import parse_object
from moescope.models.layered.files import Group, expert_number
from moescope.models.layered.write import Written, write_weights
from moescope.runtime.mask import PruneMask
from moescope.studies.prune.cut import Cut

_BESIDE = re.compile(
    r"generation_config\.json|tokenizer.*|vocab.*|merges\.txt|special_tokens_map\.json|added_tokens\.json|chat_template.*"
    r"|.*\.model|tekken\.json|LICENSE.*|NOTICE.*"
)
"""files of a source that are copied as they are"""
_FURTHER = ("num_nextn_predict_layers", "num_mtp_layers")
"""of layers that predict further tokens, which the model does not run and the checkpoint does not have"""


@dataclass(frozen=True)
class Made:
    """What was written."""

    config: dict[str, list[Any]]
    """what changed in config.json: from and to"""
    bytes: int
    """of all tensors"""
    bytes_before: int
    dropped: tuple[str, ...]
    """tensors of the source that the model has no place for, and that the checkpoint does not have"""


def write_pruned(cut: Cut, mask: PruneMask, folder: Path) -> Made:
    """Write the checkpoint that has the mask's experts alone, layer by layer and tensor by tensor, in the source's precision.

    Raises:
        InputError: the mask is of another model, or keeps not as many experts in each layer; or a tensor of the source cannot
            be cut.
    """
    banks, layered = cut.banks, cut.layered
    if mask.kept != cut.kept or {n: len(k) for n, k in mask.keep.items()} != {b.layer: b.n_experts for b in banks.layers}:
        raise InputError(
            f"the mask is not one of {len(banks.layers)} layers of {banks.n_experts} experts: of another model", "mask"
        )
    tensors = [one for group in layered.files.groups.values() for one in _written(cut, mask.keep, group)]
    size = write_weights(folder, tensors)
    raw = parse_object((layered.folder / "config.json").read_bytes())
    homeless = tuple(piece.key for piece in layered.files.homeless)
    changes = dict.fromkeys(banks.fields, cut.kept)
    changes |= {name: 0 for name in _FURTHER if raw.get(name) and any(".experts." in key for key in homeless)}
    before = {name: raw.get(name, banks.n_experts) for name in changes}
    raw = {name: value for name, value in (raw | changes).items() if name != "auto_map"}
    (folder / "config.json").write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
    for file in layered.folder.iterdir():
        if file.is_file() and _BESIDE.fullmatch(file.name):
            shutil.copyfile(file, folder / file.name)
    whole = sum(file.stat().st_size for file in {t.piece.file for t in tensors})
    return Made({name: [before[name], value] for name, value in changes.items()}, size, whole, homeless)


def _written(cut: Cut, keep: Mapping[int, np.ndarray], group: Group) -> list[Written]:
    pieces = [(number, piece) for held in group.pieces.values() for number, piece in enumerate(held)]
    number = cut.layer_of(group.target)
    if number is None or number not in keep:
        return [Written(piece, piece.key) for _, piece in pieces]
    bank = group.target.startswith(f"{cut.experts[number]}.")
    if not (bank or group.target in cut.rows):
        return [Written(piece, piece.key) for _, piece in pieces]
    flags = keep[number]
    if group.by_expert:
        found = []
        for place, piece in pieces:
            before, expert, after = expert_number(piece.key)
            if expert != place:
                raise InputError(f"{piece.file.name}: {piece.key} is tensor {place} of its kind: experts are missing")
            if flags[expert]:
                found.append(Written(piece, f"{before}{int(flags[:expert].sum())}{after}"))
        return found
    rows = tuple(np.flatnonzero(flags).tolist())
    for _, piece in pieces:
        if not piece.shape or piece.shape[0] != len(flags):
            raise InputError(f"{piece.file.name}: {piece.key} of shape {piece.shape} is not {len(flags)} experts' rows")
    return [Written(piece, piece.key, rows) for _, piece in pieces]
