"""Image files of strangers, decoded by Pillow within limits; what is damaged, too large or no image is one line."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from moescope.errors import InputError

SUFFIXES = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
MOST_BYTES, MOST_PIXELS = 1 << 28, 1 << 26
"""Of a file, and of the image in it: 256 MiB, 67 million pixels (8,192 × 8,192)."""


@dataclass(frozen=True)
class Picture:
    """An image file, decoded."""

    image: Image.Image
    """RGB; transparency is dropped, the first frame is taken"""
    kind: str
    """as Pillow calls it: ``PNG``, ``JPEG``, …"""
    nbytes: int
    sha256: str
    """of the file"""
    table: float | None
    """mean of a JPEG's first quantisation table, of luminance: the larger, the lower its quality; None for other kinds"""

    @property
    def pixels(self) -> np.ndarray:
        """uint8 (H, W, 3)."""
        return np.asarray(self.image)


def read_image(path: str | Path) -> Picture:
    """Decode a file.

    Its size is looked at before it is read, its pixels are counted before they are unpacked, and only the kinds of
    :data:`SUFFIXES` are tried, whatever the file is called.

    Raises:
        InputError: names the file and the mend.
    """
    data = _bytes(Path(path))
    try:
        with warnings.catch_warnings(action="ignore"):  # of bombs, which are counted here, and of odd metadata
            image = Image.open(io.BytesIO(data), formats=sorted(set(SUFFIXES.values())))
            width, height = image.size
            if width * height > MOST_PIXELS:
                raise InputError(f"{path}: {width} × {height} pixels, more than {MOST_PIXELS:,}; make it smaller")
            kind, table = str(image.format), _table(image)
            image.load()
            rgb = _rgb(image)
    except InputError:
        raise
    except UnidentifiedImageError as error:
        known = ", ".join(sorted(set(SUFFIXES.values())))
        raise InputError(f"{path}: is no image that moescope reads ({known}); save it as PNG or leave it out") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{path}: holds more than {MOST_PIXELS:,} pixels; make it smaller") from error
    except Exception as error:  # decoders throw what they like at a damaged file
        why = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(f"{path}: is damaged or cut short ({why}); fetch or save the image again") from error
    return Picture(rgb, kind, len(data), hashlib.sha256(data).hexdigest(), table)


def _bytes(path: Path) -> bytes:
    """Raises InputError where it is no ordinary file of a decent size."""
    try:
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise InputError(f"{path}: is no ordinary file; give an image")
            if found.st_size > MOST_BYTES:
                raise InputError(f"{path}: {found.st_size:,} bytes, more than {MOST_BYTES:,}; make the image smaller")
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); mend the path or leave the image out") from error
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: is no path ({error})") from error
    if not data:
        raise InputError(f"{path}: is empty; fetch or save the image again")
    return data


def _table(image: Image.Image) -> float | None:
    tables = getattr(image, "quantization", None) if image.format == "JPEG" else None
    return float(np.mean(tables[min(tables)])) if tables else None


def _rgb(image: Image.Image) -> Image.Image:
    """As 8 bits of red, green and blue. Pillow cuts 16 bits of grey off at 255, which would be white: the upper 8 are kept."""
    if image.mode.startswith("I;16") or image.mode == "I":
        grey = np.asarray(image).astype(np.int64)
        return Image.fromarray(np.clip(grey >> 8, 0, 255).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")
