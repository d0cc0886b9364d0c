"""One vector per text and site."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from moescope.capture.encode import Batch, Encoded, PaddingSide, SpecialTokens, batches, encode, pad, padding_id
from moescope.capture.position import Position, check_position, token_index, weights
from moescope.capture.session import Reduce, capture
from moescope.errors import InputError
from moescope.files.atomic import cannot_write, reserve
from moescope.types import Site

if TYPE_CHECKING:
    from moescope.models import LoadedModel

Progress = Callable[[int, int], None]
"""``progress(done_rows, total_rows)``, called after each batch."""


def activations(
    model: LoadedModel,
    texts: Sequence[str] | Encoded,
    sites: Sequence[Site],
    *,
    position: Position = "final",
    skip_special: bool | None = None,
    batch_tokens: int = 8192,
    max_tokens: int | None = None,
    special_tokens: SpecialTokens = "default",
    padding_side: PaddingSide = "right",
    dtype: str = "float32",
    out: str | Path | None = None,
    memory_budget: int = 8 << 30,
    progress: Progress | None = None,
) -> np.ndarray:
    """The vector of each text at each site: float32 (N, S, D), rows in the order of ``texts``.

    Args:
        sites: sites of one width D.
        position, skip_special: see :data:`~moescope.capture.position.Position`. ``"all"`` is refused: use
            :func:`~moescope.capture.moments` or :class:`~moescope.capture.ActivationStore`.
        batch_tokens: rows x longest row of a batch, padding counted.
        dtype: "float32" or "float16".
        out: write to this .npy file and return a read-only memory map of it.
        memory_budget: bytes; a larger result needs ``out``.

    Raises:
        InputError: sites of different widths, a value that is not finite, an empty text, a position that a text does
            not have, or a result over the memory budget.
    """
    if check_position(position) == "all":
        raise InputError('position: "all" has no single vector per text; use moments() or ActivationStore')
    if dtype not in ("float32", "float16"):
        raise InputError(f'dtype: "{dtype}" is not one of "float32", "float16"')
    width = common_width(model, sites)
    encoded = encode(model, texts, max_tokens=max_tokens, special_tokens=special_tokens)
    shape = (len(encoded), len(sites), width)
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if out is None and size > memory_budget:
        raise InputError(
            f"the activations of {shape[0]} texts x {shape[1]} sites x {width} take {size / 2**30:.1f} GiB, more than "
            f"the memory budget of {memory_budget / 2**30:.1f} GiB; give out=FILE.npy, fewer sites, or use moments()"
        )
    settings = {"batch_tokens": batch_tokens, "padding_side": padding_side, "progress": progress}
    if out is None:
        result = np.empty(shape, dtype)
        _fill(result, model, encoded, sites, position, skip_special, settings)
        return result
    return _to_file(
        Path(out), shape, dtype, lambda array: _fill(array, model, encoded, sites, position, skip_special, settings)
    )


def _to_file(path: Path, shape: tuple[int, ...], dtype: str, fill: Callable[[np.ndarray], None]) -> np.ndarray:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    )
    try:
        reserve(temporary, header.tell() + int(np.prod(shape)) * np.dtype(dtype).itemsize)
        with temporary.open("r+b") as file:
            file.write(header.getvalue())
        array = np.memmap(temporary, dtype, mode="r+", offset=header.tell(), shape=shape)
        fill(array)
        array.flush()
        del array
        os.replace(temporary, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)
    return np.lib.format.open_memmap(path, mode="r")


def _fill(
    result: np.ndarray,
    model: LoadedModel,
    encoded: Encoded,
    sites: Sequence[Site],
    position: Position,
    skip_special: bool | None,
    settings: dict[str, Any],
) -> None:
    dtype = torch.float16 if result.dtype == np.float16 else torch.float32
    for batch, vectors in text_vectors(model, encoded, sites, position, skip_special, **settings):
        check_finite(vectors, batch.numbers, sites, model, dtype)
        result[batch.rows] = vectors.numpy()


def text_vectors(
    model: LoadedModel,
    encoded: Encoded,
    sites: Sequence[Site],
    position: Position,
    skip_special: bool | None,
    *,
    batch_tokens: int,
    padding_side: PaddingSide,
    progress: Progress | None,
) -> Iterator[tuple[Batch, torch.Tensor]]:
    """Yield each batch with the float32 vectors (B, S, D) of its texts, on the CPU."""
    done = 0
    with capture(model, sites) as session:
        for batch in padded_batches(model, encoded, batch_tokens, padding_side):
            reduce = vector_reducer(batch, position, skip_special)
            seen = session.run(batch.ids, batch.mask, reduce=reduce)
            yield batch, torch.stack([seen[site].cpu() for site in sites], dim=1)
            done += len(batch.rows)
            if progress is not None:
                progress(done, len(encoded))


def padded_batches(
    model: LoadedModel, encoded: Encoded, batch_tokens: int, side: PaddingSide, start: int = 0
) -> Iterator[Batch]:
    """The length-bucketed batches from number ``start`` on, padded for this model."""
    if side not in ("left", "right"):
        raise InputError(f'padding_side: "{side}" is not one of "left", "right"')
    fill = padding_id(model)
    for rows in batches(encoded.lengths, batch_tokens)[start:]:
        yield pad(encoded, rows, pad_id=fill, side=side)


def vector_reducer(batch: Batch, position: Position, skip_special: bool | None) -> Reduce:
    """A reduction from (B, T, D) to float32 (B, D) on the tensor's device."""
    if position == "mean":
        weight = weights(batch, position, skip_special)
        share = weight / weight.sum(1, keepdim=True)
        counts = weight.bool()
        padded = not bool(counts.all())

        def mean(_: Site, tensor: torch.Tensor) -> torch.Tensor:
            values = tensor.float()
            if padded:  # not a product with zero: what stands at a padded place may be NaN
                values = values.masked_fill(~counts.to(tensor.device)[:, :, None], 0.0)
            return torch.bmm(share.to(tensor.device)[:, None, :], values)[:, 0]

        return mean

    index = token_index(batch, position, skip_special)
    row = torch.arange(len(index))
    return lambda _, tensor: tensor[row.to(tensor.device), index.to(tensor.device)].float()


