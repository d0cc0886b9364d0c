"""The text that decides the split, and the text that judges it: never the same."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from moescope.capture.windows import text_ids, windows
from moescope.errors import InputError
from moescope.files.text import lines, read_text
from moescope.models import LoadedModel
from moescope.studies.convert.settings import ConvertSettings
from moescope.study.protocol import Context
from moescope.study.rows import Rows
from moescope.tasks import plain_text
from moescope.tasks.given import given_texts

Source = Sequence[str] | str | Path | None
"""A file of UTF-8 text; None where there is a default."""
_SHARE = 0.75  # of one text's paragraphs that go to calibration where no held-out text is given
_LONG = 80  # characters of a paragraph that two texts do not share by chance
_LEAST = 16  # windows to tune on
_MOST_VALIDATION = 32  # windows


@dataclass(frozen=True, eq=False)
class Windows:
    """Sequences of equal length cut from a text, each behind what the tokenizer begins a text with: ids (N, length), and what
    they were cut from."""

    ids: torch.Tensor
    source: str
    sha256: str

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def tokens(self) -> int:
        return self.ids.numel()

    def batches(self, tokens: int = 4096) -> Iterator[torch.Tensor]:
        """Ids (B, length) with at most ``tokens`` tokens each, or one sequence."""
        yield from self.ids.split(max(1, tokens // self.ids.shape[1]))


def read_windows(
    model: LoadedModel, calibration: Source, heldout: Source, settings: ConvertSettings, positions: int
) -> tuple[Windows, Windows]:
    """Calibration and held-out windows.

    Without ``calibration`` the shipped WikiText excerpt is read; without ``heldout`` the last quarter of the calibration
    text's paragraphs is kept for it, none of which calibrates.

    Raises:
        InputError: a file cannot be read, the two are the same file, or a text is too short.
    """
    length = min(settings.window, positions)
    (paragraphs, name), (judged, other) = _sides(calibration, heldout)
    least = max(1024, 2 * model.d_model)
    calibrating = _cut(model, paragraphs, length, settings.calibration_tokens, name)
    if calibrating.tokens < least:
        raise InputError(
            f"calibration text ({name}) gives {calibrating.tokens} tokens; at least {least} are needed "
            f"(1024, or twice the {model.d_model} inputs of a router): give a longer one",
            "texts",
        )
    testing = _cut(model, judged, length, settings.heldout_tokens, other)
    if testing.tokens == 0:
        raise InputError(f"held-out text ({other}) is shorter than one window of {length} tokens: give a longer one", "heldout")
    if calibrating.sha256 == testing.sha256:
        raise InputError(f"{other} is the calibration text; give another, or leave it out to split one", "heldout")
    return calibrating, testing


def read_tuning_windows(
    model: LoadedModel,
    text: Source,
    calibration: Source,
    heldout: Source,
    settings: ConvertSettings,
    positions: int,
    most: int,
    seed: int,
) -> tuple[Windows, Windows]:
    """Windows to train on, ``most`` of them at most, and windows to validate on: an eighth of all, drawn by the seed.

    They come from ``text`` or, without it, from the whole of the calibration text, beyond the tokens that calibrate too.
    A paragraph that is also in the held-out text is left out.

    Raises:
        InputError: the text cannot be read or is too short.
    """
    length = min(settings.window, positions)
    (paragraphs, name), (judged, _) = _sides(calibration, heldout)
    if text is not None:
        paragraphs, name = _paragraphs(text)
    common = {p for p in judged if len(p) >= _LONG}.intersection(paragraphs)
    if common:
        paragraphs = [p for p in paragraphs if p not in common]
        name = f"{name}, less {len(common)} paragraphs that are held out"
    found = _cut(model, paragraphs, length, (most + _MOST_VALIDATION) * length, name)
    count = len(found.ids)
    if count < _LEAST:
        raise InputError(
            f"fine-tuning text ({name}) gives {count} windows of {length} tokens; at least {_LEAST} are needed: "
            "give a longer one, or a shorter window",
            "finetune_text",
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    held = min(_MOST_VALIDATION, count // 8)
    validating, training = order[:held].sort().values, order[held:].sort().values
    return dataclasses.replace(found, ids=found.ids[training]), dataclasses.replace(found, ids=found.ids[validating])


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
    return [dataclasses.replace(windows, ids=ids[getattr(rows, role)]) for role, windows in parts.items()]


def _sides(calibration: Source, heldout: Source) -> tuple[tuple[list[str], str], tuple[list[str], str]]:
    """Paragraphs and name of the text that calibrates, and of the one that is held out."""
    paragraphs, name = _paragraphs(calibration)
    if heldout is not None:
        return (paragraphs, name), _paragraphs(heldout)
    cut = int(len(paragraphs) * _SHARE)
    return (paragraphs[:cut], f"{name}, first three quarters"), (paragraphs[cut:], f"{name}, last quarter")


def _paragraphs(source: Source) -> tuple[list[str], str]:
    if source is None:
        return plain_text(), "WikiText-2 test excerpt"
    if not isinstance(source, str | Path):
        texts = given_texts(source)
        return texts, f"{len(texts)} texts"
    path = Path(os.path.expanduser(source))
    return [line for line in lines(read_text(path)) if line.strip()], path.name


def _cut(model: LoadedModel, paragraphs: list[str], length: int, most: int, name: str) -> Windows:
    digest = hashlib.sha256("\n".join(paragraphs).encode()).hexdigest()[:16]
    # blocks of paragraphs that follow each other as they did
    blocks = ("\n\n".join(paragraphs[start : start + 64]) for start in range(0, len(paragraphs), 64))
    cut = windows(model, text_ids(model, blocks, enough=max(most, length)), length=length, most=most)
    return Windows(torch.from_numpy(cut.astype(np.int64)), name, digest)
