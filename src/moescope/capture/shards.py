"""One shard of an activation store: collect it, write it, read a range of its rows."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from moescope.capture.activations import check_finite, padded_batches, vector_reducer
from moescope.capture.encode import Batch, Encoded, PaddingSide
from moescope.capture.manifest import DTYPES, Manifest, Shard, parse_site
from moescope.capture.position import weights
from moescope.capture.session import Reduce, capture
from moescope.capture.spread import Progress
from moescope.errors import InputError
from moescope.files.atomic import write_atomic
from moescope.types import Site

if TYPE_CHECKING:
    from moescope.models import LoadedModel


@dataclass(frozen=True)
class Vectors:
    """Vectors of consecutive texts at one site."""

    values: np.ndarray
    """float32 (vectors, D)"""
    offsets: np.ndarray
    """int64 (texts + 1,): text i has rows offsets[i] to offsets[i + 1] of ``values``: one, unless every token was
    kept"""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        """float32 (vectors of the text, D)"""
        if not 0 <= row < len(self):
            raise IndexError(row)
        return self.values[self.offsets[row] : self.offsets[row + 1]]


def shard_tensors(
    model: LoadedModel,
    encoded: Encoded,
    manifest: Manifest,
    batch_tokens: int,
    side: PaddingSide,
    progress: Progress | None,
) -> dict[str, torch.Tensor]:
    """Run the model on the texts of one shard: per site (vectors, D) in the store's dtype, and ``offsets`` (texts +
    1,).

    Raises:
        InputError: a text has no such token, or an activation is not finite or too large for the store's dtype.
    """
    sites = [parse_site(text) for text in manifest.sites]
    dtype = DTYPES[manifest.dtype]
    lengths = np.ones(len(encoded), np.int64)
    if manifest.position == "all":
        lengths = encoded.lengths
        if manifest.skip_special:
            lengths = np.add.reduceat(~encoded.special, encoded.offsets[:-1], dtype=np.int64)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    tensors = {
        name: torch.empty(int(offsets[-1]), width, dtype=dtype)
        for name, width in zip(manifest.sites, manifest.widths, strict=True)
    }
    done = 0
    with capture(model, sites) as session:
        for batch in padded_batches(model, encoded, batch_tokens, side):
            seen = session.run(batch.ids, batch.mask, reduce=_reducer(batch, manifest))
            # where the batch's vectors lie in the shard, text after text
            place = torch.cat([torch.arange(int(offsets[row]), int(offsets[row + 1])) for row in batch.rows])
            numbers = np.repeat(batch.numbers, lengths[batch.rows])
            for site in sites:
                vectors = seen[site].cpu()
                check_finite(vectors[:, None], numbers, [site], model, dtype)
                tensors[str(site)][place] = vectors.to(dtype)
            done += len(batch.rows)
            if progress is not None:
                progress(done, len(encoded))
    return tensors | {"offsets": torch.from_numpy(offsets)}


def _reducer(batch: Batch, manifest: Manifest) -> Reduce:
    """Keep the wanted vectors of a batch, text after text: float32 (vectors, D)."""
    if manifest.position != "all":
        return vector_reducer(batch, manifest.position, manifest.skip_special)  # type: ignore[arg-type]
    keep = weights(batch, "all", manifest.skip_special).bool()
    return lambda _, tensor: tensor[keep.to(tensor.device)].float()


def write_shard(folder: Path, number: int, tensors: dict[str, torch.Tensor], manifest: Manifest) -> Shard:
    """Write a shard whole or not at all.

    Raises:
        InputError: the disk is full or cannot be written to.
    """
    # one entry: safetensors writes several in an order that changes from run to run, and the file's digest with it
    note = {"fingerprint": manifest.fingerprint, "format": manifest.format, "number": number}
    data = save(tensors, {"moescope": json.dumps(note)})
    name = f"shard-{number:05d}.safetensors"
    size = write_atomic(folder / name, [data])
    offsets = tensors["offsets"]
    return Shard(name, len(offsets) - 1, int(offsets[-1]), size, hashlib.sha256(data).hexdigest())


def read_shard(folder: Path, shard: Shard, site: Site, width: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Texts ``start`` to ``stop`` of a shard, through a memory map: float32 (vectors, width), and int64 vectors per text.

    Raises:
        InputError: the shard cannot be read.
    """
    path = folder / shard.file
    try:
        with safe_open(str(path), "pt") as file:
            offsets = _offsets(file.get_tensor("offsets").numpy(), shard)
            part = file.get_slice(str(site))
            if part.get_shape() != [shard.vectors, width]:
                raise ValueError(f"{site} has shape {part.get_shape()}, not {[shard.vectors, width]}")
            values = part[int(offsets[start]) : int(offsets[stop])].float().numpy()
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise InputError(f"{path}: damaged shard ({error}); delete the store and collect it again") from error
    if not np.isfinite(values).all():
        raise InputError(f"{path}: {site} holds values that are not finite; delete the store and collect it again")
    return values, np.diff(offsets[start : stop + 1])


def read_lengths(folder: Path, shard: Shard) -> np.ndarray:
    """int64 (texts,): vectors of each text of a shard.

    Raises:
        InputError: the shard cannot be read.
    """
    path = folder / shard.file
    try:
        with safe_open(str(path), "np") as file:
            return np.diff(_offsets(file.get_tensor("offsets"), shard))
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"{path}: damaged shard ({error}); delete the store and collect it again") from error


def _offsets(found: np.ndarray, shard: Shard) -> np.ndarray:
    whole = found.dtype == np.int64 and found.shape == (shard.texts + 1,)
    if not whole or found[0] != 0 or found[-1] != shard.vectors or (np.diff(found) < 0).any():
        raise ValueError(f"its offsets are not those of {shard.texts} texts and {shard.vectors} vectors")
    return found
