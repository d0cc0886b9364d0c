"""The text that a conversion is fine-tuned on: never what judges it."""

from __future__ import annotations

import torch

from moescope.errors import InputError
from moescope.intervene.held_out import Paragraphs, Source, Windows, cut, paragraphs_of, sides
from moescope.models import LoadedModel
from moescope.studies.convert.settings import ConvertSettings

_LONG = 80  # characters of a paragraph that two texts do not share by chance
_LEAST = 16  # windows to tune on
_MOST_VALIDATION = 32  # windows


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
    tuning, judged = sides(calibration, heldout)
    if text is not None:
        tuning = paragraphs_of(text)
    common = {p for p in judged.texts if len(p) >= _LONG}.intersection(tuning.texts)
    if common:
        name = f"{tuning.name}, less {len(common)} paragraphs that are held out"
        tuning = Paragraphs([p for p in tuning.texts if p not in common], name)
    found = cut(model, tuning, length, (most + _MOST_VALIDATION) * length)
    count = len(found)
    if count < _LEAST:
        raise InputError(
            f"fine-tuning text ({tuning.name}) gives {count} windows of {length} tokens; at least {_LEAST} are needed: "
            "give a longer one, or a shorter window",
            "finetune_text",
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    held = min(_MOST_VALIDATION, count // 8)
    validating, training = order[:held].sort().values, order[held:].sort().values
    return found.chosen(training), found.chosen(validating)
