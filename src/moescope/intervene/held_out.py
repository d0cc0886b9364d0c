"""Running text that makes a change of a model, and other running text that judges it: windows of one length, by document."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from moescope.capture.windows import opening, text_ids, windows
from moescope.errors import InputError
from moescope.files.text import lines, read_text
from moescope.models import LoadedModel
from moescope.study.protocol import Context
from moescope.study.rows import Rows
from moescope.tasks import plain_text
from moescope.tasks.given import given_texts

Source = Sequence[str] | str | Path | None
"""A file of UTF-8 text; None where there is a default."""
_SHARE = 0.75  # of one text's paragraphs that go to calibration where no held-out text is given
_BLOCK = 64  # paragraphs that are tokenised together
_DOCUMENTS = 8  # by fewer no interval is to be had
_HEADING = re.compile(r" ?= [^=\n]+ = ?")  # of an article, as raw WikiText has it


class Limits(Protocol):
    """How much text is read: what a study's settings say of it."""

    @property
    def calibration_tokens(self) -> int: ...
    @property
    def heldout_tokens(self) -> int: ...
    @property
    def window(self) -> int: ...


@dataclass(frozen=True, eq=False)
class Windows:
    """Sequences of equal length cut from a text, each behind what the tokenizer begins a text with: ids (N, length), what they
    were cut from, and the document (N,) in which each begins, where the text has any."""

    ids: torch.Tensor
    source: str
    sha256: str
    documents: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def tokens(self) -> int:
        return self.ids.numel()

    @property
    def unit(self) -> str:
        """Over what an interval of what is measured on them is: ``document``, where there are enough of them, or ``window``."""
        return "document" if len(np.unique(self.documents)) >= _DOCUMENTS else "window"

    @property
    def groups(self) -> np.ndarray:
        """int64 (N,): the :attr:`unit` of each window."""
        return self.documents if self.unit == "document" else np.arange(len(self))

    @property
    def facts(self) -> dict[str, Any]:
        """What a result says of them."""
        return {"source": self.source, "tokens": self.tokens, "sha256": self.sha256}

    def chosen(self, rows: torch.Tensor) -> Windows:
        """Those of the given numbers."""
        documents = self.documents[rows.numpy()] if len(self.documents) else self.documents
        return dataclasses.replace(self, ids=self.ids[rows], documents=documents)

    def batches(self, tokens: int = 4096) -> Iterator[torch.Tensor]:
        """Ids (B, length) with at most ``tokens`` tokens each, or one sequence."""
        yield from self.ids.split(max(1, tokens // self.ids.shape[1]))


@dataclass(frozen=True)
class Paragraphs:
    """A text, its name, and where its documents begin among the paragraphs: at the first, or as the text says."""

    texts: list[str]
    name: str
    begins: tuple[int, ...] = (0,)

    def part(self, start: int, stop: int, name: str) -> Paragraphs:
        inside = [at - start for at in self.begins if start < at < stop]
        return Paragraphs(self.texts[start:stop], name, (0, *inside))


def read_windows(
    model: LoadedModel, calibration: Source, heldout: Source, limits: Limits, positions: int
) -> tuple[Windows, Windows]:
    """Calibration and held-out windows.

    Without ``calibration`` the shipped WikiText excerpt is read; without ``heldout`` the last quarter of the calibration
    text's paragraphs is kept for it, none of which calibrates.

    Raises:
        InputError: a file cannot be read, the two are the same file, or a text is too short.
    """
    length = min(limits.window, positions)
    made, judged = sides(calibration, heldout)
    least = max(1024, 2 * model.d_model)
    calibrating = cut(model, made, length, limits.calibration_tokens)
    if calibrating.tokens < least:
        raise InputError(
            f"calibration text ({made.name}) gives {calibrating.tokens} tokens; at least {least} are needed "
            f"(1024, or twice the model's width of {model.d_model}): give a longer one",
            "texts",
        )
    testing = cut(model, judged, length, limits.heldout_tokens)
    if testing.tokens == 0:
        raise InputError(
            f"held-out text ({judged.name}) is shorter than one window of {length} tokens: give a longer one", "heldout"
        )
    if calibrating.sha256 == testing.sha256:
        raise InputError(f"{judged.name} is the calibration text; give another, or leave it out to split one", "heldout")
    return calibrating, testing


def put_on_record(context: Context, name: str, **parts: Windows) -> list[Windows]:
    """``parts`` by what they are for, ``fit``, ``select`` or ``judge``, as the rows that they are on record as.

    A window is known by the text that it is cut from and its place in that; training and validation are of one text.

    Raises:
        RowsOverlap: a window that judges does something else too.
    """
    numbers = np.split(np.arange(sum(map(len, parts.values()))), np.cumsum([len(p) for p in parts.values()])[:-1])
    groups = np.array([f"{windows.sha256} {i}" for windows in parts.values() for i in range(len(windows))])
    rows = context.rows(Rows(name, groups, **dict(zip(parts, numbers, strict=True))))
    ids = torch.cat([windows.ids for windows in parts.values()])
    documents = np.concatenate([windows.documents for windows in parts.values()])
    of = {role: getattr(rows, role) for role in parts}
    return [dataclasses.replace(w, ids=ids[of[role]], documents=documents[of[role]]) for role, w in parts.items()]


def sides(calibration: Source, heldout: Source) -> tuple[Paragraphs, Paragraphs]:
    """The text that calibrates, and the one that is held out."""
    made = paragraphs_of(calibration)
    if heldout is not None:
        return made, paragraphs_of(heldout)
    count = len(made.texts)
    at = int(count * _SHARE)
    return made.part(0, at, f"{made.name}, first three quarters"), made.part(at, count, f"{made.name}, last quarter")


def paragraphs_of(source: Source) -> Paragraphs:
    """The paragraphs of a file or of texts; None: of the shipped excerpt. A given text is a document, and so is an article of
    raw WikiText, which has a line `` = Title = `` before it."""
    if source is None:
        return Paragraphs(plain_text(), "WikiText-2 test excerpt")
    if not isinstance(source, str | Path):
        texts = given_texts(source)
        return Paragraphs(texts, f"{len(texts)} texts", tuple(range(len(texts))))
    path = Path(os.path.expanduser(source))
    texts = [line for line in lines(read_text(path)) if line.strip()]
    titles = [i for i, line in enumerate(texts) if _HEADING.fullmatch(line)]
    return Paragraphs(texts, path.name, tuple(dict.fromkeys((0, *titles))))


def cut(model: LoadedModel, text: Paragraphs, length: int, most: int) -> Windows:
    """Windows of ``length`` of the first tokens of a text, about ``most`` of them."""
    digest = hashlib.sha256("\n".join(text.texts).encode()).hexdigest()[:16]
    enough, parts, ends = max(most, length), [np.zeros(0, np.int32)], [0]
    for start, stop in zip(text.begins, (*text.begins[1:], len(text.texts)), strict=True):
        # blocks of paragraphs that follow each other as they did
        blocks = ("\n\n".join(text.texts[at : min(at + _BLOCK, stop)]) for at in range(start, stop, _BLOCK))
        parts.append(text_ids(model, blocks, enough=enough - ends[-1]))
        ends.append(ends[-1] + len(parts[-1]))
        if ends[-1] >= enough:
            break
    found = torch.from_numpy(windows(model, np.concatenate(parts), length=length, most=most).astype(np.int64))
    first = np.arange(len(found)) * max(0, length - len(opening(model)))
    documents = np.searchsorted(ends[1:], first, side="right")
    return Windows(found, text.name, digest, documents.astype(np.int64))