def common_width(model: LoadedModel, sites: Sequence[Site]) -> int:
    """The width that all sites share.

    Raises:
        InputError: there is no site, or two differ in width.
    """
    if not sites:
        raise InputError("sites: none were given")
    widths = {site: model.width(site) for site in sites}
    first = sites[0]
    for site, width in widths.items():
        if width != widths[first]:
            raise InputError(
                f"sites: {first} has width {widths[first]} but {site} has {width}; read sites of one width at a time"
            )
    return widths[first]


def check_finite(
    vectors: torch.Tensor,
    rows: np.ndarray | torch.Tensor,
    sites: Sequence[Site],
    model: LoadedModel,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Raise where vectors (M, S, D), of texts ``rows`` (M,), hold a NaN, an infinity, or what ``dtype`` cannot hold.

    Raises:
        InputError: naming the site and the row.
    """
    # one pass in the common case: a sum that is finite has finite terms; if not, the slow test decides
    if dtype != torch.float16 and bool(torch.isfinite(vectors.sum())):
        return
    finite = torch.isfinite(vectors)
    bad = ~finite | (vectors.abs() > torch.finfo(dtype).max)
    if not bool(bad.any()):
        return
    row, site = (int(i) for i in bad.any(-1).nonzero()[0])
    if bool(finite[row, site].all()):
        problem = "an activation overflows float16; store it as float32 or bfloat16"
    elif model.dtype == torch.float16:
        problem = "an activation is not finite: float16 overflows in this model; load it in bf16 or fp32"
    else:
        problem = "an activation is not finite; check the model's weights"
    raise InputError(f"site {sites[site]}, text {int(rows[row])}: {problem}")
