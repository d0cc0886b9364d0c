"""One vector per text and site."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from moescope.capture.encode import Batch, Encoded, PaddingSide, batches, encode, pad
from moescope.capture.position import Position, check_position, token_index, weights
from moescope.capture.session import Reduce, capture
from moescope.capture.spread import Progress, read_batches
from moescope.errors import InputError
from moescope.files.memory import empty_array
from moescope.models.inputs import padding_id
from moescope.models.reading import SpecialTokens
from moescope.models.sites import parse_sites
from moescope.types import Site

if TYPE_CHECKING:
    from moescope.models import LoadedModel, SitesLike


def activations(
    model: LoadedModel,
    texts: Sequence[str] | Encoded,
    sites: SitesLike,
    *,
    position: Position = "final",
    skip_special: bool | None = None,
    batch_tokens: int = 8192,
    max_tokens: int | None = None,
    special_tokens: SpecialTokens | None = None,
    padding_side: PaddingSide = "right",
    progress: Progress | None = None,
) -> np.ndarray:
    """The vector of each text at each site: float32 (N, S, D), rows in the order of ``texts``.

    What is too large for memory is kept in a temporary file, see :func:`moescope.files.memory.empty_array`.

    Args:
        sites: sites of one width D.
        position, skip_special: see :data:`~moescope.capture.position.Position`. ``"all"`` is refused: use
            :func:`~moescope.capture.moments` or :class:`~moescope.capture.ActivationStore`.
        batch_tokens: rows x longest row of a batch, padding counted.

    Raises:
        InputError: sites of different widths, a value that is not finite, an empty text, or a position that a text does
            not have.
    """
    if check_position(position) == "all":
        raise InputError('position: "all" has no single vector per text; use moments() or ActivationStore')
    sites = parse_sites(sites, model)
    width = common_width(model, sites)
    encoded = encode(model, texts, max_tokens=max_tokens, special_tokens=special_tokens)
    result = empty_array(len(encoded), len(sites) * width, "activations").reshape(len(encoded), len(sites), width)
    out = {(site, position): result[:, i] for i, site in enumerate(sites)}
    read_into(
        out, model, encoded, skip_special=skip_special, batch_tokens=batch_tokens, side=padding_side, progress=progress
    )  # fmt: skip
    return result


def read_into(
    out: Mapping[tuple[Site, Position], np.ndarray],
    model: LoadedModel,
    encoded: Encoded,
    *,
    batch_tokens: int,
    skip_special: bool | None = None,
    side: PaddingSide = "right",
    progress: Progress | None = None,
) -> None:
    """Fill arrays (N, width), float32, each with one site's vectors at one position, in one pass over N texts.

    Raises:
        InputError: a position that a text does not have, or an activation that is not finite.
    """
    places = tuple(out)
    read = partial(_read, places=places, skip_special=skip_special)
    size = 4 * sum(model.width(site) for site, _ in places)
    groups = batches_for(model, encoded.lengths, batch_tokens, side)
    for rows, found in read_batches(model, encoded, groups, side, read, row_bytes=size, progress=progress):
        for place, vectors in zip(places, found, strict=True):
            out[place][rows] = vectors


def _read(
    model: LoadedModel, batches: Iterable[Batch], *, places: Sequence[tuple[Site, Position]], skip_special: bool | None
) -> Iterator[list[np.ndarray]]:
    """Of each batch float32 (B, width) at every place."""
    positions: dict[Site, list[Position]] = {}
    for site, position in places:
        positions.setdefault(site, []).append(position)
    with capture(model, list(positions)) as session:
        for batch in batches:
            reducers = {position: vector_reducer(batch, position, skip_special) for _, position in places}

            def reduce(
                site: Site, tensor: torch.Tensor, reducers: dict[Position, Reduce] = reducers
            ) -> dict[Position, torch.Tensor]:
                return {position: reducers[position](site, tensor).cpu() for position in positions[site]}

            seen = session.run(batch.ids, batch.mask, reduce=reduce)
            for site, position in places:
                check_finite(seen[site][position][:, None], batch.numbers, [site], model)
            yield [seen[site][position].numpy() for site, position in places]


def padded_batches(model: LoadedModel, encoded: Encoded, batch_tokens: int, side: PaddingSide) -> Iterator[Batch]:
    """The length-bucketed batches, padded for this model."""
    fill = padding_id(model)
    for rows in batches_for(model, encoded.lengths, batch_tokens, side):
        yield pad(encoded, rows, pad_id=fill, side=side)


def batches_for(model: LoadedModel, lengths: np.ndarray, batch_tokens: int, side: PaddingSide) -> list[np.ndarray]:
    """:func:`~moescope.capture.encode.batches`, of one text each where a text's activations depend on what is beside it."""
    if side not in ("left", "right"):
        raise InputError(f'padding_side: "{side}" is not one of "left", "right"')
    groups = batches(lengths, batch_tokens)
    return [
        part
        for rows in groups
        for part in ([rows] if model.batching.allows(side, int(lengths[rows[0]])) else np.split(rows, len(rows)))
    ]


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
