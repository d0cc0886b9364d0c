"""Means and variances per class and fold, gathered in one pass over the texts and never the activations themselves.

Counts, means and sums of squared deviations are merged pairwise (T. F. Chan, G. H. Golub, R. J. LeVeque, "Updating
formulae and a pairwise algorithm for computing sample variances", 1979), so parts may be collected on different
machines.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from moescope.capture.activations import batches_for, check_finite, common_width
from moescope.capture.encode import Batch, Encoded, PaddingSide, encode
from moescope.capture.manifest import parse_site
from moescope.capture.position import Position, check_position
from moescope.capture.reduce import RowMoments, RowReducer
from moescope.capture.session import capture
from moescope.capture.spread import Progress, read_batches
from moescope.errors import InputError
from moescope.files.checkpoint import Damaged, check_arrays, load_arrays, run_id, save_arrays
from moescope.models.reading import SpecialTokens
from moescope.models.sites import parse_sites
from moescope.types import Site

if TYPE_CHECKING:
    from moescope.models import LoadedModel, SitesLike

_FORMAT = "moescope-moments-1"


class ClassMoments(NamedTuple):
    """Moments of each class, folds put together."""

    n: np.ndarray
    """int64 (C,): vectors seen"""
    mean: np.ndarray
    """float64 (C, S, D)"""
    m2: np.ndarray
    """float64 (C, S, D): sum of squared deviations from the mean"""

    def variance(self, ddof: int = 0) -> np.ndarray:
        """float64 (C, S, D); NaN for a class with no more than ``ddof`` vectors."""
        n = self.n[:, None, None].astype(np.float64)
        return np.asarray(np.divide(self.m2, n - ddof, out=np.full_like(self.m2, np.nan), where=n > ddof))


@dataclass(frozen=True)
class Moments:
    """Moments per fold, class, site and coordinate. Merging is associative and commutative up to rounding in
    float64."""

    n: np.ndarray
    """int64 (F, C): vectors seen"""
    mean: np.ndarray
    """float64 (F, C, S, D)"""
    m2: np.ndarray
    """float64 (F, C, S, D): sum of squared deviations from the mean"""
    sites: tuple[Site, ...] = ()
    """the S sites, in order"""

    @classmethod
    def zeros(cls, folds: int, classes: int, sites: Sequence[Site], width: int) -> Moments:
        """No vector seen yet."""
        shape = (folds, classes, len(sites), width)
        return cls(np.zeros(shape[:2], np.int64), np.zeros(shape), np.zeros(shape), tuple(sites))

    def merge(self, other: Moments) -> Moments:
        """The moments of both sets of vectors together; a fold or class that one of them never saw counts as empty there.

        Raises:
            InputError: the two were taken at different sites or have different widths.
        """
        if self.mean.shape[2:] != other.mean.shape[2:] or self.sites != other.sites:
            raise InputError(
                f"moments: cannot merge those of sites {', '.join(map(str, self.sites))} x {self.mean.shape[-1]} with those "
                f"of {', '.join(map(str, other.sites))} x {other.mean.shape[-1]}; collect both at the same sites"
            )
        shape = tuple(np.maximum(self.n.shape, other.n.shape))
        a, b = self._grown(shape), other._grown(shape)
        n = a.n + b.n
        share = np.divide(b.n, n, out=np.zeros(n.shape), where=n > 0)[..., None, None]
        delta = b.mean - a.mean
        m2 = a.m2 + b.m2 + delta**2 * (a.n[..., None, None] * share)
        # where the left part is empty the mean is the right part's exactly, with no rounding from the difference
        mean = np.where(share == 1.0, b.mean, a.mean + delta * share)
        return replace(self, n=n, mean=mean, m2=m2)

    def _grown(self, shape: tuple[int, ...]) -> Moments:
        """With empty folds and classes added, up to ``shape`` (F, C)."""
        more = [(0, wanted - here) for wanted, here in zip(shape, self.n.shape, strict=True)]
        if not np.any(more):
            return self
        mean, m2 = (np.pad(array, [*more, (0, 0), (0, 0)]) for array in (self.mean, self.m2))
        return replace(self, n=np.pad(self.n, more), mean=mean, m2=m2)

    def update(self, rows: RowMoments, labels: np.ndarray, folds: np.ndarray) -> Moments:
        """Add texts with labels (B,) and folds (B,), each summed up already in ``rows``."""
        return self.merge(self._part(rows, labels, folds))

    def _part(self, rows: RowMoments, labels: np.ndarray, folds: np.ndarray) -> Moments:
        """These texts alone."""
        n_folds, n_classes = self.n.shape
        group = folds * n_classes + labels  # (B,)
        member = torch.from_numpy(np.eye(n_folds * n_classes)[:, group])  # float64 (F·C, B)
        count = rows.n.double()  # (B,)
        total = member @ count  # (F·C,)
        weighted = member * count
        flat = rows.mean.double().flatten(1)  # (B, S·D)
        mean = (weighted @ flat) / total.clamp(min=1.0)[:, None]
        m2 = member @ rows.m2.double().flatten(1)
        m2 += weighted @ (flat - mean[torch.from_numpy(group)]).square_()
        return replace(
            self,
            n=total.round().long().numpy().reshape(self.n.shape),
            mean=mean.numpy().reshape(self.mean.shape),
            m2=m2.numpy().reshape(self.m2.shape),
        )

    def fold(self, fold: int) -> ClassMoments:
        """One fold alone (the held-out part)."""
        return ClassMoments(self.n[fold], self.mean[fold], self.m2[fold])

    def train(self, fold: int) -> ClassMoments:
        """All folds but one."""
        return self._together([f for f in range(len(self.n)) if f != fold])

    def total(self) -> ClassMoments:
        """All folds."""
        return self._together(list(range(len(self.n))))

    def _together(self, folds: list[int]) -> ClassMoments:
        n = self.n[folds].sum(0)  # (C,)
        weight = self.n[folds][:, :, None, None]  # (F', C, 1, 1)
        mean = (weight * self.mean[folds]).sum(0) / np.maximum(n, 1)[:, None, None]
        m2 = (self.m2[folds] + weight * (self.mean[folds] - mean) ** 2).sum(0)
        return ClassMoments(n, mean, m2)

    def save(self, path: str | Path) -> None:
        """Write to one safetensors file, atomically."""
        meta = {"format": _FORMAT, "sites": [str(site) for site in self.sites]}
        save_arrays(Path(path), {"n": self.n, "mean": self.mean, "m2": self.m2}, meta)

    @classmethod
    def load(cls, path: str | Path) -> Moments:
        """Read what :meth:`save` wrote.

        Raises:
            InputError: the file is missing, damaged, or of another kind.
        """
        arrays, meta = load_arrays(Path(path), _FORMAT)
        try:
            sites = tuple(map(parse_site, meta["sites"]))
        except (ValueError, TypeError, KeyError) as error:
            raise Damaged(Path(path), f"its sites cannot be read ({error})") from error
        return cls(*_state(Path(path), arrays, sites), sites)


def moments(
    model: LoadedModel,
    texts: Sequence[str] | Encoded,
    sites: SitesLike,
    labels: Sequence[int] | np.ndarray,
    folds: Sequence[int] | np.ndarray | None = None,
    *,
    position: Position = "final",
    skip_special: bool | None = None,
    batch_tokens: int = 8192,
    max_tokens: int | None = None,
    special_tokens: SpecialTokens | None = None,
    padding_side: PaddingSide = "right",
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 50,
    progress: Progress | None = None,
) -> Moments:
    """Moments of the activations by class and fold, in memory that does not grow with the number of texts.

    Args:
        labels: (N,) classes 0..C-1.
        folds: (N,) held-out fold of each text, 0..F-1; None puts all in one fold.
        position: "final", "mean" or an int give one vector per text; "all" counts every token as a vector.
        checkpoint: a file that holds the state after every ``checkpoint_every`` batches. A run that finds it goes on
            from there and ends with the same result bit for bit; when the file holds a finished run it is read and
            nothing is computed.

    Raises:
        InputError: sites of different widths, labels or folds that do not fit the texts, an activation that is not
            finite, an empty text, or a checkpoint of another model, text, label, site or setting.
    """
    check_position(position)
    sites = parse_sites(sites, model)
    width = common_width(model, sites)
    encoded = encode(model, texts, max_tokens=max_tokens, special_tokens=special_tokens)
    label = _codes("labels", labels, len(encoded))
    fold = _codes("folds", np.zeros(len(encoded), np.int64) if folds is None else folds, len(encoded))
    state = Moments.zeros(int(fold.max(initial=0)) + 1, int(label.max(initial=0)) + 1, sites, width)
    groups = batches_for(model, encoded.lengths, batch_tokens, padding_side)

    path = None if checkpoint is None else Path(checkpoint)
    meta = {"format": _FORMAT, "sites": [str(site) for site in sites]}
    done = 0
    if path is not None:
        if checkpoint_every < 1:
            raise InputError(f"checkpoint_every: {checkpoint_every} is not a positive number of batches")
        settings = [str(position), str(skip_special), batch_tokens, padding_side, meta["sites"], str(model.dtype)]
        meta |= run_id(model.fingerprint, encoded.sha256, settings, label, fold)
        if path.exists():
            arrays, saved = load_arrays(path, _FORMAT, expected=meta)
            n, mean, m2 = _state(path, arrays, sites)
            at = saved.get("batches")
            if mean.shape != state.mean.shape or type(at) is not int or not 0 <= at <= len(groups):
                raise Damaged(path, f"it is at batch {str(at)[:20]} of {len(groups)}, with moments of shape {mean.shape}")
            done = at
            state = replace(state, n=n, mean=mean, m2=m2)
    rows_done = sum(len(rows) for rows in groups[:done])
    if progress is not None and done:
        progress(rows_done, len(encoded))
    if done == len(groups):
        return state

    none = Moments.zeros(len(state.n), state.n.shape[1], sites, width)
    read = partial(_read, none=none, label=label, fold=fold, position=position, skip_special=skip_special)
    if path is not None:
        model = replace(model, spread=None)  # a checkpoint counts batches, which other processes do not give in order
    for rows, part in read_batches(model, encoded, groups[done:], padding_side, read):
        state = state.merge(part)
        done += 1
        rows_done += len(rows)
        if path is not None and (done % checkpoint_every == 0 or done == len(groups)):
            save_arrays(path, {"n": state.n, "mean": state.mean, "m2": state.m2}, meta | {"batches": done})
        if progress is not None:
            progress(rows_done, len(encoded))
    return state


def _read(
    model: LoadedModel, batches: Iterable[Batch], *, none: Moments, label: np.ndarray, fold: np.ndarray,
    position: Position, skip_special: bool | None,
) -> Iterator[Moments]:  # fmt: skip
    """Each batch's moments alone. Those of any parts, merged in any order, are the same to rounding in float64."""
    with capture(model, none.sites) as session:
        for batch in batches:
            reducer = RowReducer(batch, position, skip_special)
            rows = reducer.collect(session.run(batch.ids, batch.mask, reduce=reducer), none.sites)
            check_finite(rows.mean, batch.numbers, none.sites, model)
            check_finite(rows.m2, batch.numbers, none.sites, model)
            yield none._part(rows, label[batch.rows], fold[batch.rows])


def _state(path: Path, arrays: dict[str, np.ndarray], sites: Sequence[Site]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a file holds of counts, means and squares, checked."""
    folds = arrays["n"].shape if arrays.get("n", np.zeros(0)).ndim == 2 else (None, None)
    width = arrays["mean"].shape[-1] if arrays.get("mean", np.zeros(0)).ndim == 4 else None
    check_arrays(path, arrays, {"n": folds, **dict.fromkeys(("mean", "m2"), (*folds, len(sites), width))})
    if arrays["n"].dtype != np.int64 or arrays["mean"].dtype != np.float64 or arrays["m2"].dtype != np.float64:
        raise Damaged(path, "its numbers are of another type")
    return arrays["n"], arrays["mean"], arrays["m2"]


def _codes(name: str, values: Sequence[int] | np.ndarray, size: int) -> np.ndarray:
    codes = np.asarray(values)
    if codes.shape != (size,):
        raise InputError(f"{name}: shape {codes.shape}, but there are {size} texts; give one number per text")
    if codes.dtype.kind not in "iub" or (size and codes.min() < 0):
        raise InputError(f"{name}: must be whole numbers from 0")
    return codes.astype(np.int64)
