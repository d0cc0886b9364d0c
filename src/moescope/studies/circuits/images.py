"""Circuits of vision encoders: where an image is read, and what of a study of texts does not apply to it."""

from __future__ import annotations

from dataclasses import replace

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
        InputError: there is no such position, or an intervention that needs words is asked for.
    """
    if not model.reads_images:
        if settings.position == "cls" and not model.is_encoder:
            raise InputError(f"{model.name} is no encoder and has no class token; give final, mean or an index", "position")
        return settings
    for name in ("ablate", "keep_only", "paths"):
        if getattr(settings, name) is not None:
            raise InputError(f"{model.name} reads images, and interventions are judged by words; leave it out", name)
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


def balanced_on(task: Task) -> str:
    """What says nothing about the class in the surface-matched rows of a task."""
    if isinstance(task, ImageTask):
        return "file type, size, JPEG quality and brightness"
    if isinstance(task, BareTask):
        return "surface cues"
    return "length and full stop"
