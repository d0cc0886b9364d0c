"""A prune mask: which experts a model could do without, as a file, with what leaving them out costs."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from moescope.errors import InputError
from moescope.files.atomic import write_atomic
from moescope.files.checkpoint import load_arrays, save_arrays
from moescope.files.parse import parse_object
from moescope.files.remote import local
from moescope.files.seal import seal_holds, sealed_json

FORMAT = "moescope-prune-mask-2"


@dataclass(frozen=True, eq=False)
class PruneMask:
    """Experts to keep and to leave out."""

    keep: dict[int, np.ndarray]
    """true layer number -> bool (E,): True for an expert that stays"""
    meta: dict[str, Any] = field(default_factory=dict)
    """how it was made: model, fingerprint, criterion, ratio, measured loss"""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PruneMask) or self.keep.keys() != other.keep.keys() or self.meta != other.meta:
            return False
        return all(np.array_equal(self.keep[layer], other.keep[layer]) for layer in self.keep)

    __hash__ = None  # type: ignore[assignment]

    @property
    def pruned(self) -> frozenset[tuple[int, int]]:
        """(layer, expert) of all that are left out."""
        return frozenset((layer, int(i)) for layer, keep in self.keep.items() for i in np.flatnonzero(~keep))

    @property
    def ratio(self) -> float:
        """Share of all experts that are left out."""
        return len(self.pruned) / sum(map(len, self.keep.values()))

    @property
    def kept(self) -> int:
        """Experts that stay in each layer.

        Raises:
            InputError: not the same number in all.
        """
        counts = {layer: int(keep.sum()) for layer, keep in self.keep.items()}
        first = next(iter(counts))
        other = next((layer for layer, n in counts.items() if n != counts[first]), None)
        if other is not None:
            raise InputError(
                f"the mask keeps {counts[first]} experts in layer {first} and {counts[other]} in layer {other}: a config has "
                "one number for all layers, so keep as many in each"
            )
        return counts[first]

    def save(self, path: str | Path) -> Path:
        """Write ``PATH.safetensors`` (one uint8 tensor ``layers.L.keep`` a layer, 1 = keep; meta as JSON in its header), or
        ``PATH.json`` with ``{"format", "meta", "keep": {layer: [expert, ...]}, "prune": {...}}``, by the suffix. Both carry
        their checksum.

        Raises:
            InputError: another suffix, the file is there and no mask, or it cannot be written.
        """
        target = Path(path)
        check_target(target)
        if target.suffix == ".safetensors":
            tensors = {f"layers.{layer}.keep": keep.astype(np.uint8) for layer, keep in self.keep.items()}
            save_arrays(target, tensors, {"format": FORMAT, "meta": self.meta})
        else:
            content = {
                "format": FORMAT,
                "meta": self.meta,
                "keep": {str(layer): np.flatnonzero(keep).tolist() for layer, keep in self.keep.items()},
                "prune": {str(layer): np.flatnonzero(~keep).tolist() for layer, keep in self.keep.items()},
            }
            write_atomic(target, sealed_json(content))
        return target

    def write(self, folder: Path, /) -> Path:
        """As an artifact of a result: ``mask.safetensors``."""
        return self.save(folder / "mask.safetensors")

    @classmethod
    def load(cls, path: str | Path) -> PruneMask:
        """Read what :meth:`save` wrote.

        Raises:
            InputError: there is no such file, or it is damaged or something else.
        """
        source = local(path)
        wrong = InputError(f"{source}: this is not a prune mask, or it is damaged; write it again with moescope prune")
        try:
            if source.suffix != ".json":
                tensors, note = load_arrays(source, FORMAT)
                keep = {int(name.split(".")[1]): _flags(tensor) for name, tensor in tensors.items()}
                meta = note["meta"]
            else:
                content = parse_object(source.read_bytes())
                if content["format"] != FORMAT or not seal_holds(source):
                    raise wrong
                keep = {int(layer): _mask(kept, content["prune"][layer]) for layer, kept in content["keep"].items()}
                meta = content["meta"]
            if not isinstance(meta, dict) or not keep or not all(map(len, keep.values())):
                raise wrong
            return cls(dict(sorted(keep.items())), meta)
        except InputError as error:
            raise (wrong if source.is_file() else error) from error
        except OSError as error:
            raise InputError(f"{source}: cannot be read ({error.strerror or error})") from error
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, MemoryError) as error:
            raise wrong from error


def check_target(path: Path) -> None:
    """Refuse a mask's name before any work is done.

    Raises:
        InputError: its suffix is neither .safetensors nor .json, or it is there and no mask.
    """
    if path.suffix not in (".safetensors", ".json"):
        raise InputError(f"{path}: a prune mask is written as .safetensors or .json")
    if os.path.lexists(path):
        try:
            PruneMask.load(path)
        except InputError as error:
            raise InputError(f"{path}: is there already and is no prune mask; name another file") from error


def _flags(stored: np.ndarray) -> np.ndarray:
    if stored.dtype != np.uint8 or stored.ndim != 1 or not len(stored) or stored.max() > 1:
        raise ValueError("not flags, one an expert")
    return stored.astype(bool)


def _mask(kept: list[int], pruned: list[int]) -> np.ndarray:
    if sorted([*kept, *pruned]) != list(range(len(kept) + len(pruned))):
        raise ValueError("experts are missing or named twice")
    mask = np.zeros(len(kept) + len(pruned), dtype=bool)
    mask[kept] = True
    return mask


def prune_mask(
    saliency: dict[int, np.ndarray],
    ratio: float,
    *,
    top_k: int,
    groups: int = 1,
    spared: Collection[tuple[int, int]] = (),
    meta: dict[str, Any] | None = None,
) -> PruneMask:
    """Leave out the least salient ``ratio`` of every layer's experts, the same number in each layer of one size.

    Args:
        saliency: layer -> (E,). Ties fall to the higher expert number.
        top_k: experts per token, which must stay at least.
        groups: of neighbours, of which each loses the same number: where a router chooses groups before experts.
        spared: (layer, expert) that stay whatever their saliency.

    Raises:
        InputError: the ratio is not in [0, 1), leaves fewer than ``top_k``, is no multiple of the groups, or leaves no room
            for what is spared.
    """
    if not 0 <= ratio < 1:
        raise InputError(f"{ratio}: give the share of experts to leave out, from 0 to below 1", "ratio")
    keep = {}
    for layer, values in saliency.items():
        n = round(ratio * len(values))
        if len(values) - n < top_k:
            raise InputError(
                f"{ratio} leaves {len(values) - n} of {len(values)} experts, but each token needs {top_k}", "ratio"
            )
        if n % groups or len(values) % groups:
            raise InputError(f"{ratio} leaves out {n} of {len(values)} experts, which {groups} groups cannot share", "ratio")
        stays = np.array([(layer, e) in spared for e in range(len(values))])
        mask = np.ones(len(values), dtype=bool)
        for part in np.split(np.arange(len(values)), groups):
            least = [e for e in part[::-1][np.argsort(values[part][::-1], kind="stable")] if not stays[e]][: n // groups]
            if len(least) < n // groups:
                raise InputError(
                    f"{ratio} leaves no room for the {stays[part].sum()} experts of layer {layer} that stay", "ratio"
                )
            mask[least] = False
        keep[layer] = mask
    return PruneMask(keep, meta or {})
