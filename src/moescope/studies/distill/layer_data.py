"""Teacher inputs and outputs read from a running model or from a store of activations."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moescope.capture import ActivationStore, Encoded, capture, encode
from moescope.capture.activations import check_finite, padded_batches
from moescope.capture.encode import pad
from moescope.capture.shards import read_lengths
from moescope.errors import InputError
from moescope.files.text import lines, read_text
from moescope.models.inputs import padding_id
from moescope.studies.distill.data import SPLITS, ArrayPairs, Block, Pairs, Split, count, split_units, whole
from moescope.studies.distill.settings import DistillSettings
from moescope.studies.distill.teacher import Teacher
from moescope.study.rows import Rows
from moescope.study.run import Run
from moescope.tasks import articles, plain_text
from moescope.tasks.given import given_texts
from moescope.types import Site

Progress = Callable[[int, int], None]
Record = Callable[[Rows], Rows]
Keep = Callable[[str, Callable[[], dict[Split, Block]]], dict[Split, Block]]


TOGETHER = 8  # texts that the source pads to one length
_SHARES = (0.8, 0.1, 0.1)  # of train, validation and test, in vectors
_SETTINGS, _RUN = DistillSettings(), Run()


def read_texts(source: Sequence[str] | str | Path | None) -> list[str]:
    """The documents of a file, parted by the headings of articles where it is raw WikiText, else by blank lines; None: the
    shipped excerpt of WikiText-2.

    Raises:
        InputError: the file cannot be read or is empty.
    """
    if source is None:
        return plain_text()
    if not isinstance(source, str | Path):
        return given_texts(source)
    try:
        text = "\n".join(lines(read_text(Path(os.path.expanduser(source)))))
    except InputError as error:
        raise InputError(str(error), "texts") from error
    texts = articles(text) or [part for part in (part.strip() for part in text.split("\n\n")) if part]
    if not texts:
        raise InputError(f"{source} holds no text", "texts")
    return texts


def units_of(texts: Sequence[str], characters: int, padding: str) -> tuple[list[str], np.ndarray]:
    """What is read at once, and the document that each is of (int64): pieces of documents, or, where padding is kept, their
    lines, as the source reads them."""
    made = [[line for line in text.split("\n") if line.strip()] if padding == "keep" else [text] for text in texts]
    cut = [(piece, number) for number, parts in enumerate(made) for piece in pieces(parts, characters)]
    return [piece for piece, _ in cut], np.array([number for _, number in cut], np.int64)


def pieces(texts: Sequence[str], characters: int) -> list[str]:
    """Texts cut at spaces into pieces of at most ``characters`` (a single longer word stays whole), so that a model with a
    short context sees all of a long text, not its end alone."""
    cut: list[str] = []
    for text in texts:
        while len(text) > characters:
            at = text.rfind(" ", 1, characters + 1)
            at = at if at > 0 else text.find(" ", characters)
            if at < 0:
                break
            cut.append(text[:at])
            text = text[at + 1 :]
        cut.append(text)
    return [piece for piece in cut if piece.strip()]


class ModelPairs:
    """Inputs and outputs of a layer, read from the running model whenever they are asked for; a unit is a text, of one of
    ``documents``.

    The first token of every text is left out (its activations are massive and the same everywhere, Sun et al. 2024), and so
    is padding.
    """

    def __init__(
        self,
        teacher: Teacher,
        texts: dict[Split, Encoded],
        documents: dict[Split, np.ndarray],
        *,
        buffer: int,
        batch_tokens: int,
    ) -> None:
        self.name = f"{teacher.model.name}, layer {teacher.layer}"
        self.buffer = buffer
        self._teacher, self._texts, self._documents, self._batch_tokens = teacher, texts, documents, batch_tokens

    def lengths(self, split: Split) -> np.ndarray:
        return self._texts[split].lengths - 1

    def load(self, split: Split, units: np.ndarray, progress: Progress | None = None) -> Block:
        texts = self._texts[split]
        asked = Encoded.from_ids([texts[int(u)] for u in units])
        return _read(self._teacher, asked, self._documents[split][units], self._batch_tokens, progress)


class PaddedPairs(ModelPairs):
    """The same as the source of the third study reads it: eight texts at a time, padded to the longest on the tokenizer's
    side, and every position kept, padding and first tokens too. A unit is eight texts."""

    def lengths(self, split: Split) -> np.ndarray:
        lengths = self._texts[split].lengths
        ends = range(0, len(lengths), TOGETHER)
        return np.array([len(part) * part.max() for part in (lengths[at : at + TOGETHER] for at in ends)], np.int64)

    def load(self, split: Split, units: np.ndarray, progress: Progress | None = None) -> Block:
        model, sites = self._teacher.model, (self._teacher.site_in, self._teacher.site_out)
        texts, of = self._texts[split], self._documents[split]
        side: Any = getattr(model.tokenizer, "padding_side", "right")
        sides: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
        tokens, documents = [], []
        with capture(model, sites) as session:
            for done, unit in enumerate(units, 1):
                rows = np.arange(unit * TOGETHER, min((unit + 1) * TOGETHER, len(texts)))
                batch = pad(texts, rows, pad_id=padding_id(model), side=side)
                seen = session.run(batch.ids, batch.mask)
                width = batch.ids.shape[1]
                for kept, site in zip(sides, sites, strict=True):
                    flat = seen[site].reshape(len(rows) * width, -1).float().cpu()
                    check_finite(flat[:, None], np.repeat(rows, width), [site], model)
                    kept.append(flat)
                tokens.append(batch.ids.reshape(-1))
                documents.append(torch.from_numpy(np.repeat(of[rows], width)))
                if progress is not None:
                    progress(done, len(units))
        return Block(torch.cat(sides[0]), torch.cat(sides[1]), torch.cat(tokens), torch.cat(documents))


class StorePairs:
    """The same from a store that holds every token of both sites; a unit is a text. Token ids are not in a store.

    Raises:
        InputError: the store is of another model, lacks a site, or does not hold every token.
    """

    def __init__(self, teacher: Teacher, store: ActivationStore, texts: dict[Split, np.ndarray], *, buffer: int) -> None:
        self.name = f"{teacher.model.name}, layer {teacher.layer} ({store.path})"
        self.buffer = buffer
        self._teacher, self._store, self._texts = teacher, store, texts
        self._lengths = store_lengths(store)

    def lengths(self, split: Split) -> np.ndarray:
        return np.asarray(self._lengths[self._texts[split]] - 1)

    def load(self, split: Split, units: np.ndarray) -> Block:
        rows = [int(self._texts[split][u]) for u in units]
        sides = [
            torch.from_numpy(np.concatenate([self._store.read(site, row).values[1:] for row in rows]))
            for site in (self._teacher.site_in, self._teacher.site_out)
        ]
        return Block(sides[0], sides[1], None, torch.from_numpy(np.repeat(rows, self._lengths[rows] - 1)))


def model_pairs(
    teacher: Teacher,
    texts: Sequence[str],
    settings: DistillSettings = _SETTINGS,
    run: Run = _RUN,
    *,
    documents: np.ndarray | None = None,
    progress: Progress | None = None,
    record: Record = lambda rows: rows,
    keep: Keep = lambda name, read: read(),
) -> Pairs:
    """Read a layer's inputs and outputs on ``texts``; no document is in two splits.

    Kept in memory where they fit, else streamed. A text of one token has nothing to give and is left out.

    Args:
        documents: int64 (texts,), which of them are of one document; None: each is its own.
        settings: ``tokens``, ``memory`` and ``buffer`` are used.
        record: given the rows that train, validate and test.
        keep: given the name of what is read into memory and what reads it; gives it.

    Raises:
        InputError: too little text, or an activation that is not finite (the text is named).
    """
    encoded = encode(teacher.model, texts, max_tokens=run.max_tokens, chat=False)
    lengths = encoded.lengths - (settings.padding == "drop")
    of = np.arange(len(texts)) if documents is None else np.asarray(documents, np.int64)
    parts = _split(f"texts of {teacher.model.name}", lengths, of, settings, run, record)
    split_texts = {split: Encoded.from_ids([encoded[int(u)] for u in units]) for split, units in parts.items()}
    owners = {split: of[units] for split, units in parts.items()}
    kind = PaddedPairs if settings.padding == "keep" else ModelPairs
    streamed = kind(teacher, split_texts, owners, buffer=settings.buffer, batch_tokens=run.batch_tokens)
    if not _fits(teacher, streamed, settings):
        return streamed

    def read() -> dict[Split, Block]:
        units = {split: np.arange(len(streamed.lengths(split))) for split in SPLITS}
        return {split: streamed.load(split, units[split], progress if split == "train" else None) for split in SPLITS}

    kept = keep(f"reading {streamed.name}, padding {settings.padding}", read)
    return ArrayPairs(streamed.name, kept, buffer=settings.buffer)


def store_pairs(
    teacher: Teacher,
    store: ActivationStore,
    settings: DistillSettings = _SETTINGS,
    run: Run = _RUN,
    *,
    record: Record = lambda rows: rows,
) -> Pairs:
    """The same from a store made with :class:`~moescope.capture.ActivationStore` (sites ``mlp_in`` and ``mlp_out`` of the
    layer, position ``"all"``).

    Raises:
        InputError: the store is of another model, lacks a site, or does not hold every token.
    """
    store.manifest.check_model(teacher.model, store.path)
    if store.manifest.position != "all":
        raise InputError(f"{store.path}: the store holds position {store.manifest.position}; collect it with position 'all'")
    for site in (teacher.site_in, teacher.site_out):
        if site not in store.sites:
            raise InputError(f"{store.path}: site {site} is not in the store; it has {', '.join(store.manifest.sites)}")
    lengths = store_lengths(store) - 1
    parts = _split(f"texts of {store.path}", lengths, np.arange(len(lengths)), settings, run, record)
    streamed = StorePairs(teacher, store, parts, buffer=settings.buffer)
    if not _fits(teacher, streamed, settings):
        return streamed
    return ArrayPairs(streamed.name, {split: whole(streamed, split) for split in SPLITS}, buffer=settings.buffer)


def store_lengths(store: ActivationStore) -> np.ndarray:
    """int64 (texts,): vectors of each text."""
    return np.concatenate([np.zeros(0, np.int64), *(read_lengths(store.path, shard) for shard in store.manifest.shards)])


def _split(
    name: str, lengths: np.ndarray, documents: np.ndarray, settings: DistillSettings, run: Run, record: Record
) -> dict[Split, np.ndarray]:
    """Numbers of the texts that train, validate and test, as they are on record."""
    use = _enough(lengths, settings.tokens, run.seed)
    train, validation, test = (use[u] for u in split_units(lengths[use], _SHARES, run.seed, documents[use]).values())
    rows = record(Rows(name, documents, fit=train, select=validation, judge=test))
    return {"train": rows.fit, "validation": rows.select, "test": rows.judge}


def _enough(lengths: np.ndarray, tokens: int | None, seed: int) -> np.ndarray:
    """Texts with at least one vector, in random order until ``tokens`` vectors are there."""
    order = np.random.default_rng([seed, 1]).permutation(len(lengths))
    order = order[lengths[order] > 0]
    if tokens is None:
        return np.sort(order)
    ends = np.cumsum(lengths[order])
    if not len(ends) or ends[-1] < tokens:
        raise InputError(
            f"{tokens} vectors were asked for, the text gives {int(ends[-1]) if len(ends) else 0}; give more text or fewer",
            "tokens",
        )
    return np.sort(order[: int(np.searchsorted(ends, tokens)) + 1])


def _fits(teacher: Teacher, pairs: Pairs, settings: DistillSettings) -> bool:
    vectors = sum(count(pairs, split) for split in SPLITS)
    return 4 * vectors * (teacher.entry.width + teacher.exit.width) <= int(settings.memory * 2**30)


def _read(
    teacher: Teacher, encoded: Encoded, documents: np.ndarray, batch_tokens: int, progress: Progress | None = None
) -> Block:
    """All but the first vector of each text, text after text."""
    model, sites = teacher.model, (teacher.site_in, teacher.site_out)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(encoded.lengths - 1)])
    out = [torch.empty(int(offsets[-1]), point.width) for point in (teacher.entry, teacher.exit)]
    tokens = torch.empty(int(offsets[-1]), dtype=torch.long)
    done = 0
    with capture(model, sites) as session:
        for batch in padded_batches(model, encoded, batch_tokens, "right"):
            keep = batch.mask.clone()
            keep[:, 0] = False  # padding is on the right, so this is the first token
            place = torch.cat([torch.arange(int(offsets[row]), int(offsets[row + 1])) for row in batch.rows])
            seen = session.run(batch.ids, batch.mask, reduce=partial(_vectors, keep))
            numbers = np.repeat(batch.numbers, encoded.lengths[batch.rows] - 1)
            for side, site in enumerate(sites):
                check_finite(seen[site][:, None], numbers, [site], model)
                out[side][place] = seen[site]
            tokens[place] = batch.ids[keep]
            done += len(batch.rows)
            if progress is not None:
                progress(done, len(encoded))
    return Block(out[0], out[1], tokens, torch.from_numpy(np.repeat(documents, encoded.lengths - 1)))


def _vectors(keep: torch.Tensor, _: Site, tensor: torch.Tensor) -> torch.Tensor:
    return tensor[keep.to(tensor.device)].float().cpu()
