"""Activations on disk, for when the activations themselves are wanted.

A store is a folder of safetensors shards and a ``manifest.json``, written last. Each shard holds consecutive texts in
the order given. Until the manifest is there the store is unfinished: it can be resumed but not read.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from moescope.capture.encode import Encoded, PaddingSide, encode
from moescope.capture.manifest import FINISHED, UNFINISHED, Manifest, chain, check_contents, check_shard, parse_site
from moescope.capture.position import Position
from moescope.capture.shards import Vectors, read_shard, shard_tensors, write_shard
from moescope.capture.spread import Progress
from moescope.errors import InputError
from moescope.files.folder import system_errors
from moescope.files.remote import local, publish
from moescope.models.reading import SpecialTokens
from moescope.models.sites import parse_sites
from moescope.types import Site

if TYPE_CHECKING:
    from moescope.models import LoadedModel, SitesLike


class ActivationStore:
    """A folder of activations; made by :meth:`create`, :meth:`resume` (to write), :meth:`open` (to read), or all of it
    at once by :meth:`collect`."""

    def __init__(self, path: Path, manifest: Manifest, model: LoadedModel | None, writable: bool, verify: bool) -> None:
        self.path = path
        self.manifest = manifest
        self.sites: tuple[Site, ...] = tuple(parse_site(text) for text in manifest.sites)
        self._model = model
        self._writable = writable
        self._verify = verify
        self._verified: set[str] = set()

    @classmethod
    def create(
        cls,
        path: str | Path,
        model: LoadedModel,
        sites: SitesLike,
        *,
        position: Position = "all",
        dtype: str = "float16",
        skip_special: bool | None = None,
        special_tokens: SpecialTokens | None = None,
        max_tokens: int | None = None,
    ) -> ActivationStore:
        """Begin a store. :meth:`append` adds texts, :meth:`finish` makes it readable; as a context manager it finishes
        itself on leaving without an error.

        Args:
            dtype: "float32", "float16" or "bfloat16", as kept on disk.

        Raises:
            InputError: there is a store already, or the folder cannot be made.
        """
        folder = local(path)
        if (folder / FINISHED).exists() or (folder / UNFINISHED).exists():
            state = "a store" if (folder / FINISHED).exists() else "an unfinished store"
            raise InputError(f"{folder}: {state} is there already; resume it, delete it or choose another folder")
        return cls._begin(folder, model, parse_sites(sites, model), position, dtype, skip_special, special_tokens, max_tokens)

    @classmethod
    def resume(cls, path: str | Path, model: LoadedModel) -> ActivationStore:
        """Go on writing: an unfinished store after a kill, or a finished one to append to. ``len(store)`` texts are in.

        A shard that was cut short by the kill is not part of the store and is written anew.

        Raises:
            InputError: there is no store, a shard is missing, truncated or foreign, or the model is another one.
        """
        folder = local(path)
        source = folder / (UNFINISHED if (folder / UNFINISHED).exists() else FINISHED)
        if not source.exists():
            raise InputError(f"{folder}: no store of activations there; create one")
        manifest = Manifest.read(source)
        manifest.check_model(model, folder)
        for shard in manifest.shards:
            check_shard(folder, shard, manifest.fingerprint)
        for leftover in folder.glob(".*.tmp"):  # of a killed process
            leftover.unlink()
        return cls(folder, manifest, model, writable=True, verify=False)

    @classmethod
    def open(cls, path: str | Path, model: LoadedModel | None = None, *, verify: bool = True) -> ActivationStore:
        """Read a finished store.

        Args:
            model: if given, the store must have been made with it.
            verify: compare a shard's checksum when it is first read.

        Raises:
            InputError: the store is unfinished or not there, a shard is missing, truncated or foreign, or the model is
                another one.
        """
        folder = local(path)
        if not (folder / FINISHED).exists():
            if (folder / UNFINISHED).exists() or any(folder.glob("shard-*.safetensors")):
                raise InputError(f"{folder}: the store is unfinished (no {FINISHED}); resume it, or delete it and begin anew")
            raise InputError(f"{folder}: no store of activations there (no {FINISHED})")
        manifest = Manifest.read(folder / FINISHED)
        if model is not None:
            manifest.check_model(model, folder)
        for shard in manifest.shards:
            check_shard(folder, shard, manifest.fingerprint)
        return cls(folder, manifest, None, writable=False, verify=verify)

    @classmethod
    def collect(
        cls,
        path: str | Path,
        model: LoadedModel,
        texts: Sequence[str] | Encoded,
        sites: SitesLike,
        *,
        position: Position = "all",
        dtype: str = "float16",
        skip_special: bool | None = None,
        special_tokens: SpecialTokens | None = None,
        max_tokens: int | None = None,
        shard_texts: int = 1024,
        batch_tokens: int = 8192,
        progress: Progress | None = None,
    ) -> ActivationStore:
        """Create or resume, append all ``texts`` and finish; returns the store opened for reading. Run again after a
        kill it goes on from the last whole shard, and run again after success it only opens.

        Raises:
            InputError: as :meth:`create`, :meth:`resume` and :meth:`append`, or the folder holds a store of other
                texts, sites or settings.
        """
        folder, sites = local(path), parse_sites(sites, model)
        settings = (position, dtype, skip_special, special_tokens, max_tokens)
        if (folder / FINISHED).exists() or (folder / UNFINISHED).exists():
            store = cls.resume(folder, model)
            store.manifest.check_same(Manifest.describe(model, sites, *settings), folder)
            store._check_texts(texts)
        else:
            store = cls._begin(folder, model, sites, *settings)
        done = len(store)
        if done < len(texts) or not (folder / FINISHED).exists():
            shifted = None if progress is None else partial(_shift, progress, done, len(texts))
            rest = texts.rows(done, len(texts)) if isinstance(texts, Encoded) else texts[done:]
            store.append(rest, shard_texts=shard_texts, batch_tokens=batch_tokens, progress=shifted)
            store.finish()
        return cls.open(folder, model)

    def append(
        self,
        texts: Sequence[str] | Encoded,
        *,
        shard_texts: int = 1024,
        batch_tokens: int = 8192,
        padding_side: PaddingSide = "right",
        progress: Progress | None = None,
    ) -> None:
        """Run the model on ``texts`` and write their activations, one shard for every ``shard_texts`` of them. A shard
        is held in memory until it is written.

        Raises:
            InputError: the store is read-only, a text is empty, an activation is not finite or overflows float16, or
                the disk is full. Whole shards stay and :meth:`resume` goes on behind them.
        """
        if not self._writable or self._model is None:
            raise InputError(f"{self.path}: the store is open for reading; use resume() to add to it")
        if shard_texts < 1:
            raise InputError(f"shard_texts: {shard_texts} is not a positive number of texts")
        total = len(texts)
        for start in range(0, total, shard_texts):
            stop = min(start + shard_texts, total)
            encoded = self._encode(texts, start, stop)
            shifted = None if progress is None else partial(_shift, progress, start, total)
            tensors = shard_tensors(self._model, encoded, self.manifest, batch_tokens, padding_side, shifted)
            shard = write_shard(self.path, len(self.manifest.shards), tensors, self.manifest)
            manifest = self.manifest.add(shard, encoded.sha256)
            manifest.write(self.path / UNFINISHED)
            self.manifest = manifest

    def finish(self) -> None:
        """Write the manifest; from now on the store can be read.

        Raises:
            InputError: the store is read-only, or the disk is full.
        """
        if not self._writable:
            raise InputError(f"{self.path}: the store is open for reading; use resume() to add to it")
        self.manifest.write(self.path / FINISHED)
        with system_errors(self.path):
            (self.path / UNFINISHED).unlink(missing_ok=True)
        publish(self.path)

    def read(self, site: Site | None = None, rows: slice | int | None = None) -> Vectors:
        """Vectors of consecutive texts at one site; only the wanted part of each shard is read.

        Args:
            site: may be left out where the store has one.
            rows: a slice with step 1, one row, or None for all.

        Raises:
            InputError: the site or row is not there, the store is being written, or a shard is corrupt.
        """
        if self._writable:
            raise InputError(f"{self.path}: the store is being written; finish it and open it to read")
        if site is None and len(self.sites) == 1:
            site = self.sites[0]
        if site not in self.sites:
            have = ", ".join(self.manifest.sites)
            raise InputError(f"{self.path}: site {site} is not in the store; it has {have}")
        start, stop = self._range(rows)
        bounds = np.concatenate([[0], np.cumsum([shard.texts for shard in self.manifest.shards])]).astype(int)
        width = self.manifest.widths[self.sites.index(site)]
        values = [np.zeros((0, width), np.float32)]
        lengths = [np.zeros(1, np.int64)]
        row = start
        while row < stop:
            number = bisect_right(bounds, row) - 1
            end = min(stop, int(bounds[number + 1]))
            shard = self.manifest.shards[number]
            if self._verify and shard.file not in self._verified:
                check_contents(self.path, shard)
                self._verified.add(shard.file)
            part, length = read_shard(self.path, shard, site, width, row - int(bounds[number]), end - int(bounds[number]))
            values.append(part)
            lengths.append(length)
            row = end
        return Vectors(np.concatenate(values), np.cumsum(np.concatenate(lengths)))

    def __len__(self) -> int:
        """Texts in whole shards."""
        return self.manifest.texts

    def __enter__(self) -> ActivationStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None and self._writable:
            self.finish()

    @classmethod
    def _begin(cls, folder: Path, model: LoadedModel, sites: Sequence[Site], *settings: Any) -> ActivationStore:
        manifest = Manifest.describe(model, sites, *settings)
        if folder.is_dir() and any(folder.glob("shard-*.safetensors")):
            raise InputError(f"{folder}: shards without a manifest are there already; delete them or choose another folder")
        manifest.write(folder / UNFINISHED)
        return cls(folder, manifest, model, writable=True, verify=False)

    def _encode(self, texts: Sequence[str] | Encoded, start: int, stop: int) -> Encoded:
        assert self._model is not None
        part = texts.rows(start, stop) if isinstance(texts, Encoded) else texts[start:stop]
        special, chat = cast(SpecialTokens, self.manifest.special_tokens), self.manifest.chat
        limit = self.manifest.max_tokens
        return encode(self._model, part, max_tokens=limit, special_tokens=special, chat=chat, first_row=len(self))

    def _check_texts(self, texts: Sequence[str] | Encoded) -> None:
        """That the first ``len(self)`` of the texts are those in the store."""
        digest = ""
        start = 0
        for shard in self.manifest.shards:
            stop = start + shard.texts
            if stop > len(texts):
                raise InputError(f"{self.path}: the store holds more than these {len(texts)} texts; use another folder")
            digest = chain(digest, self._encode(texts, start, stop).sha256)
            start = stop
        if digest != self.manifest.texts_sha256:
            raise InputError(f"{self.path}: the store was made from other texts; use another folder")

    def _range(self, rows: slice | int | None) -> tuple[int, int]:
        if rows is None:
            return 0, len(self)
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if step != 1:
                raise InputError(f"rows: step {step}; read consecutive rows")
            return start, max(start, stop)
        row = rows + len(self) if rows < 0 else rows
        if not 0 <= row < len(self):
            raise InputError(f"rows: {rows} is not in the store, which holds {len(self)} texts")
        return row, row + 1


def _shift(progress: Progress, before: int, total: int, done: int, _: int) -> None:
    progress(before + done, total)
