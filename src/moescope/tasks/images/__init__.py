"""Labelled images: folders, tables of paths and presets, and what trivial cues alone score on them."""

from moescope.tasks.images.load import IMAGE_PRESETS, ImagePreset
from moescope.tasks.images.task import ImageTask, Surface

__all__ = ["IMAGE_PRESETS", "ImagePreset", "ImageTask", "Surface"]
