"""Circuits of vision encoders: where an image is read, and what of a study of texts does not apply to it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from moescope.capture import Position
from moescope.errors import InputError
from moescope.models import LoadedModel
from moescope.studies.circuits.settings import CircuitSettings
from moescope.study.protocol import Context
from moescope.tasks import ImageTask
from moescope.tasks.bare import BareTask
from moescope.types import Task

NO_TEMPLATE = "not applicable: an image has no template"


def placed(model: LoadedModel, settings: CircuitSettings, context: Context) -> CircuitSettings:
    """The settings with a position that the model has: an image has no final token, so ``final`` becomes its class token, or
    the mean of its patches where there is none, with a note.

    Raises:
        InputError: there is no such position, or an intervention is asked for that follows words alone.
    """
    if not model.reads_images:
        if settings.position == "cls" and not model.is_encoder:
            raise InputError(f"{model.name} is no encoder and has no class token; give final, mean or an index", "position")
        return settings
    for name, why in (("paths", "paths are followed to a final token"), ("crossed", "crossed labels are of texts")):
        if getattr(settings, name) is not None:
            raise InputError(f"{model.name} reads images, and {why}; leave it out", name)
    has_class = model.tokenizer.before > 0
    if settings.position == "cls" and not has_class:
        raise InputError(f"{model.name} has no class token; give mean or an index", "position")
    if settings.position == "final":
        settings = replace(settings, position="cls" if has_class else "mean")
        where = "at its class token" if has_class else "as the mean of its patches"
        context.note(f"An image has no final token: each is read {where} (position {settings.position}).")
    places = model.tokenizer.places
    if isinstance(settings.position, int) and not -places <= settings.position < places:
        raise InputError(f"{model.name} has {places} places for an image, class token and registers first", "position")
    return settings


def edited_at(model: LoadedModel, settings: CircuitSettings) -> Position:
    """Where interventions are, and what judges them is read: a text's final token, whatever the study's position; of an image
    the study's own."""
    return settings.position if model.reads_images else "final"


def edited_places(model: LoadedModel, settings: CircuitSettings) -> np.ndarray | None:
    """bool (T,): of an image the places that :func:`edited_at` means, all patches for their mean; None for texts."""
    if not model.reads_images:
        return None
    at, reader = settings.position, model.tokenizer
    places = np.arange(reader.places)
    return np.asarray(places >= reader.before if at == "mean" else places == (0 if at == "cls" else int(at) % reader.places))


def edited_where(model: LoadedModel, settings: CircuitSettings) -> str:
    """The same in words."""
    if not model.reads_images:
        return "the final token"
    return {"cls": "the class token", "mean": "every patch"}.get(str(settings.position), f"place {settings.position}")


def off_task(task: Task) -> str:
    """The shipped images on which a circuit that is alone is switched off: whether a digit is a real one, or which it is."""
    return "digits" if task.source.startswith("preset digits-made") else "digits-made"


def balanced_on(task: Task) -> str:
    """What says nothing about the class in the surface-matched rows of a task."""
    if isinstance(task, ImageTask):
        return "file type, size, JPEG quality and brightness"
    if isinstance(task, BareTask):
        return "surface cues"
    return "length and full stop"
