"""Labelled images: the task, and what is known of each image's surface."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from moescope.files.image import Picture, read_image
from moescope.types import Task

THUMBNAIL = 8
"""pixels along an edge of the picture in small that a linear classifier is given"""


@dataclass(frozen=True)
class Surface:
    """What can be told of an image without seeing what it shows."""

    kind: str
    """PNG, JPEG, …"""
    nbytes: int
    """of the file"""
    width: int
    height: int
    table: float | None
    """mean of a JPEG's quantisation table, which its quality decides; None for other kinds"""
    mean: tuple[float, float, float]
    """of red, green and blue, 0 to 1"""
    spread: tuple[float, float, float]
    """their standard deviations over pixels"""
    shades: int
    """different greys, 1 to 256"""
    thumbnail: tuple[float, ...]
    """8 × 8 greys, 0 to 1, row by row"""
    content: str
    """SHA-256 of the pixels and their arrangement: the same for one image in two files"""


@dataclass(frozen=True)
class ImageTask(Task):
    """A labelled set of images: the text of each example is its file's path, by which ``surface`` knows it too."""

    surface: dict[str, Surface] = field(default_factory=dict, compare=False, repr=False)

    def surfaces(self) -> list[Surface]:
        """Of each row."""
        return [self.surface[example.text] for example in self.examples]

    def hashed(self) -> ImageTask:
        """The same with ``sha256`` over the images' pixels, labels and groups, whatever their paths."""
        digest = hashlib.sha256()
        for example, seen in zip(self.examples, self.surfaces(), strict=True):
            digest.update(json.dumps([seen.content, example.label, example.group]).encode() + b"\n")
        return replace(self, sha256=digest.hexdigest())


def surface_of(path: str) -> Surface:
    """Decode an image and look at its surface.

    Raises:
        InputError: it cannot be decoded; names the file.
    """
    return _surface(read_image(path))


def _surface(picture: Picture) -> Surface:
    pixels = picture.pixels
    flat = pixels.reshape(-1, 3) / 255.0
    grey = picture.image.convert("L")
    small = grey.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    digest = hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).hexdigest()
    return Surface(
        kind=picture.kind,
        nbytes=picture.nbytes,
        width=picture.image.width,
        height=picture.image.height,
        table=picture.table,
        mean=_three(flat.mean(0)),
        spread=_three(flat.std(0)),
        shades=len(np.unique(np.asarray(grey))),
        thumbnail=tuple((np.asarray(small).ravel() / 255.0).tolist()),
        content=digest,
    )


def _three(values: np.ndarray) -> tuple[float, float, float]:
    red, green, blue = (float(v) for v in values)
    return red, green, blue


def shown(path: str) -> str:
    """A path as a reader is shown it: file and class alone, without the folders of a machine."""
    return "/".join(Path(path).parts[-2:])
